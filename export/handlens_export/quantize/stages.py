"""The stages that weights go through one at a time, read, transform, round, and the key under which each is kept.

A stage is a layer, or what of a part lies outside its layers. Its key says all that decides its bytes: the contents of
the checkpoint's tensors, the family's config, each matrix's format, and the sources of the code that computes it; not
the backend, the context, the chunk, nor where the checkpoint lies.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from handlens_export.errors import CheckpointError
from handlens_export.network.load import Parameters
from handlens_export.quantize.formats import matrix
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedWeight
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import Stage, StageCache

STAGE = re.compile(r"(vision|decoder)\.layers\.\d+|decoder\.(embedding|head)|[a-z]+")
PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = (
    "checkpoint/*.py",
    "network/families/*.py",
    "network/load.py",
    "quantize/formats.py",
    "quantize/rounding.py",
    "quantize/stages.py",
    "quantize/weight.py",
    "stage_cache/tensor_file.py",
    "transform/*.py",
)
"""Code that a finished stage depends on: a change in any of these makes it anew."""
TOOLS = ("torch", "numpy", "gguf")
"""Packages whose arithmetic it depends on."""


def stages(names: Iterable[str]) -> dict[str, list[str]]:
    """The network's parameter names by stage: `decoder.layers.3`, `decoder.head`, `projector`, …"""
    found: dict[str, list[str]] = {}
    for name in names:
        match = STAGE.match(name)
        assert match is not None
        found.setdefault(match[0], []).append(name)
    return found


def finished(
    parameters: Parameters,
    recipe: Recipe,
    kept: StageCache,
    progress: Callable[[float], None],
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of the stages of `names`, or of all, made where `kept` does not have them.

    Memory-mapped where they are kept, so that one stage at a time is in memory. On one core, which takes
    seconds for the full-size model, most of them hashing (LOG.md). Raises CheckpointError, TargetError.
    """
    with one_thread():
        return _finished(parameters, recipe, kept, progress, stages(parameters.shapes if names is None else names))


def _finished(
    parameters: Parameters,
    recipe: Recipe,
    kept: StageCache,
    progress: Callable[[float], None],
    wanted: dict[str, list[str]],
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    missing: dict[str, tuple[str, list[str]]] = {}
    done, total = 0, sum(_size(parameters, name) for names in wanted.values() for name in names)
    for stage, names in wanted.items():
        key = stage_key(parameters, names, recipe) if kept.working else ""
        found = kept.get(key)
        if found is None:
            missing[stage] = key, names
            continue
        tensors |= found
        done += sum(_size(parameters, name) for name in names)
        progress(done / total)
    for stage, (key, names) in missing.items():
        made: Stage = {}
        for name in names:
            made |= _make(parameters, name, recipe)
            done += _size(parameters, name)
            progress(done / total)
        if key and stage_key(parameters, names, recipe) != key:
            raise changed(parameters)
        tensors |= kept.put(key, made, {"checkpoint": str(parameters.path.resolve()), "stage": stage})
    return tensors


def changed(parameters: Parameters) -> CheckpointError:
    """For a checkpoint that is another than when its stage's key was made."""
    return CheckpointError(
        f"{parameters.path} changed while it was read; export again once nothing writes to it any more."
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """While the block runs, torch has one thread. Where steps are small, threads wait for each other at each, and on a
    busy machine, spinning, for long; and sums come out the same on any number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stage_key(parameters: Parameters, names: Iterable[str], recipe: Recipe) -> str:
    """sha256, hexadecimal, over all that decides a stage's bytes. Reads the tensors' bytes, whole."""
    formats = {}
    for name in names:
        grid = matrix(name, parameters.shapes[name], recipe)
        formats[name] = [parameters.digest(name), *((32, 1) if grid is None else (grid.bits, grid.group))]
    return hashlib.sha256(json.dumps([code_version(), parameters.settings, formats]).encode()).hexdigest()


@cache
def code_version(patterns: tuple[str, ...] = SOURCES) -> str:
    """sha256 over the sources and the packages that a stage is computed with."""
    state = hashlib.sha256()
    for file in sources(patterns):
        content = file.read_bytes()
        state.update(f"{file.relative_to(PACKAGE).as_posix()} {len(content)} ".encode() + content)
    for tool in TOOLS:
        state.update(f"{tool} {metadata.version(tool)} ".encode())
    return state.hexdigest()


def sources(patterns: tuple[str, ...] = SOURCES) -> list[Path]:
    """The files that patterns name."""
    return sorted(file for pattern in patterns for file in PACKAGE.glob(pattern))


def rounded(tensors: dict[str, Tensor], name: str, bits: int, group: int) -> QuantizedWeight:
    """The matrix `name` out of `finished`'s tensors."""
    return QuantizedWeight(
        tensors[f"{name}.values"], tensors[f"{name}.scales"], tensors.get(f"{name}.zeros"), bits, group
    )


def _make(parameters: Parameters, name: str, recipe: Recipe) -> Stage:
    """One parameter: a matrix as integers, scales and zero points, anything else in float32."""
    grid = matrix(name, parameters.shapes[name], recipe)
    if grid is None:
        weight = parameters.read(name)
        refuse_no_numbers(parameters, name, weight)
        return {name: weight}
    on_grid = quantize(parameters.stored(name), grid.bits, grid.group)
    refuse_no_numbers(parameters, name, on_grid.scales)  # of largest weights: no number among them is none here
    return as_tensors(name, on_grid)


def as_tensors(name: str, weight: QuantizedWeight) -> Stage:
    """What `rounded` reads again."""
    made = {f"{name}.values": weight.values, f"{name}.scales": weight.scales}
    return made if weight.zeros is None else {**made, f"{name}.zeros": weight.zeros}


def refuse_no_numbers(parameters: Parameters, name: str, values: Tensor) -> None:
    """Rounded, a value that is no number would pass for an ordinary one. Raises CheckpointError."""
    if not bool(values.isfinite().all()):
        raise CheckpointError(
            f"{parameters.sources[name]} holds values that are not finite numbers, which cannot be rounded; "
            "give a checkpoint whose training did not diverge."
        )


def _size(parameters: Parameters, name: str) -> int:
    size = 1
    for length in parameters.shapes[name]:
        size *= length
    return size
