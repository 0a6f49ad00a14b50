"""What choosing a prompt's tokens gains and costs at full size, beside the same program told to keep all: ONNX Runtime
alone. For quiet cores.

The 3B model with random weights whose attention is planted (`planted`), for random weights look at all tokens alike: in
the mean over its layers SHARE of PROMPT random tokens is kept, and layers differ as SmolLM2's do on a novel. That share
is what is to be shown, not what models at hand keep: they are named beside it. Weights are rounded after planting, so
tau is moved until the program keeps SHARE. The choice is made inside the program; the cache is int8.

Both sides are passes of one loaded bundle, a tau of 1 keeping all, as `--dense` does, with its memory brought into huge
pages: of the same bundle loaded twice into a process, one took half as long again a step, whichever came first. The
cache alone stays in small ones, as phones have them.

Attention's part of a step is what it takes longer than one behind an empty cache, taken in turns. What a step reads
depends on how many rows the cache has, not on what they hold: so they are counted, not computed again. Of a prompt it
is the time of the attention operators, and where tokens are chosen of the branches in which they stand, which choose,
gather, rotate and scatter too, by ONNX Runtime's profiler: of a step's small operators it would take longer to write
down than they take to run.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import sys
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import bundles
import numpy as np
import onnxruntime as ort
import reading
import torch
from numpy.typing import NDArray
from outcome import Cases, Outcome
from passages import windows
from planted import plant
from torch import Tensor

from handlens_export.checkpoint.read import read
from handlens_export.describe import Plan, describe, plan
from handlens_export.measuring import tokenizer_of
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.network.zipvl import ZipVL, swap
from handlens_export.prompt_rows import embed, prepare_prompt
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import TAU, Recipe
from handlens_runtime.backends.kept_rows import KeptRows
from handlens_runtime.backends.onnx import physical_cores
from handlens_runtime.bench.bundle_runner import BundleRunner, open_bundle
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.chat import Message
from handlens_runtime.engine import LEAST_SPARSE
from handlens_runtime.evaluation import read_set
from handlens_runtime.golden.asking import DAY

SHARE, PROMPT, LONG = 0.4, 2_048, 8_192
FIRST_TAU, NEAR = 0.978, 0.03
"""Where tau is tried first, and how far from SHARE what the program keeps may lie."""
CONTEXT = LONG + 256
EMPTY = "step behind an empty cache"
STEPS, TURNS, WARM = 16, 12, 128
"""Tokens decoded behind a prompt, and how many times; tokens of a prompt that is not timed, before all else."""
LENGTHS, SHORT_TAUS = (160, 256, 512, 1_024), (TAU, 0.999)
"""Of prompts among which the shortest that gains is looked for, at shares like the planted one and models at hand's."""
MADE_OF = ("tests/verify/planted.py", "tests/verify/sparse_speed.py", "export/handlens_export/network/zipvl.py")
HUGE, MADV_HUGEPAGE, MADV_COLLAPSE = 1 << 21, 14, 25
MOVES = np.linspace(-10, 10, 4_001)


@dataclass(frozen=True)
class Operators:
    """Seconds of some passes' operators."""

    branches: float
    """All of attention's part."""
    attention: float
    """Attention's own operators, which stand in the branches."""


class Sides:
    """A bundle that chooses and that keeps all, whose decoder writes down what each of its operators takes."""

    def __init__(self, folder: Path) -> None:
        class Options(ort.SessionOptions):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling = True
                self.profile_file_prefix = str(folder / "passes")

        with patch.object(ort, "SessionOptions", Options):
            self.engine = open_bundle(str(_bundle()), "onnx", physical_cores(), True)[0].engine
        self.dense, self.sparse = BundleRunner(self.engine), BundleRunner(self.engine, sparse=True)
        self.backend: Any = self.engine.backend
        _into_huge_pages({buffer.data_ptr() for buffer in self.backend._cache.values()})
        self._session, self._passes = self.backend._decoder, 1  # that of loading
        run = self._session.run_with_iobinding

        def counted(*given: Any) -> None:
            self._passes += 1
            run(*given)

        self._session.run_with_iobinding = counted
        self._sections: dict[str, tuple[int, int]] = {}

    def choose_by(self, tau: float) -> None:
        """From now on."""
        self.backend._sparsity = self.backend._sparsity.model_copy(update={"tau": tau})

    def step(self, depth: int, lengths: NDArray[np.int32] | None) -> float:
        """Seconds of a step behind `depth` tokens, of which layers hold as many as `lengths` says, or all."""
        self.backend._kept = KeptRows(self.engine.bundle.manifest.sizes.layers)
        if lengths is not None:
            self.backend._kept._after.append((depth, lengths))
        rows = self.backend.embed(np.zeros(1, np.int64))
        began = perf_counter()
        for position in range(depth, depth + STEPS):
            self.backend.decode(rows, position)
        return (perf_counter() - began) / STEPS

    def profiled(self, name: str, passes: Callable[[], object]) -> None:
        """Call what makes passes, whose operators are to be found by `name`."""
        before = self._passes
        passes()
        self._sections[name] = before, self._passes

    def operators(self) -> dict[str, Operators]:
        """Of all that was run; ends the profile."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        begins = sorted(event["ts"] for event in events if event["name"] == "model_run")
        assert len(begins) == self._passes, f"{len(begins)} passes were profiled of {self._passes}"
        sums = {"GroupQueryAttention": np.zeros(len(begins)), "If": np.zeros(len(begins))}
        for event in events:
            kind = event.get("args", {}).get("op_name") if event["name"].endswith("_kernel_time") else None
            if kind in sums:
                sums[kind][bisect_right(begins, event["ts"]) - 1] += event["dur"] / 1e6
        return {
            name: Operators(*(float(sums[kind][begin:end].sum()) for kind in ("If", "GroupQueryAttention")))
            for name, (begin, end) in self._sections.items()
        }


def at_length(length: int, rounds: int) -> Outcome:
    """A prompt, and steps behind it and behind nothing, in turns with keeping all. The first prompt is timed while it
    is profiled, of which so long a one takes no notice, others in as many `rounds` more; steps after the profile's end.
    """
    sides = ("sparse", "dense")
    walls: dict[tuple[str, str], list[float]] = {}

    def timed(name: str, part: str, call: Callable[[], float]) -> None:
        walls.setdefault((name, part), []).append(call())
        print(name, length, part, f"{walls[name, part][-1]:.4f} s", file=sys.stderr, flush=True)

    with TemporaryDirectory() as folder:
        both = Sides(Path(folder))
        both.sparse.prefill(WARM)
        tau = _tau(both) if length == PROMPT else FIRST_TAU
        both.choose_by(tau)
        both.profiled("sparse", partial(timed, "sparse", "prompt", partial(both.sparse.prefill, length)))
        held, chosen = _resident(both), both.backend._kept.at(length)
        both.profiled("dense", partial(timed, "dense", "prompt", partial(both.dense.prefill, length)))
        operators = both.operators()
    for number in range(rounds):
        for name in sides if number % 2 else sides[::-1]:
            timed(name, "prompt", partial(getattr(both, name).prefill, length))
    for number in range(TURNS):
        for name in sides if number % 2 else sides[::-1]:
            timed(name, "step", partial(both.step, length, chosen if name == "sparse" else None))
        timed("dense", EMPTY, partial(both.step, 0, None))
    kept, sizes = both.sparse.kept(length), both.engine.bundle.manifest.sizes
    theirs, ours = operators["dense"], operators["sparse"]
    seconds = {key: mean(taken) for key, taken in walls.items()}  # of pairs in turns: what drifts is in all
    prompt, step, empty = seconds["dense", "prompt"], seconds["dense", "step"], seconds["dense", EMPTY]
    ratios = {
        "prompt": prompt / seconds["sparse", "prompt"],
        "prompt's ceiling": prompt / (prompt - theirs.branches),
        "attention of the prompt": theirs.branches / ours.branches,
        "step": step / seconds["sparse", "step"],
        "step's ceiling": step / empty,
        "attention of the step": (step - empty) / (seconds["sparse", "step"] - empty),
    }
    values = {
        "tokens": length,
        "tau": round(tau, 4),
        "kept": round(kept, 4),
        "kept by models at hand": _kept_by_models(),
        "cores": physical_cores(),
        "seconds": {f"{part}, {name}": [round(one, 4) for one in taken] for (name, part), taken in walls.items()},
        "dense over sparse": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "choosing, ms a layer": round(1000 * (ours.branches - ours.attention) / sizes.layers, 2),
    }
    if length == LONG:
        bar = "a whole step 1.3 times faster, attention's part of the prompt 2.6 times"
        return Outcome(values, bar, ratios["step"] >= 1.3 and ratios["attention of the prompt"] >= 2.6)
    float16 = 2 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * (length + STEPS)
    values |= {"cache resident, MB": round(held / 1e6, 1), "float16, MB": round(float16 / 1e6, 1)}
    bar = f"attention's part of a step 2 times faster, the cache at most 25 % of float16's, {SHARE:.0%} kept"
    met = ratios["attention of the step"] >= 2 and held <= 0.25 * float16 and abs(kept - SHARE) <= NEAR
    return Outcome(values, bar, met)


def _tau(both: Sides) -> float:
    """At which SHARE of a prompt is kept; what the bundle chooses by from now on."""
    low, tau, high = 0.9, FIRST_TAU, 1.0
    while True:
        both.choose_by(tau)
        both.sparse.prefill(PROMPT)
        kept = both.sparse.kept(PROMPT)
        print(f"tau {tau:.4f} keeps {kept:.4f}", file=sys.stderr, flush=True)
        if abs(kept - SHARE) <= NEAR / 2:
            return tau
        low, high = (tau, high) if kept < SHARE else (low, tau)
        tau = (low + high) / 2


def shortest() -> Outcome:
    """From which length on a prompt is faster already for what is left out of it, by tau; what choosing takes."""
    found: dict[float, dict[int, dict[str, Any]]] = {tau: {} for tau in SHORT_TAUS}
    with TemporaryDirectory() as folder:
        both = Sides(Path(folder))
        both.sparse._least = LEAST_SPARSE
        both.dense.prefill(WARM)
        walls = {}
        for length in LENGTHS:
            both.profiled(str(length), lambda length=length: walls.update({length: both.sparse.prefill(length)}))
        operators = both.operators()
    for tau, length in product(SHORT_TAUS, LENGTHS):
        both.choose_by(tau)
        taken = [runner.prefill(length) for runner in (both.dense, both.sparse, both.sparse, both.dense)]
        ratios = [round(taken[0] / taken[1], 3), round(taken[3] / taken[2], 3)]
        found[tau][length] = {"kept": round(both.sparse.kept(length), 4), "dense over sparse": ratios}
        print(tau, length, taken, found[tau][length], file=sys.stderr, flush=True)
    values: dict[str, Any] = {}
    for tau, rows in found.items():
        slower = [length for length, row in rows.items() if mean(row["dense over sparse"]) < 1]
        gains = min((length for length in LENGTHS if length > max(slower, default=0)), default=None)
        values[f"tau {tau:g}"] = {"by length": rows, "gains from": gains}
    layers = both.engine.bundle.manifest.sizes.layers
    choosing = {length: operators[str(length)].branches - operators[str(length)].attention for length in LENGTHS}
    values["choosing"] = {
        length: {
            "ms a layer": round(1000 * choosing[length] / layers, 2),
            "% of the prompt": round(100 * choosing[length] / walls[length], 2),
        }
        for length in LENGTHS
    }
    return Outcome(values, "reported", True)


def _into_huge_pages(others: set[int]) -> None:
    """What this process has allocated, the memory at `others` apart, where Linux can (6.1 and later)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, inode, *name = line.split()
        begin, end = (int(place, 16) for place in span.split("-"))
        begin, end = -(-begin // HUGE) * HUGE, end // HUGE * HUGE
        ours = access == "rw-p" and inode == "0" and name in ([], ["[heap]"])
        if ours and begin < end and not any(begin - HUGE < other < end for other in others):
            for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)


def _resident(both: Sides) -> int:
    """Bytes of the cache that are in memory."""
    libc, total = ctypes.CDLL(None, use_errno=True), 0
    for buffer in both.backend._cache.values():
        address, size = buffer.data_ptr(), buffer.tensor_size_in_bytes()
        begin = address // mmap.PAGESIZE * mmap.PAGESIZE
        count = -(-(address + size - begin) // mmap.PAGESIZE)
        pages = (ctypes.c_ubyte * count)()
        failed = libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(count * mmap.PAGESIZE), pages)
        assert not failed, os.strerror(ctypes.get_errno())
        total += sum(page & 1 for page in pages) * mmap.PAGESIZE
    return total


def _bundle() -> Path:
    recipe = Recipe(tau=TAU, backends=("onnx",), context=CONTEXT)
    return bundles.exported(_checkpoint(), f"planted-sparse-{_state()}", recipe)


def _state() -> str:
    return bundles.digest([bundles.ROOT / file for file in MADE_OF])


def _checkpoint() -> Path:
    folder = bundles.verify_folder() / f"planted-{_state()}"
    if not folder.exists():
        for old in folder.parent.glob("planted-*"):
            shutil.rmtree(old)
        half = folder.with_suffix(".half")
        planned = plan(read(bundles.full_checkpoint()), Recipe())
        ids = np.random.default_rng(0).integers(0, planned.config.decoder.vocab_size, CONTEXT)[:PROMPT]  # as bench's
        plant(bundles.full_checkpoint(), half, torch.from_numpy(ids), _shares(planned.config.decoder.layers))
        half.rename(folder)
    return folder


def _shares(layers: int) -> list[float]:
    """As far apart as SmolLM2's, moved until their mean is SHARE."""
    found = _smollm2_keeps()
    between = np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, len(found)), found).clip(0.01, 0.99)
    odds = np.log(between / (1 - between))
    tried = [1 / (1 + np.exp(-(odds + move))) for move in MOVES]
    return [float(share) for share in min(tried, key=lambda shares: abs(float(shares.mean()) - SHARE))]


def _kept_by_models() -> dict[str, float]:
    """Shares at the same tau, mean of the layers."""
    return {
        f"SmolLM2, {PROMPT} tokens of a novel": round(mean(_smollm2_keeps()), 3),
        "the shipped reader, a page": round(mean(_reader_keeps()), 3),
    }


@cache
def _smollm2_keeps() -> list[float]:
    planned = plan(read(bundles.smollm2_checkpoint()), Recipe())
    with TemporaryDirectory() as folder:
        tokenizer = Path(folder) / TOKENIZER
        tokenizer.write_text(planned.checkpoint.tokenizer_json, encoding="utf-8")
        ids = torch.tensor(windows(tokenizer, PROMPT, PROMPT)[0])
    network = float_network(_parameters(planned), planned.config, PROMPT)
    return _kept(network, network.decoder.embedding(ids[None]))


@cache
def _reader_keeps() -> list[float]:
    planned = plan(read(reading.CHECKPOINT), Recipe())
    parameters = _parameters(planned)
    manifest = describe(planned, Recipe(), weigh(parameters.shapes, Recipe()))
    question = read_set(reading.CHECKPOINT / "gate" / "questions.jsonl").questions[0]
    assert question.image is not None
    said = [Message("user", question.question, images=(question.image,))]
    network = float_network(parameters, planned.config, planned.context)
    return _kept(network, embed(network, prepare_prompt(manifest, tokenizer_of(planned), said, now=lambda: DAY)))


def _parameters(planned: Plan) -> Parameters:
    return Parameters(planned.checkpoint, planned.family, planned.config)


@torch.no_grad()
def _kept(network: Network, rows: Tensor) -> list[float]:
    leaves = swap(network.decoder.layers, network.config.decoder, ZipVL(TAU))
    t = rows.shape[1]
    network.decoder(rows, network.decoder.eager_step(t, 0, prompt=True))
    shares = [0.0 if leaf.kept is None else len(leaf.kept) / t for leaf in leaves]
    print(f"{network.config.family} keeps {[round(share, 3) for share in shares]}", file=sys.stderr, flush=True)
    return shares


CASES: Cases = {
    f"full size, {PROMPT} tokens, {SHARE:.0%} kept": partial(at_length, PROMPT, 1),
    "full size, the shortest prompt that gains": shortest,
    f"full size, {LONG} tokens": partial(at_length, LONG, 0),
}
