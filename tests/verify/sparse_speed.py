"""What choosing a prompt's tokens gains and costs at full size, beside a bundle that keeps all; for quiet cores.

The 3B model with random weights whose attention is planted (`planted`), for random weights look at all tokens alike:
in the mean over its layers as much is kept as asked, and layers differ as SmolLM2's do. The choice is made inside the
program. Both bundles cache in int8.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import bundles
import numpy as np
import torch
from outcome import Cases, Outcome
from passages import windows
from planted import plant

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.zipvl import ZipVL, swap
from handlens_export.recipe import TAU, Recipe
from handlens_runtime.backends.onnx import physical_cores
from handlens_runtime.bench.bundle_runner import BundleRunner, open_bundle
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.manifest import BackendName

SHARE, PROMPT, LONG = 0.4, 2_048, 8_192
CONTEXT = LONG + 256
STEPS, SHORT = 16, 128
"""Tokens decoded at a depth; of a prompt that is read in one chunk by both."""
LENGTHS = (256, 512, 1_024)
"""Of prompts among which the shortest that gains is looked for."""
ALL = 1 - 2**-24
"""A tau at which all is chosen and nothing left out: what the choice alone takes."""


@dataclass
class Times:
    """Seconds of one turn of one bundle."""

    short: float
    """A prompt of SHORT tokens."""
    prompt: float
    shallow: float
    """A step behind a few tokens."""
    deep: float
    """A step behind the prompt."""


def at_length(length: int, rounds: int, backend: BackendName) -> Outcome:
    """Prompt and decode, in turns with the bundle that keeps all; attention's part is what grows with the length."""
    dense, sparse = _opened(backend)
    turns: dict[str, list[Times]] = {"dense": [], "sparse": []}
    for number in range(rounds):
        pairs = [("dense", dense), ("sparse", sparse)]
        for name, runner in pairs if number % 2 == 0 else reversed(pairs):
            turns[name].append(_times(runner, length))
            print(name, length, turns[name][-1], file=sys.stderr, flush=True)
    kept = sparse.kept(length)
    ratios = [_ratios(a, b, length) for a, b in zip(turns["dense"], turns["sparse"], strict=True)]
    values: dict[str, Any] = {
        "tokens": length,
        "kept": round(kept, 4),
        "rounds": rounds,
        "cores": physical_cores(),
        "dense, seconds": [vars(one) for one in turns["dense"]],
        "sparse, seconds": [vars(one) for one in turns["sparse"]],
        **{key: [round(one[key], 2) for one in ratios] for key in ratios[0]},
    }
    found = {key: mean(one[key] for one in ratios) for key in ratios[0]}
    if length == PROMPT:
        held = _resident(sparse) if backend == "onnx" else None
        sizes = sparse.engine.bundle.manifest.sizes
        float16 = 2 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * length
        values |= {"cache resident, MB": None if held is None else round(held / 1e6, 1), "float16, MB": float16 / 1e6}
        bar = "attention's part of a step 2 times faster, the cache at most 25 % of float16's"
        return Outcome(values, bar, found["attention of a step"] >= 2 and held is not None and held <= 0.25 * float16)
    bar = "a whole step 1.3 times faster, attention's part of the prompt 2.6 times"
    return Outcome(values, bar, found["step"] >= 1.3 and found["attention of the prompt"] >= 2.6)


def _times(runner: BundleRunner, length: int) -> Times:
    short = runner.prefill(SHORT)
    shallow = runner.decode(SHORT, STEPS) / STEPS
    prompt = runner.prefill(length)
    return Times(short, prompt, shallow, runner.decode(length, STEPS) / STEPS)


def _ratios(dense: Times, sparse: Times, length: int) -> dict[str, float]:
    """Dense over sparse. The dense bundle's chunk and step behind a few tokens are what takes no attention in both, so
    that what choosing adds counts as attention.
    """
    rest = dense.short * length / SHORT
    return {
        "step": dense.deep / sparse.deep,
        "step's ceiling": dense.deep / dense.shallow,
        "attention of a step": (dense.deep - dense.shallow) / max(sparse.deep - dense.shallow, 1e-9),
        "prompt": dense.prompt / sparse.prompt,
        "prompt's ceiling": dense.prompt / rest,
        "attention of the prompt": (dense.prompt - rest) / max(sparse.prompt - rest, 1e-9),
    }


def choosing(backend: BackendName) -> Outcome:
    """The choice alone, by prompt length; and whether prompts as short gain already."""
    dense, sparse = _opened(backend)
    layers = sparse.engine.bundle.manifest.sizes.layers
    rows: dict[int, dict[str, float]] = {}
    for length in (*LENGTHS, PROMPT):
        seconds: dict[str, list[float]] = {"dense": [], "all": [], "chosen": [], "sparse": []}
        for _ in range(2):
            seconds["dense"].append(dense.prefill(length))
            for name, tau in (("all", 1.0), ("chosen", ALL), ("sparse", None)):
                seconds[name].append(_in_one_pass(sparse, length, tau))
        least = {name: min(values) for name, values in seconds.items()}
        rows[length] = {
            "choosing, ms a layer": round(1000 * (least["chosen"] - least["all"]) / layers, 2),
            "of the prompt, %": round(100 * (least["chosen"] - least["all"]) / least["dense"], 2),
            "prompt, dense over sparse": round(least["dense"] / least["sparse"], 3),
        }
        print(length, rows[length], file=sys.stderr, flush=True)
    gains = [length for length, row in rows.items() if row["prompt, dense over sparse"] >= 1]
    values = {"by length": rows, "shortest that gains": min(gains, default=None), "cores": physical_cores()}
    return Outcome(values, "reported; the longest gains", PROMPT in gains)


def _in_one_pass(runner: BundleRunner, length: int, tau: float | None) -> float:
    """Seconds of a prompt, its tokens chosen by another tau than the bundle's own."""
    backend: Any = runner.engine.backend
    own = backend._sparsity
    backend._sparsity = own if tau is None else own.model_copy(update={"tau": tau})
    try:
        return runner.prefill(length)
    finally:
        backend._sparsity = own


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


def _opened(backend: BackendName) -> tuple[BundleRunner, BundleRunner]:
    """One that keeps all, and one that chooses."""
    dense, _ = open_bundle(str(_bundle(None, backend)), backend, physical_cores(), None)
    sparse, _ = open_bundle(str(_bundle(TAU, backend)), backend, physical_cores(), True)
    return dense, sparse


def _bundle(tau: float | None, backend: BackendName) -> Path:
    recipe = Recipe(tau=tau, backends=(backend,), context=CONTEXT)
    return bundles.exported(_checkpoint(), f"planted-{backend}-{'dense' if tau is None else 'sparse'}", recipe)


def _checkpoint() -> Path:
    folder = bundles.verify_folder() / "planted"
    if not folder.exists():
        half = folder.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        planned = plan(read(bundles.full_checkpoint()), Recipe())
        ids = np.random.default_rng(0).integers(0, planned.config.decoder.vocab_size, CONTEXT)[:PROMPT]  # as bench's
        plant(bundles.full_checkpoint(), half, torch.from_numpy(ids), _shares(planned.config.decoder.layers))
        half.rename(folder)
    return folder


@torch.no_grad()
def _shares(layers: int) -> list[float]:
    """As far apart as SmolLM2's on a novel, moved until their mean is SHARE."""
    planned = plan(read(bundles.smollm2_checkpoint()), Recipe())
    network = float_network(Parameters(planned.checkpoint, planned.family, planned.config), planned.config, PROMPT)
    leaves = swap(network.decoder.layers, planned.config.decoder, ZipVL(TAU))
    tokenizer = bundles.verify_folder() / TOKENIZER
    tokenizer.write_text(planned.checkpoint.tokenizer_json, encoding="utf-8")
    ids = torch.tensor(windows(tokenizer, PROMPT, PROMPT)[0])
    network.decoder(network.decoder.embedding(ids[None]), network.decoder.eager_step(PROMPT, 0, prompt=True))
    found = [0.0 if leaf.kept is None else len(leaf.kept) / PROMPT for leaf in leaves]
    print("SmolLM2 keeps", [round(share, 3) for share in found], mean(found), file=sys.stderr, flush=True)
    odds = np.log(np.clip(np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, len(found)), found), 0.01, 0.99))
    odds -= np.log(1 - np.exp(odds))
    moves = np.linspace(-10, 10, 4_001)
    means = [np.mean(1 / (1 + np.exp(-(odds + move)))) for move in moves]
    move = moves[int(np.argmin(np.abs(np.array(means) - SHARE)))]
    return [float(share) for share in 1 / (1 + np.exp(-(odds + move)))]


CASES: Cases = {
    f"full size, {PROMPT} tokens, {SHARE:.0%} kept: onnx": partial(at_length, PROMPT, 2, "onnx"),
    "full size, what choosing takes: onnx": partial(choosing, "onnx"),
    f"full size, {LONG} tokens: onnx": partial(at_length, LONG, 1, "onnx"),
}
