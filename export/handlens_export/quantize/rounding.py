"""Rounding to the nearest grid point: the baseline quantizer.

Both backends get the same integers and scales, so a difference between them is a kernel's and not the quantizer's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handlens_export.quantize.weight import QuantizedWeight


def quantize(weight: Tensor, bits: int, group: int) -> QuantizedWeight:
    """Round a matrix (rows, columns) of floats to `bits` in groups of `group` columns, which must divide the row.

    Four bits are symmetric, -8..7, scale = max|w| / 8 (the largest positive weight is clipped by an eighth, which costs
    less than the coarser steps of max|w| / 7: LOG.md), kept to bfloat16's precision because XNNPACK stores it so
    (the integers are chosen for the scale as stored). Eight bits are symmetric, -127..127. Two bits are asymmetric,
    0..3 with a zero point: four symmetric levels would waste one.
    """
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // group, group)
    if bits == 2:
        return _asymmetric(groups, bits, columns, group)
    limit = 127 if bits == 8 else 2 ** (bits - 1)
    scales = (groups.abs().amax(dim=-1) / limit).clamp_min(torch.finfo(torch.float32).tiny ** 0.5)
    if bits < 8:
        scales = scales.to(torch.bfloat16).float()
    low = -127 if bits == 8 else -(2 ** (bits - 1))
    high = 2 ** (bits - 1) - 1
    values = (groups / scales[..., None]).round().clamp(low, high).to(torch.int8)
    return QuantizedWeight(values.view(rows, columns), scales, None, bits, group)


def _asymmetric(groups: Tensor, bits: int, columns: int, group: int) -> QuantizedWeight:
    """Min-max grid with an integer zero point; zero is always on the grid."""
    levels = 2**bits - 1
    low, high = groups.amin(dim=-1).clamp_max(0), groups.amax(dim=-1).clamp_min(0)
    scales = ((high - low) / levels).clamp_min(torch.finfo(torch.float32).tiny ** 0.5)
    zeros = (-low / scales).round().clamp(0, levels)
    values = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, levels).to(torch.uint8)
    return QuantizedWeight(values.view(len(groups), columns), scales, zeros.to(torch.uint8), bits, group)
