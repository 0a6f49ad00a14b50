"""SmolVLM and SmolVLM2 (pictures, not video): SigLIP, pixel shuffle and one linear, a Llama; Idefics3's design."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.errors import UnsupportedError
from handlens_export.network.chat import chat
from handlens_export.network.config import NetworkConfig, ProjectorConfig
from handlens_export.network.families import _images
from handlens_export.network.families._decoder import Names, decoder_names
from handlens_export.network.families._fields import Fields, completed
from handlens_export.network.families._siglip import vision, vision_names
from handlens_export.network.families.llama import llama_decoder
from handlens_runtime.manifest import ImageRule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["chat", "config", "idefics_config", "image_rule", "tensor_names", "transform"]

TOP_INERT = frozenset({"vocab_size"})
"""The decoder's vocabulary is text_config's."""
TEXT_INERT = frozenset({"pixel_shuffle_factor"})
"""A copy of scale_factor, written by the training code."""
VISION_INERT = frozenset({"max_image_size", "size", "use_base_siglip"})
"""The image processor's, which has its own file."""
IMAGE_TOKEN_ID = 128257
"""transformers' default."""
LARGEST_SIDE = 4096
"""To which transformers' image processor shrinks whatever `size` asks for."""
PROCESSOR_DEFAULTS: dict[str, Any] = {
    "resample": 1,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
}


def config(hf: dict[str, Any]) -> NetworkConfig:
    """Sizes and choices from config.json. Raises UnsupportedError, CheckpointError."""
    return idefics_config("smolvlm", hf)


def idefics_config(family: str, hf: dict[str, Any]) -> NetworkConfig:
    """The config of a network of Idefics3's design."""
    whole = completed(family, hf)
    top = Fields(whole, hf, inert=TOP_INERT)
    given: dict[str, Any] = hf.get("text_config") or {}
    text = Fields(whole.text_config, given, "text_config.", TEXT_INERT)
    text.must("model_type", "llama")
    eye = vision(Fields(whole.vision_config, hf.get("vision_config") or {}, "vision_config.", VISION_INERT))
    factor = top.integer("scale_factor")
    if eye.grid % factor:
        raise top.refusal("scale_factor", f"a number that divides the {eye.grid} patches along a tile's side")
    decoder = llama_decoder(text, tied=top.flag("tie_word_embeddings"))
    projector = ProjectorConfig("pixel_shuffle", eye.width, decoder.width, factor)
    return NetworkConfig(family, decoder, eye, projector)


def tensor_names(config: NetworkConfig) -> Names:
    """Our parameter names to the checkpoint's."""
    assert config.vision is not None
    return {
        **decoder_names(config.decoder, ("model.text_model.",), ("lm_head.weight",)),
        **vision_names(config.vision, ("model.vision_model.",)),
        "projector.proj.weight": ("model.connector.modality_projection.proj.weight",),
    }


def transform(name: str, tensor: Tensor, config: NetworkConfig) -> Tensor:
    """Put position embeddings where transformers looks them up."""
    if name != "vision.position_embedding":
        return tensor
    assert config.vision is not None
    side = _positions(config.vision.grid)
    return tensor[(side[:, None] * config.vision.grid + side).flatten()]


def _positions(grid: int) -> Tensor:
    """The row of position embeddings that transformers takes for each patch along a side, (grid,) int64.

    It sorts the fraction i / grid into buckets of 1 / grid in float32. On most grids that gives 0..grid-1; on some
    (19, 25, 29, 31, …) rounding puts a patch one bucket too low, and a checkpoint was trained with that.
    """
    import torch  # not before weights are read: a plan has no need of it

    boundaries = torch.arange(1 / grid, 1.0, 1 / grid)
    fractions = torch.arange(grid, dtype=torch.float32) * (1.0 / torch.tensor(grid))
    return torch.bucketize(fractions.clamp(max=1.0 - 1e-6), boundaries, right=True)


def image_rule(checkpoint: Checkpoint, config: NetworkConfig) -> ImageRule:
    """Tiles and tokens as Idefics3's image processor makes them. Raises UnsupportedError, CheckpointError."""
    assert config.vision is not None
    given = _images.settings(checkpoint, PROCESSOR_DEFAULTS)
    for name in ("do_resize", "do_image_splitting"):
        _images.must(given, name, True)
    tile = config.vision.image_size
    _images.must_agree("max_image_size", given["max_image_size"], {"longest_edge": tile})
    _images.must_agree("image_seq_len", given.get("image_seq_len", config.tokens_per_tile), config.tokens_per_tile)
    longest = given["size"].get("longest_edge") if isinstance(given["size"], dict) else None
    if not isinstance(longest, int) or longest < 1:
        raise UnsupportedError(
            f"preprocessor_config.json's size is {given['size']!r}; HandLens has this family's longest_edge only."
        )
    side = -(-min(longest, LARGEST_SIDE) // tile)
    around = _images.named_token(checkpoint, "fake_image_token", "<fake_token_around_image>")
    whole = around + _images.named_token(checkpoint, "global_image_token", "<global-img>")
    return ImageRule(
        tiling="idefics3",
        tile_size=tile,
        max_tiles=side * side,
        thumbnail="last",
        longest_edge=longest,
        tokens_per_tile=config.tokens_per_tile,
        image_token=_images.token_of(checkpoint, checkpoint.config.get("image_token_id", IMAGE_TOKEN_ID), config),
        placeholder="<image>",
        tile_before=around + "<row_{row}_col_{col}>",
        row_end="\n",
        thumbnail_before="\n" + whole,
        single_before=whole,
        after=around,
        **_images.pixels(given),
    )
