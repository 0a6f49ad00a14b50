"""Llama, and all that is saved as one: SmolLM2, TinyLlama, …"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handlens_export.network.chat import chat
from handlens_export.network.config import DecoderConfig, NetworkConfig
from handlens_export.network.families._decoder import Names, decoder, decoder_names
from handlens_export.network.families._fields import Fields, completed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["chat", "config", "llama_decoder", "tensor_names", "transform"]


def config(hf: dict[str, Any]) -> NetworkConfig:
    """Sizes and choices from config.json. Raises UnsupportedError, CheckpointError."""
    fields = Fields(completed("llama", hf), hf)
    return NetworkConfig("llama", llama_decoder(fields, tied=fields.flag("tie_word_embeddings")))


def llama_decoder(fields: Fields, *, tied: bool) -> DecoderConfig:
    """A decoder of LlamaConfig's fields, also as a part of a vision-language model.

    `pretraining_tp` cuts matrices into slices and adds the same products up: it changes no mathematics.
    """
    bias = fields.flag("attention_bias")
    return decoder(
        fields,
        tied=tied,
        activation=fields.activation("hidden_act"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
    )


def tensor_names(config: NetworkConfig) -> Names:
    """Our parameter names to the checkpoint's; those without a prefix are a bare LlamaModel's."""
    return decoder_names(config.decoder, ("model.", ""), ("lm_head.weight",))


def transform(name: str, tensor: Tensor, config: NetworkConfig) -> Tensor:
    """Tensors are used as they are stored."""
    return tensor
