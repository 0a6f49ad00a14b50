"""What the export itself takes on the workstation: memory at its peak, and time. README.md has the sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from handlens_export.network.config import NetworkConfig
from handlens_export.quantize.formats import FLOAT_BYTES, Shape, matrix
from handlens_export.recipe import Recipe
from handlens_runtime.manifest import BackendName

LIBRARIES = 540_000_000
"""Python, torch and the exporters, before any weight."""
COPIES: dict[BackendName, int] = {"executorch": 2, "onnx": 0}
"""Times that a program's bytes stand in memory beside the network: ExecuTorch serializes, then joins; ONNX data is
written tensor by tensor."""
ROUNDED_PER_SECOND = 55e6
"""Weights read and rounded a second on one core."""
LAYER_SECONDS: dict[BackendName, float] = {"executorch": 9.0, "onnx": 0.9}
"""Lowering one layer: passes over graphs, which take the same time for wide and narrow layers."""
CALIBRATING = 0.85
"""Share of the time of a job that calibrates and then lowers for ONNX."""
WRITTEN_PER_SECOND = 200e6
"""Bytes packed, written and hashed a second."""
BASE_SECONDS = 2.5


@dataclass(frozen=True)
class Host:
    """Of the workstation, for one export."""

    peak_bytes: int
    """Of the process, file-backed pages of the checkpoint left out."""
    seconds: float
    """On one core."""


def estimate_host(
    config: NetworkConfig, recipe: Recipe, shapes: Mapping[str, Shape], files: Mapping[str, Mapping[str, int]]
) -> Host:
    """Peak and time of `export` with this recipe; `files` as `forecast.files.bundle_files` gives them."""
    layers = config.decoder.layers + (config.vision.layers if config.vision else 0)
    network = sum(_unpacked(name, shape, recipe) for name, shape in shapes.items())
    seconds = BASE_SECONDS + sum(map(prod, shapes.values())) / ROUNDED_PER_SECOND
    peak = network
    for backend in recipe.backends:
        written = sum(files[backend].values())
        peak = max(peak, network + COPIES[backend] * written)
        seconds += layers * LAYER_SECONDS[backend] + written / WRITTEN_PER_SECOND
    return Host(peak_bytes=LIBRARIES + peak, seconds=seconds)


def _unpacked(name: str, shape: Shape, recipe: Recipe) -> int:
    """Bytes of a parameter between rounding and lowering: a byte a weight, whatever its bits, and its scales."""
    grid = matrix(name, shape, recipe)
    return prod(shape) * FLOAT_BYTES if grid is None else prod(shape) + grid.scales * FLOAT_BYTES


def lowering_seconds(backend: BackendName, layers: int, calibrated: bool) -> float:
    """Of one part, to weigh it against the others."""
    return (1 + layers * LAYER_SECONDS[backend]) / (1 - CALIBRATING if calibrated else 1)
