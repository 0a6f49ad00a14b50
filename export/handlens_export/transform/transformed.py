"""A checkpoint's parameters as a recipe wants them rewritten: rotated, then smoothed."""

from __future__ import annotations

from collections.abc import Callable

from handlens_export.network.config import NetworkConfig
from handlens_export.network.load import Parameters
from handlens_export.quantize.calibrated import Calibration
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_export.transform.rotate import Rotated
from handlens_export.transform.smooth import smoothed


def transformed(
    parameters: Parameters,
    config: NetworkConfig,
    recipe: Recipe,
    kept: StageCache,
    calibration: Calibration | None,
    progress: Callable[[float], None] = lambda share: None,
) -> Parameters:
    """The same parameters where the recipe asks for none. Raises CheckpointError, TargetError."""
    if recipe.rotate:
        parameters = Rotated(parameters)
    if recipe.smooth:
        assert calibration is not None, "smoothing needs a calibration set"
        parameters = smoothed(parameters, config, recipe, kept, calibration, progress)
    return parameters
