"""GPTQ (Frantar et al., 2023, arXiv 2210.17323): weights are rounded column by column, and what rounding one of them
does to the outputs is made up for by those that are not rounded yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handlens_export.quantize.clip import least_error, on_grid
from handlens_export.quantize.rounding import row_blocks, snap
from handlens_export.quantize.weight import QuantizedWeight

BLOCK = 128
"""Columns whose corrections are gathered before the rest of the matrix gets them, as in the paper."""
DAMP = 0.01
"""Of the Hessian's mean diagonal, added to it; ten times as much where that is not enough to factor it."""


def gptq(weight: Tensor, hessian: Tensor, bits: int, group: int, act_order: bool = False) -> QuantizedWeight:
    """Round a matrix (rows, columns) so that its products with inputs x change little; `hessian` (columns, columns) is
    the sum of x x^T over them, weighted or not.

    Each group's grid is the one of least squared error, a column's weighted by the Hessian's diagonal, over the group
    as earlier columns have corrected it. With `act_order` columns go in the order of that diagonal, the largest first,
    and grids are chosen before the first: groups are then not rounded one after another.
    """
    rows, columns = weight.shape
    w = weight.float().T.contiguous()  # a column of the weight lies in one piece
    h = hessian.float().clone()
    dead = h.diagonal() == 0  # no input ever reached them: any weight does
    h[dead, dead] = 1.0
    w[dead] = 0.0
    importance = h.diagonal().clone()
    order = importance.argsort(descending=True) if act_order else torch.arange(columns)
    w, h = w[order], h[order][:, order]
    inverse = _inverse_factor(h)
    values = torch.empty_like(w)
    scales = torch.empty(columns // group, rows)
    zeros = torch.zeros(columns // group, rows) if bits == 2 else None
    if act_order:
        ahead = w[order.argsort()].view(-1, group, rows)
        _fix(scales, zeros, 0, ahead, bits, importance.view(-1, group))
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        block, errors = w[begin:end].clone(), torch.empty(end - begin, rows)
        factor = inverse[begin:end, begin:end]
        for column in range(end - begin):
            at = int(order[begin + column]) // group
            if not act_order and (begin + column) % group == 0:
                # A group wider than a block reaches into columns that have had the corrections of earlier blocks only.
                ahead = torch.cat((block[column:], w[end : begin + column + group]))[:group]
                weights = importance[begin + column : begin + column + group]
                _fix(scales, zeros, at, ahead[None], bits, weights[None])
            one, offset = block[column], None if zeros is None else zeros[at]
            near = snap(one, scales[at], offset, bits)
            values[begin + column] = near
            back = (near if offset is None else near - offset) * scales[at]
            errors[column] = (one - back) / factor[column, column]
            block[column:].addr_(factor[column, column:], errors[column], alpha=-1)
        w[end:].addmm_(inverse[begin:end, end:].T, errors, alpha=-1)
    offsets = None if zeros is None else zeros.T.contiguous()
    return on_grid([values[order.argsort()].T.contiguous()], [scales.T.contiguous()], [offsets], bits, group)


def _fix(scales: Tensor, zeros: Tensor | None, first: int, groups: Tensor, bits: int, importance: Tensor) -> None:
    """Choose the grids of groups (count, group, rows) from `first` on, a part at a time that stays in the processor's
    cache; `importance` (count, group).
    """
    for place, (group, weights) in enumerate(zip(groups, importance, strict=True), first):
        end = 0
        for block in row_blocks(group.T.contiguous()):
            part = slice(end, end + len(block))
            end = part.stop
            scales[place, part], offsets = least_error(block, bits, weights)
            if zeros is not None and offsets is not None:
                zeros[place, part] = offsets


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    damp = DAMP * float(hessian.diagonal().mean())
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damp)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return upper
        damp *= 10
