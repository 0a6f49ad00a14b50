"""One decoder layer at a time: its linears are rounded in the order in which data passes them, each to what it really
gets, from those before it as they are once rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from handlens_export.errors import CheckpointError
from handlens_export.network.attention import CachedAttention, Step
from handlens_export.network.decoder import DecoderLayer
from handlens_export.quantize.clip import clip
from handlens_export.quantize.formats import Matrix
from handlens_export.quantize.gptq import gptq
from handlens_export.quantize.importance import Strategy, importance
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedWeight
from handlens_export.recipe import Method

STRIPS = 8
"""A Hessian is summed in as many strips of rows, each from its diagonal on: the other half is the same."""


@torch.no_grad()
def quantize_layer(
    layer: DecoderLayer,
    hidden: Sequence[Tensor],
    step: Callable[[int], Step],
    grids: Mapping[str, Matrix],
    method: Method,
    strategy: Strategy = "attention",
) -> tuple[dict[str, QuantizedWeight], list[Tensor]]:
    """Round a layer's linears; the weights by the linears' names, and the layer's outputs.

    `layer` is in float and ends with its rounded weights unpacked. `hidden` are the rows (1, t, width) that it gets
    from each calibration prompt, `step(t)` an eager step of t rows, `grids` the format of each linear, by its name in
    the layer. A linear without one stays in float.
    """
    attention, mlp = layer.attention, layer.mlp
    found: dict[str, QuantizedWeight] = {}
    weights = [
        importance(strategy if method == "rsq" else "uniform", layer, rows, step(rows.shape[1])) for rows in hidden
    ]

    def rounded(names: Sequence[str], inputs: Iterable[Tensor]) -> None:
        wanted = [name for name in names if name in grids]
        if not wanted:
            return
        seen = _needed(method, inputs, weights)
        for name in wanted:
            linear, form = cast(nn.Linear, layer.get_submodule(name)), grids[name]
            found[name] = _rounded(linear.weight, seen, form, method)
            linear.weight = nn.Parameter(found[name].dequantize(), requires_grad=False)

    rounded([f"attention.{name}_proj" for name in "qkv"], (layer.attention_norm(rows) for rows in hidden))
    mixed = [attention.mixed(layer.attention_norm(rows), step(rows.shape[1])) for rows in hidden]
    cached = cast(CachedAttention, attention.cached)
    cached.keys = cached.values = None
    rounded(["attention.o_proj"], mixed)
    after = [rows + attention.o_proj(inner) for rows, inner in zip(hidden, mixed, strict=True)]
    del mixed
    rounded(["mlp.gate_proj", "mlp.up_proj"], (layer.mlp_norm(rows) for rows in after))
    gated = [mlp.gated(layer.mlp_norm(rows)) for rows in after]
    rounded(["mlp.down_proj"], gated)
    return found, [rows + mlp.down_proj(inner) for rows, inner in zip(after, gated, strict=True)]


def hessian(inputs: Iterable[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum over tokens of weight * x x^T, from each prompt's inputs (1, t, columns) and weights (t,).

    Raises CheckpointError where it is not finite.
    """
    total: Tensor | None = None
    for rows, weight in zip(inputs, weights, strict=True):
        x = rows[0] * weight.sqrt()[:, None]
        columns = x.shape[1]
        total = torch.zeros(columns, columns) if total is None else total
        for begin in range(0, columns, step := -(-columns // STRIPS)):
            total[begin : begin + step, begin:].addmm_(x[:, begin : begin + step].T, x[:, begin:])
    if total is None:
        raise ValueError("calibration needs at least one prompt")
    total = total.triu().add_(total.triu(1).T)
    return _finite(total)


def squares(inputs: Iterable[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The Hessian's diagonal (columns,). Raises CheckpointError where it is not finite."""
    each = [rows[0].square().T @ weight for rows, weight in zip(inputs, weights, strict=True)]
    return _finite(torch.stack(each).sum(0))


def _finite(sums: Tensor) -> Tensor:
    if not bool(sums.isfinite().all()):
        raise CheckpointError(
            "Activations on the calibration set are no finite numbers, so no method can look at them; give another "
            "--calibration, or use --method round without --smooth."
        )
    return sums


def _needed(method: Method, inputs: Iterable[Tensor], weights: Sequence[Tensor]) -> Tensor | None:
    """What a method looks at: the Hessian, its diagonal, or nothing."""
    match method:
        case "round":
            return None
        case "clip":
            return squares(inputs, weights)
        case _:
            return hessian(inputs, weights)


def _rounded(weight: Tensor, seen: Tensor | None, form: Matrix, method: Method) -> QuantizedWeight:
    if seen is None:
        return quantize(weight, form.bits, form.group)
    if method == "clip":
        return clip(weight, form.bits, form.group, seen)
    return gptq(
        weight, seen, form.bits, form.group, act_order=True
    )  # a fifth less error than from left to right: LOG.md
