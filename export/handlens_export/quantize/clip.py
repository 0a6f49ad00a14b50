"""Rounding whose grids leave out the largest weights where that makes the whole group's error smaller."""

from __future__ import annotations

import torch
from torch import Tensor

from handlens_export.quantize.rounding import grid, row_blocks, snap
from handlens_export.quantize.weight import QuantizedWeight

SHRINKS = tuple(step / 40 for step in range(46, 19, -1))
"""Ranges that are tried, as shares of the one that covers all but an eighth at the positive end (rounding's own): from
1.15, which covers that too, down to half of it."""


def least_error(groups: Tensor, bits: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points of groups (…, group) that leave the least squared error.

    `importance`, broadcast over `groups`, weighs each weight's error: the diagonal of its inputs' Hessian, say.
    """
    best, scales, zeros = None, None, None
    for shrink in SHRINKS:
        tried, offset = grid(groups, bits, shrink)
        apart = snap(groups, tried[..., None], None if offset is None else offset[..., None], bits)
        if offset is not None:
            apart = apart - offset[..., None]
        error = (apart * tried[..., None] - groups).square()
        error = (error if importance is None else error * importance).sum(-1)
        if best is None or scales is None:
            best, scales, zeros = error, tried, offset
            continue
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
        if offset is not None and zeros is not None:
            zeros = torch.where(better, offset, zeros)
    assert scales is not None
    return scales, zeros


def clip(weight: Tensor, bits: int, group: int, importance: Tensor | None = None) -> QuantizedWeight:
    """Round a matrix (rows, columns) to the grids of least squared error; `importance` (columns,) weighs it."""
    columns = weight.shape[1]
    weights = None if importance is None else importance.float().view(columns // group, group)
    parts = []
    for block in row_blocks(weight):
        groups = block.float().view(len(block), columns // group, group)
        scales, zeros = least_error(groups, bits, weights)
        values = snap(groups, scales[..., None], None if zeros is None else zeros[..., None], bits)
        parts.append((values.flatten(1), scales, zeros))
    return on_grid([p[0] for p in parts], [p[1] for p in parts], [p[2] for p in parts], bits, group)


def on_grid(
    values: list[Tensor], scales: list[Tensor], zeros: list[Tensor | None], bits: int, group: int
) -> QuantizedWeight:
    """Blocks of rows, integers still as floats, to one weight."""
    offsets = [offset.to(torch.uint8) for offset in zeros if offset is not None]
    kind = torch.uint8 if bits == 2 else torch.int8
    return QuantizedWeight(
        torch.cat(values).to(kind), torch.cat(scales), torch.cat(offsets) if offsets else None, bits, group
    )
