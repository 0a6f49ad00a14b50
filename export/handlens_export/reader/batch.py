"""The tensors of one step of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handlens_export.reader.pointers import NOWHERE
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
    naming: Tensor
    """(p, 2) flat indices: a question's token that names what stands on the picture, and the image token of it."""
    saying: Tensor
    """(q, 2) flat indices: the position behind which a letter of an answer stands, and the image token of it."""


def assemble(turns: Sequence[Turns], image_id: int, tiles: Tensor, labels: Tensor) -> Batch:
    """One row of a batch for each of `turns`, on the device of `tiles`, the normalized tiles of all of them."""
    lengths = np.array([each.tokens.shape[1] for each in turns])
    long = -(-int(lengths.max()) // PAD) * PAD
    rows = np.repeat(np.arange(len(turns)), lengths)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    at = rows * long + np.arange(lengths.sum()) - np.repeat(starts, lengths)
    ids, positions, segments, numbers, places = np.concatenate([each.tokens for each in turns], axis=1).astype(np.int64)
    before = np.concatenate(([0], np.cumsum([len(each.kinds) for each in turns])[:-1]))
    after = np.flatnonzero(numbers)  # never a row's first token
    images = at[ids == image_id]
    naming = np.flatnonzero((places != NOWHERE) & (numbers == 0))
    saying = np.flatnonzero((places != NOWHERE) & (numbers > 0))
    pictured = np.array([np.count_nonzero(each.tokens[0] == image_id) for each in turns])
    places += np.repeat(np.cumsum(pictured) - pictured, lengths)  # of all rows' image tokens
    host = (
        *(at, ids, positions, segments, images, at[after] - 1, ids[after]),
        *((numbers - 1 + np.repeat(before, lengths))[after], np.concatenate([each.kinds for each in turns])),
        *(at[naming], images[places[naming]], at[saying] - 1, images[places[saying]]),
    )
    place, ids_, positions_, segments_, *rest = _moved(host, tiles.device)
    grid = torch.zeros(3, len(turns) * long, dtype=torch.long, device=tiles.device)
    grid[:, place] = torch.stack((ids_, positions_, segments_))
    images_, wanted, targets, answers, kinds, names, named, letters, said = rest
    ids_, positions_, segments_ = grid.view(3, len(turns), long)
    return Batch(
        tiles=tiles,
        labels=labels,
        ids=ids_,
        positions=positions_,
        segments=segments_,
        images=images_,
        wanted=wanted,
        targets=targets,
        answers=answers,
        kinds=kinds,
        naming=torch.stack((names, named), 1),
        saying=torch.stack((letters, said), 1),
    )


def _moved(host: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """All in one transfer."""
    whole = torch.from_numpy(np.concatenate([part.astype(np.int64) for part in host]))
    if device.type == "cuda":
        whole = whole.pin_memory().to(device, non_blocking=True)
    return torch.split(whole, [len(part) for part in host])
