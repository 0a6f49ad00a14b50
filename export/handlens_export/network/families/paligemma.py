"""PaliGemma, the first: SigLIP, one linear, a Gemma that reads its whole prompt in both directions."""

from __future__ import annotations

from typing import Any

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.errors import UnsupportedError
from handlens_export.network import chat as chats
from handlens_export.network.config import NetworkConfig, ProjectorConfig
from handlens_export.network.families import _images, gemma
from handlens_export.network.families._decoder import Names, decoder_names
from handlens_export.network.families._fields import Fields, completed
from handlens_export.network.families._siglip import vision, vision_names
from handlens_export.network.families.gemma import transform
from handlens_runtime.manifest import Chat, ImageRule

__all__ = ["chat", "config", "image_rule", "tensor_names", "transform"]

TEMPLATE = (
    "{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}"
    "{{- raise_exception('PaliGemma takes one question and no system message') -}}{%- endif -%}"
    "{%- for part in messages[0]['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}"
    "{{- bos_token -}}"
    "{%- for part in messages[0]['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{{- '\\n' -}}"
)
"""What PaliGemmaProcessor writes: image tokens, begin of text, the question, a line end."""
IMAGE_TOKEN_ID = 256000
"""transformers' default."""
PROCESSOR_DEFAULTS: dict[str, Any] = {"resample": 3, "size": {"height": 224, "width": 224}}
TOP_INERT = frozenset({"ignore_index"})
VISION_INERT = frozenset({"projection_dim", "projector_hidden_act", "num_positions", "vocab_size", "vision_use_head"})
"""The projector is one linear of vision_config's width to text_config's, whatever else is written; checked below."""


def config(hf: dict[str, Any]) -> NetworkConfig:
    """Sizes and choices from config.json. Raises UnsupportedError, CheckpointError.

    transformers 5 scales token embeddings by sqrt(width) and leaves image rows as the projector gives them;
    transformers 4 divided those by sqrt(width) and multiplied both: the same.
    """
    given: dict[str, Any] = hf.get("text_config") or {}
    if given.get("model_type", "gemma") != "gemma":
        raise UnsupportedError(
            f"config.json is a PaliGemma with text_config.model_type {given['model_type']!r} (PaliGemma 2 has gemma2); "
            "HandLens has the first PaliGemma, whose decoder is gemma: export one of those."
        )
    whole = completed("paligemma", hf)
    top = Fields(whole, hf, inert=TOP_INERT)
    eye_given: dict[str, Any] = hf.get("vision_config") or {}
    eye_fields = Fields(whole.vision_config, eye_given, "vision_config.", VISION_INERT)
    eye_fields.must("model_type", "siglip_vision_model")
    text = Fields(whole.text_config, given, "text_config.", gemma.INERT)
    eye = vision(eye_fields)
    decoder = gemma.gemma_decoder(text, tied=top.flag("tie_word_embeddings"), causal=False)
    eye_fields.must("projection_dim", decoder.width)
    return NetworkConfig("paligemma", decoder, eye, ProjectorConfig("linear", eye.width, decoder.width))


def tensor_names(config: NetworkConfig) -> Names:
    """Our parameter names to the checkpoint's: as published, and as transformers' own modules are named."""
    assert config.vision is not None
    decoders = ("language_model.model.", "model.language_model.")
    towers = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower.")
    names = {
        **decoder_names(config.decoder, decoders, ("language_model.lm_head.weight", "lm_head.weight")),
        **vision_names(config.vision, towers),
    }
    for kind in ("weight", "bias"):
        linear = f"multi_modal_projector.linear.{kind}"
        names[f"projector.linear.{kind}"] = (linear, f"model.{linear}")
    return names


def image_rule(checkpoint: Checkpoint, config: NetworkConfig) -> ImageRule:
    """One square tile, resized without regard to aspect. Raises UnsupportedError, CheckpointError."""
    assert config.vision is not None
    given = _images.settings(checkpoint, PROCESSOR_DEFAULTS)
    _images.must(given, "do_resize", True)
    tile = config.vision.image_size
    _images.must_agree("size", given["size"], {"height": tile, "width": tile})
    tokens = given.get("image_seq_length", config.tokens_per_tile)
    _images.must_agree("image_seq_length", tokens, config.tokens_per_tile)
    return ImageRule(
        tiling="single",
        tile_size=tile,
        max_tiles=1,
        tokens_per_tile=config.tokens_per_tile,
        image_token=_images.token_of(checkpoint, checkpoint.config.get("image_token_index", IMAGE_TOKEN_ID), config),
        placeholder="<image>",
        **_images.pixels(given),
    )


def chat(checkpoint: Checkpoint) -> Chat:
    """One question; published checkpoints have no template, their processor writes the prompt."""
    return chats.from_template(checkpoint, TEMPLATE, multi_turn=False)
