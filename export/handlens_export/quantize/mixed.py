"""More bits where they are worth most: which layers' attention and MLP get them, for a mean over the decoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from handlens_export.errors import UnsupportedError
from handlens_export.network.config import NetworkConfig
from handlens_export.network.load import Parameters
from handlens_export.quantize.calibrated import CODE, Calibration
from handlens_export.quantize.formats import matrix, stored_bits
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.sensitivity import Sensitivity, places, sensitivities, weights_of
from handlens_export.quantize.stages import code_version, stage_key
from handlens_export.recipe import BITS, Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_export.transform.rotate import Rotated


def with_target(
    parameters: Parameters,
    config: NetworkConfig,
    recipe: Recipe,
    target: float,
    kept: StageCache,
    calibration: Calibration,
    progress: Callable[[float], None] = lambda share: None,
) -> Recipe:
    """The recipe with bits of layers such that the decoder's linears have `target` bits a weight on average, scales not
    counted. What each part costs is measured once and kept. Raises UnsupportedError, CheckpointError.
    """
    low, high = between(recipe, target)
    base = replace(recipe, bits=low, layer_bits=())
    if target == low:
        return base
    if recipe.rotate:
        parameters = Rotated(parameters)
    found = _measured(parameters, config, base, kept, calibration, progress)
    return replace(base, layer_bits=tuple((place, high) for place in choose(found, target, low, high)))


def between(recipe: Recipe, target: float) -> tuple[int, int]:
    """The formats that all of the recipe's backends have at or below a target, and above it. UnsupportedError."""
    common = set.intersection(*(set(BITS[backend]) for backend in recipe.backends)) - {32}
    formats = sorted(bits for bits in common if stored_bits(bits) == bits)  # three cost what four do
    if not formats[0] <= target <= formats[-1]:
        raise UnsupportedError(
            f"--target-bits is {target:g}, but the kernels of {' and '.join(recipe.backends)} take "
            f"{', '.join(map(str, formats))}; choose from {formats[0]} to {formats[-1]}."
        )
    low = max(bits for bits in formats if bits <= target)
    return low, min((bits for bits in formats if bits > low), default=low)


def choose(found: Sequence[Sensitivity], target: float, low: int, high: int) -> list[str]:
    """The places that get the higher bits, those first that gain most for a weight, as far as the target reaches."""
    room = (target - low) / (high - low) * sum(one.parameters for one in found)
    chosen = set()
    for one in sorted(found, key=lambda one: -one.per_weight):
        if one.parameters <= room:
            room -= one.parameters
            chosen.add(one.place)
    return [one.place for one in found if one.place in chosen]


def _measured(
    parameters: Parameters,
    config: NetworkConfig,
    recipe: Recipe,
    kept: StageCache,
    calibration: Calibration,
    progress: Callable[[float], None],
) -> tuple[Sensitivity, ...]:
    key, stage = "", None
    if kept.working:
        everything = stage_key(parameters, parameters.shapes, recipe)
        state = json.dumps(["sensitivity", code_version(CODE), calibration.digest, calibration.state, everything])
        key = hashlib.sha256(state.encode()).hexdigest()
        stage = kept.get(key)

    def rounded(name: str, weight: Tensor) -> Tensor:
        grid = matrix(name, parameters.shapes[name], recipe)
        return weight if grid is None else quantize(weight, grid.bits, grid.group).dequantize()

    if stage is None:
        found = sensitivities(parameters, config, rounded, calibration.rows, progress)
        stage = {one.place: torch.tensor([one.kl]) for one in found}
        stage = kept.put(key, stage, {"checkpoint": str(parameters.path.resolve()), "stage": "sensitivity"})
    # From what is kept, in one order: measured now or before, the same layers are chosen.
    return tuple(Sensitivity(place, float(stage[place]), weights_of(parameters, place)) for place in places(config))
