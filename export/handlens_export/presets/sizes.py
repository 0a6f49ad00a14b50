"""What a `bluelm_v` checkpoint is made of: its config, its image rule, and every tensor's name and shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class Tower:
    """A stack of transformer blocks."""

    width: int
    layers: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class Preset:
    """Sizes of one preset."""

    vision: Tower
    image_size: int
    text: Tower
    kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    dtype: str
    """As config.json spells it: float32 or bfloat16."""
    patch_size: int = 14
    downsample: int = 2


NANO = Preset(
    vision=Tower(width=64, layers=2, heads=4, mlp=128),
    image_size=112,
    text=Tower(width=128, layers=3, heads=4, mlp=256),
    kv_heads=2,
    head_dim=32,
    vocab_size=1024,
    context=2048,
    dtype="float32",
)
"""Exports in seconds: 8 x 8 patches, 16 tokens a tile."""
FULL = Preset(
    vision=Tower(width=1152, layers=27, heads=16, mlp=4304),
    image_size=384,
    text=Tower(width=2560, layers=36, heads=20, mlp=6912),
    kv_heads=4,
    head_dim=128,
    vocab_size=100_352,
    context=4096,
    dtype="bfloat16",
)
"""BlueLM-V-3B's size: SigLIP-so400m-patch14-384 and a decoder of 2.7B parameters."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)


def tensors(preset: Preset) -> Iterator[TensorSpec]:
    """Every tensor of the checkpoint, in the order of the data's way."""
    yield from _vision(preset)
    vision, width = preset.vision.width, preset.text.width
    yield from _linear("downsampler", preset.downsample**2 * vision, vision)
    yield from _linear("projector.fc1", vision, width)
    yield from _linear("projector.fc2", width, width)
    yield from _language(preset)


def _vision(preset: Preset) -> Iterator[TensorSpec]:
    tower, patch = preset.vision, preset.patch_size
    at = "vision_tower.vision_model"
    yield TensorSpec(f"{at}.embeddings.patch_embedding.weight", (tower.width, 3, patch, patch))
    yield TensorSpec(f"{at}.embeddings.patch_embedding.bias", (tower.width,))
    yield TensorSpec(f"{at}.embeddings.position_embedding.weight", ((preset.image_size // patch) ** 2, tower.width))
    for layer in range(tower.layers):
        block = f"{at}.encoder.layers.{layer}"
        yield from _norm(f"{block}.layer_norm1", tower.width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{block}.self_attn.{part}", tower.width, tower.width)
        yield from _norm(f"{block}.layer_norm2", tower.width)
        yield from _linear(f"{block}.mlp.fc1", tower.width, tower.mlp)
        yield from _linear(f"{block}.mlp.fc2", tower.mlp, tower.width)
    yield from _norm(f"{at}.post_layernorm", tower.width)


def _language(preset: Preset) -> Iterator[TensorSpec]:
    text, at = preset.text, "language_model.model"
    queries, keys = text.heads * preset.head_dim, preset.kv_heads * preset.head_dim
    yield TensorSpec(f"{at}.embed_tokens.weight", (preset.vocab_size, text.width))
    for layer in range(text.layers):
        block = f"{at}.layers.{layer}"
        yield TensorSpec(f"{block}.input_layernorm.weight", (text.width,))
        for part, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield TensorSpec(f"{block}.self_attn.{part}.weight", (rows, text.width))
        yield TensorSpec(f"{block}.self_attn.o_proj.weight", (text.width, queries))
        yield TensorSpec(f"{block}.post_attention_layernorm.weight", (text.width,))
        for part in ("gate_proj", "up_proj"):
            yield TensorSpec(f"{block}.mlp.{part}.weight", (text.mlp, text.width))
        yield TensorSpec(f"{block}.mlp.down_proj.weight", (text.width, text.mlp))
    yield TensorSpec(f"{at}.norm.weight", (text.width,))


def _linear(name: str, columns: int, rows: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (rows, columns))
    yield TensorSpec(f"{name}.bias", (rows,))


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", (width,))


def config(preset: Preset, ids: dict[str, int]) -> dict[str, Any]:
    """config.json; `ids` are the special tokens' by name."""
    vision, text = preset.vision, preset.text
    return {
        "architectures": ["BlueLMVForConditionalGeneration"],
        "model_type": "bluelm_v",
        "dtype": preset.dtype,
        "downsample_factor": preset.downsample,
        "image_token_id": ids["<image>"],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "num_channels": 3,
            "image_size": preset.image_size,
            "patch_size": preset.patch_size,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
            "vision_use_head": False,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": preset.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": text.mlp,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": preset.kv_heads,
            "head_dim": preset.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": preset.context,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
    }


def image_rule(preset: Preset) -> dict[str, Any]:
    """preprocessor_config.json: BlueLM-V-3B's relaxed aspect-ratio matching (Algorithm 1), grids up to 4 x 4."""
    return {
        "image_processor_type": "BlueLMVImageProcessor",
        "tiling": "relaxed",
        "alpha": 0.1,
        "tile_size": preset.image_size,
        "max_grid": [4, 4],
        "thumbnail": "first",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
