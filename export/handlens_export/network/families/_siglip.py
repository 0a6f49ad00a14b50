"""What the SigLIP-type vision encoders of all families share: sizes and tensor names."""

from __future__ import annotations

from handlens_export.network.config import VisionConfig
from handlens_export.network.families._decoder import Names
from handlens_export.network.families._fields import Fields


def vision(fields: Fields) -> VisionConfig:
    """A vision encoder's config; its pooling head, if it has one, gives no patch features and is left out."""
    fields.must("num_channels", 3)
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if width % heads:
        raise fields.refusal("num_attention_heads", f"a number that divides the width {width}")
    image_size, patch_size = fields.side("image_size"), fields.side("patch_size")
    if patch_size > image_size:
        raise fields.refusal("patch_size", f"at most the image_size {image_size}")
    return VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        mlp_width=fields.integer("intermediate_size"),
        norm_eps=fields.number("layer_norm_eps"),
        activation=fields.activation("hidden_act"),
    )


def vision_names(config: VisionConfig, prefixes: tuple[str, ...]) -> Names:
    """The encoder's tensors under each of `prefixes`."""
    parts = {"vision.position_embedding": "embeddings.position_embedding.weight"}
    for kind in ("weight", "bias"):
        parts[f"vision.patch_embedding.{kind}"] = f"embeddings.patch_embedding.{kind}"
        parts[f"vision.norm.{kind}"] = f"post_layernorm.{kind}"
        for layer in range(config.layers):
            ours, theirs = f"vision.layers.{layer}", f"encoder.layers.{layer}"
            parts[f"{ours}.attention_norm.{kind}"] = f"{theirs}.layer_norm1.{kind}"
            parts[f"{ours}.mlp_norm.{kind}"] = f"{theirs}.layer_norm2.{kind}"
            for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
                parts[f"{ours}.attention.{linear}.{kind}"] = f"{theirs}.self_attn.{linear}.{kind}"
            for linear in ("fc1", "fc2"):
                parts[f"{ours}.mlp.{linear}.{kind}"] = f"{theirs}.mlp.{linear}.{kind}"
    return {name: tuple(prefix + theirs for prefix in prefixes) for name, theirs in parts.items()}
