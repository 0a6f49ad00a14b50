"""Qwen2 and Qwen2.5: Llama with a bias on queries, keys and values."""

from __future__ import annotations

from typing import Any

from handlens_export.network.chat import chat
from handlens_export.network.config import NetworkConfig
from handlens_export.network.families._decoder import decoder
from handlens_export.network.families._fields import Fields, completed
from handlens_export.network.families.llama import tensor_names, transform

__all__ = ["chat", "config", "tensor_names", "transform"]


def config(hf: dict[str, Any]) -> NetworkConfig:
    """Sizes and choices from config.json. Raises UnsupportedError, CheckpointError.

    `sliding_window` counts only in the layers that `layer_types` says (which transformers makes of
    `use_sliding_window` and `max_window_layers`), and such layers are refused.
    """
    fields = Fields(completed("qwen2", hf), hf, inert=frozenset({"head_dim"}))
    fields.leave_out("sliding_window")
    return NetworkConfig(
        "qwen2",
        decoder(
            fields,
            tied=fields.flag("tie_word_embeddings"),
            activation=fields.activation("hidden_act"),
            qkv_bias=True,
        ),
    )
