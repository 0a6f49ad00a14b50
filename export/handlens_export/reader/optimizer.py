"""Muon for the matrices inside the blocks, AdamW for everything else: two optimizers that step as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Optimizer:
    """Steps those of a module's parameters that want gradients, both optimizers at one rate.

    Muon's updates are scaled to AdamW's size.
    """

    def __init__(self, modules: nn.Module, weight_decay: float = 0.02) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in modules.named_parameters():
            if parameter.requires_grad:
                (matrices if _inside_a_block(name, parameter) else rest).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.parameters = matrices + rest

    def step(self, learning_rate: float, most_norm: float = 1.0) -> Tensor:
        """One step, gradients scaled to at most `most_norm`; the norm before it."""
        norm = nn.utils.clip_grad_norm_(self.parameters, most_norm)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)
        return norm.detach()

    def state_dict(self) -> list[dict[str, Any]]:
        """To go on from."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _inside_a_block(name: str, parameter: Tensor) -> bool:
    """Muon's authors leave embeddings, heads and vectors to AdamW."""
    return parameter.ndim == 2 and ".layers." in name and "embed" not in name
