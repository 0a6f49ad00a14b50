"""What the export itself takes on the workstation: memory at its peak, and time. README.md has the sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from handlens_export.forecast.calibrated import added_bytes, added_seconds
from handlens_export.network.config import NetworkConfig
from handlens_export.quantize.formats import Shape, part_of
from handlens_export.recipe import Recipe
from handlens_runtime.manifest import BackendName, MemoryEstimate

LIBRARIES = 540_000_000
"""Python, torch and the exporters, before any weight."""
FORKED = 380_000_000
"""What a job that lowers a part has of its own beside weights: libraries once it writes to their pages."""
LAYER_GRAPH = 15_000_000
"""Of ExecuTorch's passes, per layer."""
ROUNDED_PER_SECOND = 58e6
"""Weights read and rounded a second on two cores."""
LOWERING: dict[tuple[BackendName, str], tuple[float, float]] = {
    ("executorch", "decoder"): (75, 3.0),
    ("executorch", "vision"): (40, 0.6),
    ("onnx", "decoder"): (5, 1.2),
    ("onnx", "vision"): (5, 0.6),
    ("onnx", "embedding"): (2, 0.0),
}
"""Seconds of one core for one part: for its first layers, and for each. Passes over graphs, not over weights."""
CALIBRATED_PER_SECOND = 13e6
"""Weights of the decoder, a second of one core."""
RECORDED_PER_SECOND = 30e6
"""Weights of the decoder, a second of two cores and a backend."""
BASE_SECONDS = 4.0


@dataclass(frozen=True)
class Host:
    """Of the workstation, for one export."""

    peak_bytes: int
    """Of all processes, file-backed pages of what they write and load included."""
    seconds: float
    calibrated_seconds: float
    """Of these, a method that looks at activations, on a full calibration set."""
    jobs: int
    """Parts that are lowered at once."""


def estimate_host(
    config: NetworkConfig,
    recipe: Recipe,
    shapes: Mapping[str, Shape],
    files: Mapping[str, Mapping[str, int]],
    memory: MemoryEstimate,
    context: int,
    jobs: int,
) -> Host:
    """Peak and time of `export` with this recipe; `files` as `forecast.files.bundle_files` gives them."""
    seconds, calibrated = estimate_seconds(config, recipe, shapes, context, jobs)
    lowering = sorted((_part_bytes(*name, config, files) for name in _names(config, recipe)), reverse=True)
    peak = max(sum(lowering[:jobs]), *(_loaded(backend, files, memory) for backend in recipe.backends))
    peak = max(peak, added_bytes(config.decoder, recipe, shapes, context))
    return Host(LIBRARIES + peak, seconds, calibrated, jobs)


def estimate_seconds(
    config: NetworkConfig, recipe: Recipe, shapes: Mapping[str, Shape], context: int, jobs: int
) -> tuple[float, float]:
    """Of an export, and of these what a method that looks at activations takes."""
    decoder = sum(prod(shape) for name, shape in shapes.items() if part_of(name) == "decoder")
    told = [part_seconds(*name, decoder, recipe.kv == "int8", config) for name in _names(config, recipe)]
    seconds = BASE_SECONDS + sum(map(prod, shapes.values())) / ROUNDED_PER_SECOND
    # What tau leaves out is measured as long again as a backend's answers are recorded.
    recorded = len(recipe.backends) + recipe.leaves_out
    seconds += _together(sorted(told, reverse=True), jobs) + recorded * decoder / RECORDED_PER_SECOND
    calibrated = added_seconds(config.decoder, recipe, shapes, context)
    return seconds + calibrated, calibrated


def part_seconds(backend: BackendName, part: str, parameters: int, int8_cache: bool, config: NetworkConfig) -> float:
    """Of one core, for lowering one part; `parameters`: of the decoder."""
    first, each = LOWERING[backend, part]
    layers = config.decoder.layers if part == "decoder" else config.vision.layers if config.vision else 0
    return first + each * layers + calibrating_seconds(backend, part, parameters, int8_cache)


def calibrating_seconds(backend: BackendName, part: str, parameters: int, int8_cache: bool) -> float:
    """Of these, before it is lowered: only ONNX's decoder needs scales of its cache beforehand."""
    return parameters / CALIBRATED_PER_SECOND if (backend, part) == ("onnx", "decoder") and int8_cache else 0.0


def can_fork() -> bool:
    """Whether parts are lowered in processes here: on macOS, the system's libraries do not survive a fork."""
    return sys.platform == "linux"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _names(config: NetworkConfig, recipe: Recipe) -> list[tuple[BackendName, str]]:
    return [(backend, part) for backend in recipe.backends for part in _parts(config, backend)]


def _parts(config: NetworkConfig, backend: BackendName) -> list[str]:
    """As the lowerings name them; ExecuTorch's table is written with the encoder."""
    sees = ["vision"] if config.vision else []
    return ["decoder", *sees] if backend == "executorch" else ["decoder", *sees, "embedding"]


def _together(times: Iterable[float], jobs: int) -> float:
    """Seconds until all are done, each on the core that is free first."""
    busy = [0.0] * jobs
    for seconds in times:
        busy[busy.index(min(busy))] += seconds
    return max(busy)


def _part_bytes(backend: BackendName, part: str, config: NetworkConfig, files: Mapping[str, Mapping[str, int]]) -> int:
    """Of the job that lowers one part. ONNX's holds what it writes, ExecuTorch's its largest matrix, twice."""
    sizes = files[backend]
    inside = {"decoder": ("decoder", "head"), "vision": ("vision", "projector"), "embedding": ("embedding",)}[part]
    if backend == "onnx":
        return FORKED + sum(sizes.get(name, 0) for name in inside)
    layers = config.decoder.layers if part == "decoder" else config.vision.layers if config.vision else 0
    return FORKED + layers * LAYER_GRAPH + 2 * sizes.get("head" if part == "decoder" else "embedding", 0)


def _loaded(backend: BackendName, files: Mapping[str, Mapping[str, int]], memory: MemoryEstimate) -> int:
    """While golden answers are recorded. XNNPACK packs what it loads into a second file, both mapped."""
    if backend == "onnx":
        return memory.backends[backend].peak
    whole = sum(files[backend].values())
    return 2 * whole - files[backend].get("embedding", 0)
