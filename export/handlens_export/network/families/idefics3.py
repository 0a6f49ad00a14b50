"""Idefics3: the design that SmolVLM took over, under its own name."""

from __future__ import annotations

from typing import Any

from handlens_export.network.chat import chat
from handlens_export.network.config import NetworkConfig
from handlens_export.network.families.smolvlm import idefics_config, image_rule, tensor_names, transform

__all__ = ["chat", "config", "image_rule", "tensor_names", "transform"]


def config(hf: dict[str, Any]) -> NetworkConfig:
    """Sizes and choices from config.json. Raises UnsupportedError, CheckpointError."""
    return idefics_config("idefics3", hf)
