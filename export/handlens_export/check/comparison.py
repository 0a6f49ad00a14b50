"""One backend's program beside its reference, on one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from handlens_export.check.report import Distance, Finding, Stage
from handlens_export.describe import Plan
from handlens_export.network.network import Network
from handlens_export.prompt_rows import PreparedPrompt, embed
from handlens_runtime.backends.base import Array, Backend, SparseBackend
from handlens_runtime.bundle import Bundle
from handlens_runtime.images.decode import open_image
from handlens_runtime.images.preprocess import prepare
from handlens_runtime.manifest import BackendName

MIN_COSINE = 0.999
"""Least cosine between a program's and the reference's row: kernels sum in another order and round a few apart."""
GREY_LEVEL = 1.0
"""Most difference of a tile's pixel, in grey levels of 255."""
NUDGE = 1e-6
SEEDS = (1000, 2000, 3000)
NOISE_FACTOR = 3.0
"""A program may depart by this many times what the reference departs from itself when its input moves by a millionth.

Int8 activations make a deep network chaotic: a value that lands on the other side of a rounding boundary is amplified
layer by layer (quantize/LOG.md), so that on some prompts no two ways to sum agree to MIN_COSINE.
"""
LEAST_COSINE = 0.9
"""However noisy the reference, a program farther from it than this departs."""
DECODE_STEPS = 8


@dataclass(frozen=True)
class Case:
    """One prompt, as the runtime makes it, and the next token's logits of the float checkpoint."""

    name: str
    picture: Path | None
    prepared: PreparedPrompt
    float_logits: NDArray[np.float32]


@dataclass(frozen=True)
class _Pass:
    """One decoder pass."""

    rows: torch.Tensor
    position: int
    found: Array
    """Logits of the last row, the program's."""
    expected: Array
    """The reference's."""
    prompt: bool
    """Whether each layer kept a part of the rows only."""


class Comparison:
    """One backend on one prompt."""

    def __init__(
        self, bundle: Bundle, planned: Plan, name: BackendName, backend: Backend, network: Network, case: Case
    ) -> None:
        self._name = name
        self._bundle, self._planned, self._backend, self._network, self._case = bundle, planned, backend, network, case
        self._rows = embed(network, case.prepared)
        self.distance: Distance

    def findings(self) -> list[Finding]:
        """All stages of this prompt."""
        found: list[Finding] = []
        if self._case.picture is not None:
            found += self._pictures(self._case.picture)
        found += self._embedding()
        found += self._decoder()
        return found

    def _pictures(self, path: Path) -> Iterator[Finding]:
        """Preprocessing by the bundle's rule against the checkpoint's; encoder and projector on the latter's tiles."""
        ours, theirs = self._bundle.manifest.image, self._planned.image
        assert ours is not None and theirs is not None
        found = prepare(open_image(path, ours.max_pixels, ours.background), ours).pixels
        expected = prepare(open_image(path, theirs.max_pixels, theirs.background), theirs).pixels
        if found.shape == expected.shape:
            grey = np.abs(found - expected).max(axis=(0, 2, 3)) * np.array(theirs.std) / theirs.rescale
            yield self._finding("preprocessing", "grey levels", float(grey.max()))
        else:
            yield self._finding("preprocessing", "grey levels", 255.0)  # other tiles altogether
        worst_features, worst_rows, noise = 1.0, 1.0, 1.0
        for tile in expected:  # one at a time, for the reference's memory
            rows, features = self._backend.encode(tile[None])
            with torch.no_grad():
                reference = self._features(torch.from_numpy(tile[None]))
                # The projector is judged on the program's own features, so that the encoder's fault is not its own.
                projector = self._network.projector
                assert projector is not None
                projected = projector(torch.from_numpy(features)).numpy()
            worst_features = min(worst_features, _cosine(features, reference))
            if worst_features < MIN_COSINE:
                noise = min(noise, *(_cosine(self._features(_nudged(tile[None], seed)), reference) for seed in SEEDS))
            worst_rows = min(worst_rows, _cosine(rows, projected))
        yield self._finding("vision encoder", "cosine", worst_features, noise)
        yield self._finding("projector", "cosine", worst_rows)

    def _embedding(self) -> Iterator[Finding]:
        keys = self._case.prepared.prompt.keys
        text = [index for index, key in enumerate(keys) if not isinstance(key, tuple)]
        ids = np.array([keys[index] for index in text], np.int64)
        rows = self._backend.embed(ids)
        if rows.ndim == 2:  # a text program embeds inside: prefill judges it
            yield self._finding("embedding", "cosine", _cosine(rows, self._rows[0, text].numpy()))

    def _decoder(self) -> Iterator[Finding]:
        """Prefill by the engine's passes, then steps of one token along the reference's own answer."""
        sizes, rows = self._bundle.manifest.sizes, self._rows
        count = rows.shape[1]
        chunk = sizes.chunk if self._bundle.manifest.causal else count
        sparsity, passes = self._bundle.manifest.sparsity, []
        if sparsity is not None and sparsity.leaves_out and count >= sparsity.least_tokens:  # as the engine runs it
            passes.append(self._both(rows, self._ids(0, count), 0, prompt=True))
        for begin in range(0, 0 if passes else count, chunk):
            end = min(begin + chunk, count)
            passes.append(self._both(rows[:, begin:end], self._ids(begin, end), begin))
        prefills = len(passes)
        self.distance = self._distance(passes[-1])
        for position in range(count, min(count + DECODE_STEPS, sizes.context)):
            token = np.array([int(passes[-1].expected.argmax())], np.int64)
            with torch.no_grad():
                row = self._network.decoder.embedding(torch.from_numpy(token)[None])
            passes.append(self._both(row, token, position))
        cosines = [_cosine(one.found, one.expected) for one in passes]
        noise = self._noise(passes) if min(cosines) < MIN_COSINE else [1.0] * len(passes)
        yield self._finding("prefill", "cosine", min(cosines[:prefills]), min(noise[:prefills]))
        if prefills < len(passes):
            yield self._finding("decode", "cosine", min(cosines[prefills:]), min(noise[prefills:]))

    def _noise(self, passes: Sequence[_Pass]) -> list[float]:
        """Each pass's cosine between the reference and itself on nudged rows: what rounding alone makes of nothing."""
        worst = [1.0] * len(passes)
        for seed in SEEDS:
            for index, one in enumerate(passes):
                with torch.no_grad():
                    nudged = _nudged(one.rows.numpy(), seed + index)
                    moved = self._network.logits(nudged, one.position, one.prompt)[0, -1].numpy()
                worst[index] = min(worst[index], _cosine(moved, one.expected))
        return worst

    def _features(self, tiles: torch.Tensor) -> NDArray[np.float32]:
        with torch.no_grad():
            features: NDArray[np.float32] = self._network.encode(tiles)[1].numpy()
        return features

    def _ids(self, begin: int, end: int) -> NDArray[np.int64]:
        keys = self._case.prepared.prompt.keys[begin:end]
        return np.array([0 if isinstance(key, tuple) else key for key in keys], np.int64)

    def _both(self, rows: torch.Tensor, ids: NDArray[np.int64], position: int, prompt: bool = False) -> _Pass:
        """One decoder pass of the program and of the reference, on the same rows; of a prompt, each keeps its part."""
        with torch.no_grad():
            expected = self._network.logits(rows, position, prompt)[0, -1].numpy()
        inside = self._backend.embed(ids[:1]).ndim == 1
        given = ids if inside else rows[0].numpy()
        if prompt:
            found = cast(SparseBackend, self._backend).decode_prompt(given, position)[0]
        else:
            found = self._backend.decode(given, position)
        return _Pass(rows, position, found, expected, prompt)

    def _distance(self, last: _Pass) -> Distance:
        found, expected = last.found, self._case.float_logits
        p, q = (torch.from_numpy(np.asarray(x)).double().log_softmax(-1) for x in (expected, found))
        return Distance(
            backend=self._name,
            prompt=self._case.name,
            cosine=_cosine(found, expected),
            kl=float((p.exp() * (p - q)).sum()),
            same_token=int(found.argmax()) == int(expected.argmax()),
            sparse=last.prompt,
        )

    def _finding(
        self, stage: Stage, measure: Literal["cosine", "grey levels"], value: float, noise: float = 1.0
    ) -> Finding:
        noisy = max(LEAST_COSINE, 1 - NOISE_FACTOR * (1 - noise))
        limit = min(MIN_COSINE, noisy) if measure == "cosine" else GREY_LEVEL
        passed = value >= limit if measure == "cosine" else value <= limit
        return Finding(self._name, stage, self._case.name, measure, value, limit, passed)


def _nudged(values: NDArray[np.float32], seed: int) -> torch.Tensor:
    """The same values, each moved by about a millionth."""
    factors = 1 + NUDGE * np.random.default_rng(seed).standard_normal(values.shape)
    return torch.from_numpy((values * factors).astype(np.float32))


def _cosine(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The least cosine between rows (…, width); 0 where the program's are not numbers or have another shape."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return 0.0
    a = np.asarray(found, np.float64).reshape(-1, found.shape[-1])
    b = np.asarray(expected, np.float64).reshape(-1, found.shape[-1])
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).max(axis=1) == 0) & (np.abs(b).max(axis=1) == 0)
    return float(np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30)).min())
