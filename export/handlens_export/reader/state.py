"""A run's state on disk: the weights, the optimizer's, and how far it got. Knows nothing of what a run trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from handlens_export.errors import CheckpointError

PARTS = {"sizes", "modules", "optimizer", "step", "cold", "ordered", "seconds"}


def write(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `write` wrote, tensors on `device`. Raises CheckpointError for any other file."""
    if not path.exists():
        raise CheckpointError(f"{path} is not there; give a state.pt of training.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        raise _refused(path) from error
    if not isinstance(state, dict) or set(state) != PARTS:
        raise _refused(path)
    return state


def _refused(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is no state of training; remove it to begin anew.")
