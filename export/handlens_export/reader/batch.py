"""The tensors of one step of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handlens_export.reader.turns import Turns

PAD = 64
"""Rows are padded to a multiple of this: kernels want it, and compiled programs meet fewer shapes."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one step. Indices into rows are flat: row * t + column."""

    tiles: Tensor
    """(n, 3, tile, tile) normalized, all rows' one after another."""
    labels: Tensor
    """(n, patches, LABELS) uint8."""
    ids: Tensor
    """(rows, t) int64, padded at the right with the end token."""
    positions: Tensor
    """(rows, t) int64: for rotation."""
    segments: Tensor
    """(rows, t) int64: 0 what all that follows sees, else the question that alone sees it."""
    images: Tensor
    """(n * tokens_per_tile,) flat indices of the image tokens."""
    wanted: Tensor
    """(m,) flat indices of the positions behind which a token of an answer stands."""
    targets: Tensor
    """(m,) those tokens."""
    answers: Tensor
    """(m,) which answer of the batch each belongs to."""
    kinds: Tensor
    """(answers,) numbers in TOLD."""


def assemble(turns: Sequence[Turns], image_id: int, tiles: Tensor, labels: Tensor) -> Batch:
    """One row of a batch for each of `turns`, on the device of `tiles`, the normalized tiles of all of them."""
    lengths = np.array([each.tokens.shape[1] for each in turns])
    long = -(-int(lengths.max()) // PAD) * PAD
    rows = np.repeat(np.arange(len(turns)), lengths)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    at = rows * long + np.arange(lengths.sum()) - np.repeat(starts, lengths)
    ids, positions, segments, numbers = np.concatenate([each.tokens for each in turns], axis=1).astype(np.int64)
    before = np.concatenate(([0], np.cumsum([len(each.kinds) for each in turns])[:-1]))
    after = np.flatnonzero(numbers)  # never a row's first token
    host = (
        *(at, ids, positions, segments, at[ids == image_id], at[after] - 1, ids[after]),
        *((numbers - 1 + np.repeat(before, lengths))[after], np.concatenate([each.kinds for each in turns])),
    )
    place, ids_, positions_, segments_, *rest = _moved(host, tiles.device)
    grid = torch.zeros(3, len(turns) * long, dtype=torch.long, device=tiles.device)
    grid[:, place] = torch.stack((ids_, positions_, segments_))
    images, wanted, targets, answers, kinds = rest
    ids_, positions_, segments_ = grid.view(3, len(turns), long)
    return Batch(tiles, labels, ids_, positions_, segments_, images, wanted, targets, answers, kinds)


def _moved(host: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """All in one transfer."""
    whole = torch.from_numpy(np.concatenate([part.astype(np.int64) for part in host]))
    if device.type == "cuda":
        whole = whole.pin_memory().to(device, non_blocking=True)
    return torch.split(whole, [len(part) for part in host])
