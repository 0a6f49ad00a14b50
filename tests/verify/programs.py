"""Each program's logits beside the eager network that rounds as its backend rounds; rounding's own cost beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import torch
from logits import Logits, cosine, departure, divergence, eager_logits
from numpy.typing import NDArray
from outcome import Cases, Outcome
from passages import novel

from handlens_export.checkpoint.read import read
from handlens_export.describe import Plan, plan
from handlens_export.network.load import load
from handlens_export.network.network import Network
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import PreparedPrompt, embed, prepare_prompt
from handlens_export.reference import recipe_of, reference
from handlens_runtime import backends
from handlens_runtime.backends.base import Backend, Rows
from handlens_runtime.bundle import TOKENIZER, Bundle
from handlens_runtime.chat import Message
from handlens_runtime.manifest import BackendName
from handlens_runtime.tokenizer import Tokenizer

MIN_COSINE = 0.999
GREEDY = 32
NUDGE = 1e-6
SEEDS = (1, 2, 3)
NOISE_FACTOR = 2.0
BAR = (
    f"cosine >= {MIN_COSINE} at every position, or else as near to the reference as the reference is to itself when "
    f"its input moves by {NUDGE:.0e} (within {NOISE_FACTOR} times: int8 activations amplify the last bit of a sum); "
    f"first {GREEDY} greedy tokens equal, or the first departure within noise"
)
BACKENDS: tuple[BackendName, ...] = ("executorch", "onnx")
LONG_QUESTION = "Say in two sentences what happens here.\n\n"


def smollm2_parity(group: int, backend: BackendName) -> Outcome:
    """A prompt with a page of the novel."""
    message = Message("user", LONG_QUESTION + novel()[:1000])
    return _parity(bundles.smollm2(group), bundles.smollm2_checkpoint(), message, backend)


def nano_parity(backend: BackendName) -> Outcome:
    """A question about a photograph, from its pixels on."""
    message = Message("user", "What is in this picture?", images=(photographs()[0],))
    return _parity(bundles.nano(), bundles.nano_checkpoint(), message, backend)


def _parity(folder: Path, source: Path, message: Message, name: BackendName) -> Outcome:
    bundle = Bundle.load(folder)
    planned = plan(read(source), recipe_of(bundle.manifest))
    network, backend = reference(bundle, planned, name), backends.load(bundle, name)
    prepared = prepare_prompt(bundle.manifest, Tokenizer(bundle.file(TOKENIZER)), [message])
    rows, chunk = _program_rows(backend, prepared), bundle.manifest.sizes.chunk
    expected = eager_logits(network, embed(network, prepared), chunk)

    steps = np.stack([backend.decode(rows[i : i + 1], i) for i in range(len(rows))])
    starts = range(0, len(rows), chunk)
    chunks = [backend.decode(rows[begin : begin + chunk], begin) for begin in starts]
    ends = [min(begin + chunk, len(rows)) - 1 for begin in starts]
    ours = _Departures.of(steps, expected)
    nudged = [_nudged(network, prepared, chunk, seed) for seed in SEEDS]
    noise = [_Departures.of(one, expected) for one in nudged]
    largest = max(float(np.abs(one - expected).max()) for one in nudged)
    worst_chunk = min(cosine(found, expected[end]) for found, end in zip(chunks, ends, strict=True))
    greedy = _greedy(backend, network, chunks[-1], expected[-1], len(rows), largest)

    within = ours.below == 0 or ours.like(noise)
    values = {
        "positions": len(rows),
        "token by token": ours.as_dict(),
        "chunks' last rows, worst cosine": worst_chunk,
        "the reference against itself, its input moved by 1e-6": [one.as_dict() for one in noise],
        f"every position >= {MIN_COSINE}": ours.below == 0 and worst_chunk >= MIN_COSINE,
        "greedy": greedy,
        "distance to the float checkpoint, no verdict": _distance(planned, prepared, steps, chunk),
    }
    passed = within and worst_chunk >= 1 - NOISE_FACTOR * max(1 - MIN_COSINE, *(one.worst for one in noise))
    return Outcome(values, BAR, passed and greedy["equal or within noise"])


@dataclass(frozen=True)
class _Departures:
    """How far two runs' logits are apart over a prompt's positions, as 1 - cosine."""

    median: float
    ninetieth: float
    worst: float
    below: int
    """Positions whose cosine is below MIN_COSINE."""

    @classmethod
    def of(cls, found: Logits, expected: Logits) -> _Departures:
        """Position by position, (t, vocab_size) each."""
        apart = np.array([1 - cosine(*pair) for pair in zip(found, expected, strict=True)])
        median, ninetieth = np.quantile(apart, (0.5, 0.9))
        return cls(float(median), float(ninetieth), float(apart.max()), int((apart > 1 - MIN_COSINE).sum()))

    def like(self, noise: Sequence[_Departures]) -> bool:
        """No further than what rounding makes of next to nothing, at the median as at the worst position."""
        return all(
            getattr(self, name) <= NOISE_FACTOR * max(getattr(one, name) for one in noise)
            for name in ("median", "ninetieth", "worst")
        )

    def as_dict(self) -> dict[str, float]:
        """For the JSON line, as cosines."""
        return {
            "worst cosine": 1 - self.worst,
            "a tenth is below": 1 - self.ninetieth,
            "median": 1 - self.median,
            "positions below the bar": self.below,
        }


def _program_rows(backend: Backend, prepared: PreparedPrompt) -> Rows:
    """The prompt's rows as the program itself makes them, pictures encoded by it too."""
    keys = prepared.prompt.keys
    rows = np.array(backend.embed(np.array([0 if isinstance(key, tuple) else key for key in keys], np.int64)))
    pictures = {key: np.concatenate(backend.encode(cut.pixels)[0]) for key, cut in prepared.tiles.items()}
    for index, key in enumerate(keys):
        if isinstance(key, tuple):
            rows[index] = pictures[key[0]][key[1]]
    return rows


@torch.no_grad()
def _greedy(
    backend: Backend, network: Network, found: Logits, expected: Logits, position: int, noise: float
) -> dict[str, Any]:
    """Both go on by the same tokens until they choose differently; `noise` is the reference's own, in logits."""
    for step in range(GREEDY):
        departs = departure(step, found, expected)
        if departs is not None:
            return {"departs": departs.as_dict(), "noise": noise, "equal or within noise": departs.within(noise)}
        token = np.array([int(expected.argmax())])
        rows = network.decoder.embedding(torch.from_numpy(token)[None])
        expected = network.logits(rows, position + step)[0, -1].numpy()
        found = backend.decode(backend.embed(token), position + step)
    return {"departs": None, "equal or within noise": True}


def _nudged(network: Network, prepared: PreparedPrompt, chunk: int, seed: int) -> Logits:
    """The reference's logits where everything that goes in, pixels included, is moved by about a millionth."""
    chance = np.random.default_rng(seed)
    tiles = {
        key: replace(cut, pixels=(cut.pixels * _factors(chance, cut.pixels)).astype(np.float32))
        for key, cut in prepared.tiles.items()
    }
    rows = embed(network, replace(prepared, tiles=tiles))
    return eager_logits(network, (rows * torch.from_numpy(_factors(chance, rows))).float(), chunk)


def _factors(chance: np.random.Generator, like: Any) -> NDArray[np.float64]:
    factors: NDArray[np.float64] = 1 + NUDGE * chance.standard_normal(like.shape)
    return factors


def _distance(planned: Plan, prepared: PreparedPrompt, found: Logits, chunk: int) -> dict[str, float]:
    """How far the program's logits are from those of the weights as they were given, over the prompt's positions."""
    network = Network(planned.config, planned.context).eval()
    load(network, planned.checkpoint, planned.family)
    expected = eager_logits(network, embed(network, prepared), chunk)
    pairs = list(zip(found, expected, strict=True))
    return {
        "worst cosine": min(cosine(*pair) for pair in pairs),
        "mean KL in nats": float(np.mean([divergence(*pair) for pair in pairs])),
        "same best token": float(np.mean(found.argmax(-1) == expected.argmax(-1))),
    }


CASES: Cases = {
    f"{backend}, SmolLM2 in groups of {group}, like its reference": partial(smollm2_parity, group, backend)
    for group in (32, 64)
    for backend in BACKENDS
}
CASES |= {
    f"{backend}, bluelm-v-nano with a photograph, like its reference": partial(nano_parity, backend)
    for backend in BACKENDS
}
