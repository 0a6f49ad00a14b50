"""What choosing a prompt's tokens gains and costs at full size, beside a bundle that keeps all: ONNX Runtime alone. For
quiet cores.

The 3B model with random weights whose attention is planted (`planted`), for random weights look at all tokens alike: in
the mean over its layers SHARE of PROMPT random tokens is kept, and layers differ as SmolLM2's do on a novel. That share
is what is to be shown, not what models at hand keep: they are named beside it. Weights are rounded after planting, so
tau is moved until the program keeps SHARE. The choice is made inside the program; both bundles cache in int8.

Attention's part of a step is what it takes longer than one of the dense bundle behind an empty cache, taken in turns.
Of a prompt it is the time of the attention operators, and where tokens are chosen that of the branches in which they
stand, which choose, gather, rotate and scatter too, by ONNX Runtime's profiler: of a step's small operators it would
take longer to write down than they take to run.
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
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import bundles
import numpy as np
import onnxruntime as ort
import reading
import torch
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
STEPS, TURNS, WARM = 16, 10, 128
"""Tokens decoded behind a prompt, and how many times; tokens of a prompt that is not timed, before all else."""
LENGTHS, SHORT_TAUS = (160, 256, 512, 1_024), (TAU, 0.999)
"""Of prompts among which the shortest that gains is looked for, at shares like the planted one and models at hand's."""
MADE_OF = ("tests/verify/planted.py", "tests/verify/sparse_speed.py", "export/handlens_export/network/zipvl.py")
MOVES = np.linspace(-10, 10, 4_001)


@dataclass(frozen=True)
class Operators:
    """Seconds of some passes' operators."""

    attention: float
    """Attention's part."""
    choosing: float
    """What of it is not attention's operators."""


class Profiled:
    """A bundle whose decoder writes down what each of its operators takes."""

    def __init__(self, path: Path, sparse: bool | None, folder: Path) -> None:
        class Options(ort.SessionOptions):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling = True
                self.profile_file_prefix = str(folder / path.name)

        with patch.object(ort, "SessionOptions", Options):
            self.runner = _runner(path, sparse)
        backend: Any = self.runner.engine.backend
        self._session, self._passes = backend._decoder, 1  # that of loading
        run = self._session.run_with_iobinding

        def counted(binding: Any) -> None:
            self._passes += 1
            run(binding)

        self._session.run_with_iobinding = counted
        self._sections: dict[str, tuple[int, int]] = {}

    def run(self, name: str, passes: Callable[[], object]) -> None:
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
            name: Operators(max(own, branches), max(0.0, branches - own))
            for name, (begin, end) in self._sections.items()
            for own, branches in [[float(sums[kind][begin:end].sum()) for kind in ("GroupQueryAttention", "If")]]
        }


def at_length(length: int, rounds: int) -> Outcome:
    """A prompt and steps behind it, in turns with the bundle that keeps all. Prompts are timed while they are profiled,
    of which so long ones take no notice, and in so many rounds more; steps after the profile's end.
    """
    walls: dict[tuple[str, str], list[float]] = {}

    def timed(name: str, part: str) -> None:
        runner = sides[name].runner
        if part == "prompt":
            taken = runner.prefill(length)
        else:
            taken = runner.decode(0 if part == EMPTY else length, STEPS) / STEPS
        walls.setdefault((name, part), []).append(taken)
        print(name, length, part, f"{taken:.4f} s", file=sys.stderr, flush=True)

    with TemporaryDirectory() as folder:
        opened = {"dense": (_bundle(None), None), "sparse": (_bundle(TAU), True)}
        sides = {name: Profiled(*bundle, Path(folder)) for name, bundle in opened.items()}
        sparse = sides["sparse"].runner
        for side in sides.values():
            side.runner.prefill(WARM)
        tau = _tau(sparse)
        for name, side in sides.items():
            side.run("prompt", partial(timed, name, "prompt"))
        theirs, ours = (side.operators()["prompt"] for side in sides.values())
    for number in range(rounds):
        for name in sides if number % 2 else reversed(sides):
            timed(name, "prompt")
    for number in range(TURNS):
        for name in sides if number % 2 else reversed(sides):
            timed(name, "step")
        timed("dense", EMPTY)
    kept, held, sizes = sparse.kept(length), _resident(sparse), sparse.engine.bundle.manifest.sizes
    seconds = {key: median(taken) for key, taken in walls.items()}
    prompt, step, empty = seconds["dense", "prompt"], seconds["dense", "step"], seconds["dense", EMPTY]
    ratios = {
        "prompt": prompt / seconds["sparse", "prompt"],
        "prompt's ceiling": prompt / (prompt - theirs.attention),
        "attention of the prompt": theirs.attention / ours.attention,
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
        "choosing, ms a layer": round(1000 * ours.choosing / sizes.layers, 2),
    }
    if length == LONG:
        bar = "a whole step 1.3 times faster, attention's part of the prompt 2.6 times"
        return Outcome(values, bar, ratios["step"] >= 1.3 and ratios["attention of the prompt"] >= 2.6)
    float16 = 2 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * (length + STEPS)
    values |= {"cache resident, MB": round(held / 1e6, 1), "float16, MB": round(float16 / 1e6, 1)}
    bar = f"attention's part of a step 2 times faster, the cache at most 25 % of float16's, {SHARE:.0%} kept"
    met = ratios["attention of the step"] >= 2 and held <= 0.25 * float16 and abs(kept - SHARE) <= NEAR
    return Outcome(values, bar, met)


def _tau(runner: BundleRunner) -> float:
    """At which SHARE of a prompt is kept; the runner's from now on."""
    low, tau, high = 0.9, FIRST_TAU, 1.0
    while True:
        _set_tau(runner, tau)
        runner.prefill(PROMPT)
        kept = runner.kept(PROMPT)
        print(f"tau {tau:.4f} keeps {kept:.4f}", file=sys.stderr, flush=True)
        if abs(kept - SHARE) <= NEAR / 2:
            return tau
        low, high = (tau, high) if kept < SHARE else (low, tau)
        tau = (low + high) / 2


def _set_tau(runner: BundleRunner, tau: float) -> None:
    backend: Any = runner.engine.backend
    backend._sparsity = backend._sparsity.model_copy(update={"tau": tau})


def shortest() -> Outcome:
    """From which length on a prompt is faster already for what is left out of it, by tau; what choosing takes."""
    dense, sparse = _runner(_bundle(None), None), _runner(_bundle(TAU), True)
    sparse._least = LEAST_SPARSE
    for runner in (dense, sparse):
        runner.prefill(WARM)
    found: dict[float, dict[int, dict[str, Any]]] = {tau: {} for tau in SHORT_TAUS}
    for tau, length in product(SHORT_TAUS, LENGTHS):
        _set_tau(sparse, tau)
        taken = [runner.prefill(length) for runner in (dense, sparse, sparse, dense)]
        ratios = [round(taken[0] / taken[1], 3), round(taken[3] / taken[2], 3)]
        found[tau][length] = {"kept": round(sparse.kept(length), 4), "dense over sparse": ratios}
        print(tau, length, taken, found[tau][length], file=sys.stderr, flush=True)
    layers = sparse.engine.bundle.manifest.sizes.layers
    del dense, sparse, runner
    with TemporaryDirectory() as folder:
        profiled = Profiled(_bundle(TAU), True, Path(folder))
        profiled.runner._least = LEAST_SPARSE
        walls: dict[int, float] = {}
        profiled.runner.prefill(WARM)
        for length in LENGTHS:
            profiled.run(str(length), lambda length=length: walls.update({length: profiled.runner.prefill(length)}))
        operators = profiled.operators()
    values: dict[str, Any] = {}
    for tau, rows in found.items():
        slower = [length for length, row in rows.items() if mean(row["dense over sparse"]) < 1]
        gains = min((length for length in LENGTHS if length > max(slower, default=0)), default=None)
        values[f"tau {tau:g}"] = {"by length": rows, "gains from": gains}
    values["choosing"] = {
        length: {
            "ms a layer": round(1000 * operators[str(length)].choosing / layers, 2),
            "% of the prompt": round(100 * operators[str(length)].choosing / walls[length], 2),
        }
        for length in LENGTHS
    }
    return Outcome(values, "reported", True)


def _runner(path: Path, sparse: bool | None) -> BundleRunner:
    return open_bundle(str(path), "onnx", physical_cores(), sparse)[0]


def _resident(runner: BundleRunner) -> int:
    """Bytes of the cache that are in memory."""
    backend: Any = runner.engine.backend
    libc, total = ctypes.CDLL(None, use_errno=True), 0
    for buffer in backend._cache.values():
        address, size = buffer.data_ptr(), buffer.tensor_size_in_bytes()
        begin = address // mmap.PAGESIZE * mmap.PAGESIZE
        count = -(-(address + size - begin) // mmap.PAGESIZE)
        pages = (ctypes.c_ubyte * count)()
        failed = libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(count * mmap.PAGESIZE), pages)
        assert not failed, os.strerror(ctypes.get_errno())
        total += sum(page & 1 for page in pages) * mmap.PAGESIZE
    return total


def _bundle(tau: float | None) -> Path:
    name = f"planted-{'dense' if tau is None else 'sparse'}-{_state()}"
    return bundles.exported(_checkpoint(), name, Recipe(tau=tau, backends=("onnx",), context=CONTEXT))


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
