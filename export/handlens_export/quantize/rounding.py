"""Rounding to the nearest grid point: the baseline quantizer.

Both backends get the same integers and scales, so a difference between them is a kernel's and not the quantizer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from handlens_export.quantize.weight import QuantizedWeight


class _Rounded(NamedTuple):
    values: Tensor
    scales: Tensor
    zeros: Tensor | None


BLOCK = 1 << 18
"""Weights that are in float at a time: 1 MiB, so that every step from one to the next stays in the processor's cache. A
matrix whole is rounded at 115 million weights a second, in these blocks at 830 million (one core of a Zen 4)."""


def row_blocks(weight: Tensor) -> Iterator[Tensor]:
    """A tensor in views of whole rows, about BLOCK elements each."""
    rows = len(weight) if weight.dim() else 1
    yield from torch.split(weight.reshape(rows, -1), max(1, BLOCK * rows // max(1, weight.numel())))


def quantize(weight: Tensor, bits: int, group: int) -> QuantizedWeight:
    """Round a matrix (rows, columns) of floats to `bits` in groups of `group` columns, which must divide the row.

    Four bits are symmetric, -8..7, scale = max|w| / 8 (the largest positive weight is clipped by an eighth, which costs
    less than the coarser steps of max|w| / 7: LOG.md), kept to bfloat16's precision because XNNPACK stores it so
    (the integers are chosen for the scale as stored). Eight bits are symmetric, -127..127. Two bits are asymmetric,
    0..3 with a zero point: four symmetric levels would waste one.

    `weight` may be of any float type; a block of rows at a time is widened to float32.
    """
    rows, columns = weight.shape
    values = torch.empty((rows, columns), dtype=torch.uint8 if bits == 2 else torch.int8)
    scales = torch.empty((rows, columns // group))
    zeros = torch.empty((rows, columns // group), dtype=torch.uint8) if bits == 2 else None
    end = 0
    for block in row_blocks(weight):
        place = slice(end, end + len(block))
        end = place.stop
        rounded = _round(block.float().reshape(len(block), columns // group, group), bits)
        values[place], scales[place] = rounded.values.flatten(1), rounded.scales
        if zeros is not None and rounded.zeros is not None:
            zeros[place] = rounded.zeros
    return QuantizedWeight(values, scales, zeros, bits, group)


def grid(groups: Tensor, bits: int, shrink: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Scales and, at two bits, zero points of the grids that cover `shrink` of each group's (…, group) range."""
    tiny = torch.finfo(torch.float32).tiny ** 0.5
    if bits == 2:  # zero is always on the grid
        low, high = groups.amin(dim=-1).clamp_max(0) * shrink, groups.amax(dim=-1).clamp_min(0) * shrink
        scales = ((high - low) / 3).clamp_min(tiny)
        return scales, (-low / scales).round().clamp(0, 3)
    limit = 127 if bits == 8 else 2 ** (bits - 1)
    scales = (groups.abs().amax(dim=-1) * shrink / limit).clamp_min(tiny)
    return (scales if bits == 8 else scales.to(torch.bfloat16).float()), None


def snap(values: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """The grid's nearest integers, as floats; `scales` and `zeros` as `grid` gives them, broadcast over `values`."""
    if zeros is not None:
        return (values / scales).add_(zeros).round_().clamp_(0, 2**bits - 1)
    return (values / scales).round_().clamp_(-127 if bits == 8 else -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _round(groups: Tensor, bits: int) -> _Rounded:
    """A block of rows (rows, groups, group)."""
    scales, zeros = grid(groups, bits)
    kind = torch.uint8 if bits == 2 else torch.int8
    values = snap(groups, scales[..., None], None if zeros is None else zeros[..., None], bits).to(kind)
    return _Rounded(values, scales, None if zeros is None else zeros.to(torch.uint8))
