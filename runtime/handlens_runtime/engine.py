"""Runs a bundle: messages in, tokens out, in ExecuTorch's runner's words. Knows nothing about how programs compute.

    prefill    look at pictures ─▶ prompt ─▶ keep rows of an earlier turn ─▶ [encode tiles ─▶ decoder] chunk by chunk
    generate   prefill ─▶ [sample ─▶ text ─▶ yield ─▶ decoder] token by token

Between any two steps in brackets, and between two batches of tiles, `stop()` is honoured; on ONNX Runtime also within
the pass that chooses among a prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from handlens_runtime import backends, heap
from handlens_runtime.backends.base import Array, Backend
from handlens_runtime.bundle import TOKENIZER, Bundle
from handlens_runtime.cached_decoder import CachedDecoder, Span
from handlens_runtime.chat import Message
from handlens_runtime.errors import BusyError, PromptError
from handlens_runtime.image_encoder import ImageEncoder
from handlens_runtime.options import Options
from handlens_runtime.prompt import Key, Picture, Prompt, build, check_fits, check_messages
from handlens_runtime.sampler import Sampler, check_finite, log_softmax
from handlens_runtime.stats import Finish, Stats, peak_memory_bytes
from handlens_runtime.stop import Stopped, StopSignal
from handlens_runtime.stream import TextStream
from handlens_runtime.tokenizer import Tokenizer
from handlens_runtime.turns import asked

LEAST_SPARSE = 129
"""Tokens of a prompt from which on the programs can choose among them."""
IMAGE_CACHE_BYTES = 64 * 1024 * 1024
_BUSY = "The engine is still answering; finish or close the earlier iterator (or wait for the other call) first."


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    text: str
    """What to show now; empty while a character or a possible stop string is incomplete, and for an end token."""
    logprob: float
    """Log-probability under the model itself, before any sampling option."""


@dataclass(frozen=True)
class Kept:
    """What the layers kept of a prompt, or of a later turn of one."""

    keys: tuple[Key, ...]
    """What each row is."""
    rows: NDArray[np.bool_]
    """(layers, rows), true for those kept."""


class Engine:
    """One conversation at a time with one bundle. Only `stop()` may be called while another call runs."""

    def __init__(
        self,
        bundle: Bundle | Path | str,
        backend: Backend | str | None = None,
        *,
        verify: bool = True,
        image_cache_bytes: int = IMAGE_CACHE_BYTES,
        release_encoder: bool = False,
        sparse: bool | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Open a bundle, given loaded or by its folder.

        `backend`: a name, an instance, or None for the bundle's fastest installed one. `verify` checks the hashes of
        a bundle given by its folder. `release_encoder` frees the vision encoder's memory once a prompt's pictures are
        encoded and takes it again for the next new picture, as phones short of memory do. `sparse`: whether layers
        keep only what matters to them of a prompt, where the bundle can; None leaves short prompts whole. `now` is the
        clock of chat templates that write the date. Raises BundleError, BackendError.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle, verify)
        self.tokenizer = Tokenizer(self.bundle.file(TOKENIZER))
        self.backend = backends.load(self.bundle, backend) if backend is None or isinstance(backend, str) else backend
        heap.trim()
        self.warnings = self.backend.warnings
        """What makes it slower than it could be on this machine, one sentence each."""
        self.stats = Stats()
        """Numbers of the latest run, live while it runs."""
        manifest = self.bundle.manifest
        self._manifest = manifest
        self._now = now
        self._decoder = CachedDecoder(self.backend, manifest.sizes.vocab_size)
        self._encoder = (
            ImageEncoder(self.backend, manifest.image, manifest.sizes.width, image_cache_bytes)
            if manifest.image is not None
            else None
        )
        self._release_encoder = release_encoder
        self.sparse = sparse
        """Whether layers keep only what matters to them of a prompt, as above; may be changed between two runs."""
        self.kept: list[Kept] = []
        """Of the latest run's sparse passes over its prompt, which rows each layer kept."""
        self._busy = Lock()
        self._signal = StopSignal()

    def prefill(self, messages: Sequence[Message]) -> None:
        """Do ahead what can be done of a conversation: encode its pictures, fill the cache.

        For use while the question is still being typed; a later `generate` starts from what both have in common. Where
        a prompt is one pass, for a bundle that is not causal or with tokens chosen, pictures are encoded and no more.
        Raises PromptError, ImageError, BackendError, BusyError.
        """
        with self._run() as signal:
            if self._manifest.causal and not self._chooses:
                self._fill(messages, signal, answer=False)
            else:
                for picture in self._look(messages):
                    self._picture(picture.digest, signal)

    def generate(self, messages: Sequence[Message], options: Options | None = None) -> Generator[Token, None, None]:
        """Answer a conversation, token by token; work starts with the first `next`.

        The joined texts are the answer. The last token is the model's end token where it chose to end, with what text
        was still held back. Leaving early (`close()`, or dropping the iterator) and `stop()` both leave the engine
        ready for the next call. Raises PromptError, ImageError, BackendError, BusyError.
        """
        if self._busy.locked():
            raise BusyError(_BUSY)
        self._signal = signal = StopSignal()
        return self._generate(list(messages), options or Options(), signal)

    def next_logits(self, messages: Sequence[Message]) -> Array:
        """Logits (vocab_size,) of an answer's first token, as the decoder gives them, before any sampling option.

        Empty where `stop()` was called. Raises PromptError, ImageError, BackendError, BusyError.
        """
        logits: Array = np.empty(0, np.float32)
        with self._run() as signal:
            logits = self._fill(messages, signal, answer=True)[1]
        return logits

    def score(self, messages: Sequence[Message], answer: str | Sequence[int]) -> NDArray[np.float64]:
        """Log-probability of each token of a given answer to a conversation, fed one token at a time.

        `answer`: text, or its ids; the end token is scored only where it is written. Returns (tokens,), fewer where
        `stop()` was called. Raises PromptError, ImageError, BackendError, BusyError.
        """
        ids = self.tokenizer.encode(answer) if isinstance(answer, str) else list(answer)
        self._check_ids(ids)
        scores: list[float] = []
        with self._run() as signal:
            logits = self._fill(messages, signal, answer=True, given=len(ids) - 1)[1]
            self._score(ids, logits, signal, scores)
        return np.array(scores)

    def score_ids(self, ids: Sequence[int], prompt: int = 1) -> NDArray[np.float64]:
        """Log-probability of each of `ids` behind the first `prompt`, given those before it, without a chat template.

        From an empty cache: `prompt` of them in a prompt's passes, the others one at a time. Returns
        (len(ids) - prompt,), fewer where `stop()` was called. Raises PromptError, BackendError, BusyError.
        """
        ids = list(ids)
        self._check_ids(ids)
        if not 1 <= prompt <= len(ids):
            raise PromptError(f"A prompt of {prompt} cannot be taken from {len(ids)} ids; take 1 to {len(ids)}.")
        check_fits(self._manifest, prompt, answer_tokens=len(ids) - prompt - 1)
        scores: list[float] = []
        with self._run() as signal:
            spans = self._long_enough([(0, prompt)])
            self._decoder.rewind(())
            for begin, end in self._passes(0, prompt, spans):
                logits = self._pass(ids[begin:end], signal, {}, (begin, end) in spans)
            self._score(ids[prompt:], logits, signal, scores)
        return np.array(scores)

    def stop(self) -> None:
        """End the current run between two of its steps, or where the backend can within a pass that chooses tokens.

        Safe from any thread, and without effect on the next run.
        """
        self._signal.set()

    def reset(self) -> None:
        """Forget the conversation; embeddings of pictures stay, they are the same in any. Raises BusyError."""
        with self._claim():
            self._decoder.rewind(())

    def _generate(
        self, messages: Sequence[Message], options: Options, signal: StopSignal
    ) -> Generator[Token, None, None]:
        with self._run(signal):
            began = perf_counter()
            prompt, logits = self._fill(messages, signal, answer=True)
            sampler = Sampler(options.sampling(self._manifest.sampling), prompt.ids, options.seed)
            text = TextStream(self.tokenizer, options.stop)
            step_began = None
            while True:
                token = self._next(sampler.sample(logits), logits, text, options)
                if step_began is None:
                    self.stats.time_to_first_token_s = perf_counter() - began
                else:
                    self.stats.decode_s += perf_counter() - step_began
                yield token
                if self.stats.finish is not None:
                    return
                signal.check()
                step_began = perf_counter()
                logits = self._decode_one(token.id)

    def _next(self, token: int, logits: Array, text: TextStream, options: Options) -> Token:
        """The sampled token as the caller sees it; notes in the stats whether it is the last."""
        stats = self.stats
        stats.generated_tokens += 1
        ended = token in self._manifest.chat.stop_ids
        piece = "" if ended else text.add(token)
        finish: Finish | None = None
        if ended:
            finish = "stop"
        elif text.stopped:
            finish = "stop_string"
        elif stats.generated_tokens == options.max_tokens:
            finish = "length"
        elif self._decoder.position == self._manifest.sizes.context:
            finish = "context"
        if finish is not None:
            piece += text.flush()
            stats.finish = "stop_string" if text.stopped else finish
        return Token(token, piece, float(log_softmax(logits)[token]))

    def _fill(
        self, messages: Sequence[Message], signal: StopSignal, *, answer: bool, given: int = 0
    ) -> tuple[Prompt, Array]:
        """Prefill; returns the prompt and the logits of its last row. `given` tokens of an answer must fit too."""
        pictures = self._look(messages)
        prompt = build(self._manifest, self.tokenizer, messages, pictures, answer=answer, now=self._now)
        stats, count = self.stats, len(prompt.keys)
        stats.prompt_tokens, stats.image_tokens = count, prompt.image_tokens
        check_fits(self._manifest, count, prompt.image_tokens, given)
        spans = self._spans(messages, pictures, prompt)
        # A prompt whose rows see all of it has no rows in common with a longer one.
        start = self._decoder.rewind(prompt.keys if self._manifest.causal else (), spans)
        stats.reused_tokens = start
        encoded: dict[str, Array] = {}
        if self._release_encoder:
            shown = dict.fromkeys(key[0] for key in prompt.keys[start:] if isinstance(key, tuple))
            encoded = {digest: self._picture(digest, signal) for digest in shown}
            self._release()
        for begin, end in self._passes(start, count, spans):
            logits = self._pass(prompt.keys[begin:end], signal, encoded, (begin, end) in spans)
        check_finite(logits)
        return prompt, logits

    @property
    def _chooses(self) -> bool:
        """Whether long prompts run as a whole, to leave tokens out."""
        sparsity = self._manifest.sparsity
        return sparsity is not None and self.sparse is not False and sparsity.leaves_out

    def _spans(self, messages: Sequence[Message], pictures: Sequence[Picture], prompt: Prompt) -> list[Span]:
        """Of the prompt, what is to run as a whole, each layer keeping what matters to it."""
        whole = [(0, len(prompt.keys))]
        if self._chooses and self._manifest.causal:
            whole = asked(self._manifest, self.tokenizer, messages, pictures, prompt, self._now)
        return self._long_enough(whole)

    def _long_enough(self, spans: Sequence[Span]) -> list[Span]:
        """Those among whose tokens layers are to choose."""
        sparsity = self._manifest.sparsity
        if sparsity is None or not self._chooses:
            return []
        least = LEAST_SPARSE if self.sparse else sparsity.least_tokens
        return [(begin, end) for begin, end in spans if end - begin >= least]

    def _passes(self, start: int, count: int, spans: Sequence[Span]) -> Iterator[Span]:
        """The decoder passes of a prompt's rows from `start` on: spans as they are, chunks of what lies between."""
        sizes = self._manifest.sizes
        step = min(sizes.chunk, sizes.max_chunk) if self._manifest.causal else count
        ends, place = dict(spans), start
        while place < count:
            following = min((begin for begin in ends if begin > place), default=count)
            end = ends.get(place, min(place + step, following))
            yield place, end
            place = end

    def _pass(self, keys: Sequence[Key], signal: StopSignal, encoded: Mapping[str, Array], sparse: bool) -> Array:
        """One decoder pass over prompt rows, their pictures encoded first where that is still to do."""
        shown = dict.fromkeys(key[0] for key in keys if isinstance(key, tuple))
        pictures = {digest: encoded[digest] if digest in encoded else self._picture(digest, signal) for digest in shown}
        signal.check()
        began = perf_counter()
        # A picture's rows are looked up as id 0, for an image token's own id may lie outside the table.
        rows = self.backend.embed(np.array([0 if isinstance(key, tuple) else key for key in keys], np.int64))
        if pictures:
            rows = np.array(rows)  # (t, width); a copy, the backend's may be read-only
            for row, key in enumerate(keys):
                if isinstance(key, tuple):
                    rows[row] = pictures[key[0]][key[1]]
        try:
            if not sparse:
                return self._decoder.run(rows, keys)
            logits, kept = self._decoder.run_sparse(rows, keys, signal.is_set)
        finally:
            self.stats.prefill_s += perf_counter() - began
        self.kept.append(Kept(tuple(keys), kept))
        self.stats.sparse_tokens += len(keys)
        self.stats.kept_tokens = np.sum([one.rows.sum(1) for one in self.kept], axis=0).tolist()
        return logits

    def _decode_one(self, token: int) -> Array:
        return self._decoder.run(self.backend.embed(np.array([token], np.int64)), (token,))

    def _score(self, ids: Sequence[int], logits: Array, signal: StopSignal, scores: list[float]) -> None:
        """Append the log-probability of each id; `logits` are those for the first."""
        for count, token in enumerate(ids, start=1):
            check_finite(logits)
            scores.append(float(log_softmax(logits)[token]))
            if count < len(ids):
                signal.check()
                logits = self._decode_one(token)

    def _look(self, messages: Sequence[Message]) -> list[Picture]:
        check_messages(self._manifest, messages)
        if self._encoder is None:
            return []
        self._encoder.start()
        return [self._encoder.look(source, self.stats) for message in messages for source in message.images]

    def _picture(self, digest: str, signal: StopSignal) -> Array:
        assert self._encoder is not None, "only prompts of bundles with an image rule have picture rows"
        return self._encoder.embeddings(digest, signal, self.stats)

    def _release(self) -> None:
        if self._release_encoder and self._encoder is not None:
            self._encoder.release()

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocabulary = self._manifest.sizes.vocab_size
        wrong = [token for token in ids if not 0 <= token < vocabulary]
        if not ids or wrong:
            found = f"id {wrong[0]}" if wrong else "no ids"
            raise PromptError(f"There is nothing to score in {found}; give ids from 0 to {vocabulary - 1}.")

    @contextmanager
    def _claim(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise BusyError(_BUSY)
        try:
            yield
        finally:
            self._busy.release()

    @contextmanager
    def _run(self, signal: StopSignal | None = None) -> Iterator[StopSignal]:
        """One run: the engine to itself, fresh stats, and `stop()` turned into a quiet end."""
        with self._claim():
            signal = self._signal = signal or StopSignal()
            self.stats, self.kept = Stats(kv_bytes=self.backend.kv_bytes), []
            try:
                yield signal
            except Stopped:
                self.stats.finish = "cancelled"
            finally:
                self._release()  # also where a run ended while its pictures were encoded
                self.stats.peak_memory_bytes = peak_memory_bytes()
