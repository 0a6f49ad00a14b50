"""The sizes and choices of a network, as frozen dataclasses; what a family translates a config.json into.

A field here changes the mathematics. A checkpoint's field that has no place here is refused by the family, by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    """`llama3` only."""
    high_freq_factor: float = 4.0
    """`llama3` only."""
    original_context: int = 8192
    """`llama3` only: positions the checkpoint was first trained on."""


@dataclass(frozen=True)
class DecoderConfig:
    """A llama-type decoder."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    activation: Activation = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    """Bias on the attention's output projection."""
    mlp_bias: bool = False
    embedding_scale: float = 1.0
    """Multiplies token embeddings, not image rows: sqrt(width) for Gemma."""
    tied_head: bool = False
    attention_scale: float | None = None
    """Multiplies q k^T; None is head_dim**-0.5."""
    causal: bool = True
    """False: a prompt's tokens attend to the whole prompt (PaliGemma's prefix)."""


@dataclass(frozen=True)
class VisionConfig:
    """A SigLIP-type encoder: patch embedding, learned positions, pre-norm blocks, final norm."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    norm_eps: float
    activation: Activation = "gelu_tanh"

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ProjectorConfig:
    """From the encoder's patches to the decoder's embeddings."""

    kind: Literal["downsample_mlp", "pixel_shuffle", "linear"]
    """`downsample_mlp`: bluelm_v; `pixel_shuffle`: idefics3 and smolvlm; `linear`: paligemma."""
    vision_width: int
    width: int
    factor: int = 1
    """Patches merged along a side."""
    activation: Activation = "gelu"


@dataclass(frozen=True)
class NetworkConfig:
    """A whole network; text-only without vision and projector."""

    family: str
    decoder: DecoderConfig
    vision: VisionConfig | None = None
    projector: ProjectorConfig | None = None

    @property
    def tokens_per_tile(self) -> int:
        """Embeddings that one tile becomes. A side that the factor does not divide is padded (27 -> 28)."""
        if self.vision is None or self.projector is None:
            return 0
        return (-(-self.vision.grid // self.projector.factor)) ** 2
