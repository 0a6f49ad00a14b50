"""Gemma, the first: embeddings scaled by sqrt(width), norms that multiply by 1 + weight, a gelu-gated MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handlens_export.network.chat import chat
from handlens_export.network.config import Activation, DecoderConfig, NetworkConfig
from handlens_export.network.families._decoder import decoder
from handlens_export.network.families._fields import Fields, completed
from handlens_export.network.families.llama import tensor_names

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["chat", "config", "gemma_decoder", "tensor_names", "transform"]

INERT = frozenset({"hidden_activation"})


def config(hf: dict[str, Any]) -> NetworkConfig:
    """Sizes and choices from config.json. Raises UnsupportedError, CheckpointError."""
    fields = Fields(completed("gemma", hf), hf, inert=INERT)
    return NetworkConfig("gemma", gemma_decoder(fields, tied=fields.flag("tie_word_embeddings"), causal=True))


def gemma_decoder(fields: Fields, *, tied: bool, causal: bool) -> DecoderConfig:
    """A decoder of GemmaConfig's fields, also as a part of a vision-language model."""
    bias = fields.flag("attention_bias")
    return decoder(
        fields,
        tied=tied,
        causal=causal,
        activation=_activation(fields),
        qkv_bias=bias,
        output_bias=bias,
        embedding_scale=fields.integer("hidden_size") ** 0.5,
    )


def _activation(fields: Fields) -> Activation:
    """`hidden_activation` is transformers 4's second word for `hidden_act`, whose `gelu` means the tanh form here.

    The config class itself makes `gelu_pytorch_tanh` of that `gelu`.
    """
    activation = fields.activation("hidden_act")
    if fields.get("hidden_activation") is not None and fields.activation("hidden_activation") != activation:
        raise fields.refusal("hidden_activation", f"what hidden_act says, {fields.get('hidden_act')}")
    return activation


def transform(name: str, tensor: Tensor, config: NetworkConfig) -> Tensor:
    """Fold the 1 that Gemma's RMSNorm adds to its weight into the weight; a 16-bit weight widens first."""
    return tensor.float() + 1.0 if name.startswith("decoder.") and "norm.weight" in name else tensor
