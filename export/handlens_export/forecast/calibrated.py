"""What a method that looks at activations adds to an export: time, and memory meanwhile, on a full calibration set.

Rows pass each layer once, the inputs of its linears are summed into Hessians, and each weight is rounded; smoothing
passes some prompts through every layer once for each alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from handlens_export.network.config import DecoderConfig
from handlens_export.quantize.formats import Shape
from handlens_export.recipe import LENGTH, SEQUENCES, Recipe

PRODUCTS_PER_SECOND = 90e9
"""Operations on float32 matrices a second, two cores of a Zen 3: hosts of that kind gave 80 to 108."""
ROUNDED_PER_SECOND = {"clip": 5e6, "gptq": 8e6, "rsq": 8e6}
"""Weights whose grids are searched, and rounded one column after another, a second, likewise."""
INVERTED = 2.0
"""Operations to factor the inverse of a Hessian, by its columns cubed: measured on 6,912."""
HELD = 6
"""Matrices of a Hessian's size that GPTQ holds at its peak, the Hessian itself among them."""
ALPHAS, COMPARED = 22, 8
"""Of transform.smooth: alphas tried, and prompts that each is tried on."""
SMOOTHED_PER_SECOND = 60e6
"""Weights scaled, rounded and scaled back a second, for one alpha."""
FLOAT = 4


def added_seconds(config: DecoderConfig, recipe: Recipe, shapes: Mapping[str, Shape], context: int) -> float:
    """Of two cores; 0 where the recipe looks at no activations."""
    tokens = SEQUENCES * min(LENGTH, context)
    weights = _linears(shapes)
    total = sum(rows * columns for rows, columns in weights)
    passed = _pass_operations(config, total, min(LENGTH, context))
    seconds = 0.0
    if recipe.method != "round":
        operations: float = tokens * passed
        if recipe.method != "clip":
            operations += tokens * _gram_operations(config)
            operations += sum(rows * columns**2 + INVERTED * columns**3 for rows, columns in weights)
        seconds += operations / PRODUCTS_PER_SECOND + total / ROUNDED_PER_SECOND[recipe.method]
    if recipe.smooth:
        tried = ALPHAS * COMPARED * min(LENGTH, context)
        seconds += (tokens + tried) * passed / PRODUCTS_PER_SECOND + ALPHAS * total / SMOOTHED_PER_SECOND
    return seconds


def added_bytes(config: DecoderConfig, recipe: Recipe, shapes: Mapping[str, Shape], context: int) -> int:
    """Beside libraries, while the layers are rounded or smoothed; 0 where the recipe looks at no activations."""
    if not recipe.looks_at_activations:
        return 0
    length = min(LENGTH, context)
    rows = SEQUENCES * length * config.width
    gated = SEQUENCES * length * config.mlp_width
    layer = sum(rows * columns for rows, columns in _linears(shapes)) // config.layers
    rounding = 2 * rows + gated + layer
    if recipe.method in ("gptq", "rsq"):
        rounding += HELD * max(columns for _, columns in _linears(shapes)) ** 2
    smoothing = 2 * rows + ALPHAS * COMPARED * length * config.width + 3 * layer
    return FLOAT * max(rounding if recipe.method != "round" else 0, smoothing if recipe.smooth else 0)


def _linears(shapes: Mapping[str, Shape]) -> list[tuple[int, int]]:
    """Rows and columns of the decoder layers' matrices."""
    found = (shape for name, shape in shapes.items() if name.startswith("decoder.layers."))
    return [(shape[0], prod(shape[1:])) for shape in found if len(shape) > 1]


def _pass_operations(config: DecoderConfig, total: int, length: int) -> int:
    """For one token through all layers."""
    return 2 * total + 4 * length * config.heads * config.head_dim * config.layers


def _gram_operations(config: DecoderConfig) -> int:
    """For one token: half of each Hessian, once for all linears that read the same."""
    inner = config.heads * config.head_dim
    return config.layers * (2 * config.width**2 + inner**2 + config.mlp_width**2)
