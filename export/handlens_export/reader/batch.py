"""The tensors of one step of training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Tensors of one step."""

    tiles: Tensor
    """(n, 3, tile, tile) normalized, all examples' one after another; (0,) where the mix has no pictures."""
    characters: Tensor
    """(n, patches, SLOTS) int64."""
    shapes: Tensor
    """(n, patches) int64."""
    colours: Tensor
    ids: Tensor
    """(examples, t) int64, padded at the right with the end token."""
    places: Tensor
    """(examples, t) bool: the image tokens."""
    targets: Tensor
    """(examples, t) int64: the token after each position where it belongs to an answer, else -1."""
    positions: Tensor
    """(examples, t) int64: for rotation; those of each question that stands alone begin after the picture."""
    segments: Tensor
    """(examples, t) int64: 0 what all that follows sees, else the question that alone sees it."""
    kinds: tuple[tuple[str, ...], ...]
    """Of each example's turns."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved = {name: part.to(device, non_blocking=True) for name, part in vars(self).items() if name != "kinds"}
        return replace(self, **moved)
