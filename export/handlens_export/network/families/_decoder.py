"""What the llama-type decoders of all families share: sizes, rotary scaling, tensor names."""

from __future__ import annotations

from typing import Any

from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.network.config import DecoderConfig, RopeScaling
from handlens_export.network.families._fields import Fields

ROPE_FIELDS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}

Names = dict[str, tuple[str, ...]]


def decoder(fields: Fields, *, tied: bool, **choices: Any) -> DecoderConfig:
    """A decoder's config from the fields that llama, qwen2 and gemma name alike; `choices` are the family's own."""
    fields.must("attn_logit_softcapping")
    fields.must("final_logit_softcapping")
    fields.must("query_pre_attn_scalar")
    fields.must("sliding_window")
    fields.must("use_bidirectional_attention", choices.get("causal", True) is False)
    if any(kind != "full_attention" for kind in fields.get("layer_types") or ()):
        raise fields.refusal("layer_types", "full_attention in every layer")
    heads, kv_heads = fields.integer("num_attention_heads"), fields.integer("num_key_value_heads")
    if heads % kv_heads:
        raise fields.refusal("num_key_value_heads", f"a number that divides the {heads} attention heads")
    width = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim") if fields.get("head_dim") is not None else width // heads
    if head_dim % 2:
        raise UnsupportedError(
            f"config.json gives attention heads of {head_dim} channels; rotary position embedding takes an even number."
        )
    theta, scaling = _rope(fields)
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        width=width,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=fields.integer("intermediate_size"),
        max_positions=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_head=tied,
        **choices,
    )


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Base and scaling from `rope_parameters`, which transformers' config class also makes of the older fields."""
    rope: dict[str, Any] = fields.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_FIELDS:
        raise UnsupportedError(
            f"config.json scales its rotary positions by rope_scaling of type {kind!r}; HandLens has "
            "none, linear and llama3."
        )
    extra = {name for name, value in rope.items() if value is not None} - ROPE_FIELDS[kind] - {"rope_type", "type"}
    extra -= {"rope_theta", *(["partial_rotary_factor"] if rope.get("partial_rotary_factor") == 1.0 else [])}
    if extra:
        raise UnsupportedError(
            f"config.json's rotary positions have {', '.join(sorted(extra))}, which HandLens does not have for "
            f"type {kind!r}; export a checkpoint without it."
        )
    try:
        theta = float(rope["rope_theta"])
        if kind == "default":
            return theta, None
        if kind == "linear":
            return theta, RopeScaling("linear", float(rope["factor"]))
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        original = int(rope["original_max_position_embeddings"])
        return theta, RopeScaling("llama3", float(rope["factor"]), low, high, original)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json's rope_parameters are {rope!r}; expected numbers for "
            f"{', '.join(sorted({'rope_theta'} | ROPE_FIELDS[kind]))}."
        ) from error


def decoder_names(config: DecoderConfig, prefixes: tuple[str, ...], heads: tuple[str, ...]) -> Names:
    """The decoder's tensors under each of `prefixes`; `heads` are the names of an untied output head."""
    parts = {"decoder.embedding.table.weight": "embed_tokens.weight", "decoder.norm.weight": "norm.weight"}
    for layer in range(config.layers):
        ours, theirs = f"decoder.layers.{layer}", f"layers.{layer}"
        parts[f"{ours}.attention_norm.weight"] = f"{theirs}.input_layernorm.weight"
        parts[f"{ours}.mlp_norm.weight"] = f"{theirs}.post_attention_layernorm.weight"
        for linear in ("q_proj", "k_proj", "v_proj", "o_proj"):
            biased = config.output_bias if linear == "o_proj" else config.qkv_bias
            for kind in ("weight", "bias") if biased else ("weight",):
                parts[f"{ours}.attention.{linear}.{kind}"] = f"{theirs}.self_attn.{linear}.{kind}"
        for linear in ("gate_proj", "up_proj", "down_proj"):
            for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
                parts[f"{ours}.mlp.{linear}.{kind}"] = f"{theirs}.mlp.{linear}.{kind}"
    names = {name: tuple(prefix + theirs for prefix in prefixes) for name, theirs in parts.items()}
    names["decoder.head.weight"] = names["decoder.embedding.table.weight"] if config.tied_head else heads
    return names
