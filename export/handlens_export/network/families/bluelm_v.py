"""BlueLM-V, our own layout of BlueLM-V-3B's design (sections 3.1 and 3.3): no public weights have one to follow.

config.json has `vision_config` (as SiglipVisionModel's), `text_config` (as LlamaForCausalLM's), `downsample_factor`,
`projector_hidden_act` and `image_token_id`; preprocessor_config.json has the tiling rule:

    {"tiling": "relaxed", "alpha": 0.1, "tile_size": 384, "max_grid": [4, 4], "thumbnail": "first",
     "row_end": "", "resample": 3, "image_mean": […], "image_std": […], "rescale_factor": 0.00392…}

`row_end` is text behind each row of tiles in the prompt: without it, a decoder must find out from the tiles themselves
whether six of them are two rows or three (LLaVA-NeXT and Idefics3 mark a row's end too).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from transformers.configuration_utils import PreTrainedConfig

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.network.chat import chat
from handlens_export.network.config import NetworkConfig, ProjectorConfig
from handlens_export.network.families import _images
from handlens_export.network.families._decoder import Names, decoder_names
from handlens_export.network.families._fields import Fields, completed
from handlens_export.network.families._siglip import vision, vision_names
from handlens_export.network.families.llama import llama_decoder
from handlens_runtime.images.tiling import grids_up_to
from handlens_runtime.manifest import ImageRule, TilingRule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["chat", "config", "image_rule", "tensor_names", "transform"]

OWN = frozenset({"vision_config", "text_config", "downsample_factor", "projector_hidden_act"})
DEFAULTS: dict[str, Any] = {"downsample_factor": 2, "projector_hidden_act": "gelu"}
PROCESSOR_DEFAULTS: dict[str, Any] = {
    "tiling": "relaxed",
    "alpha": 0.1,
    "max_grid": [4, 4],
    "thumbnail": "first",
    "row_end": "",
    "resample": 3,
}
PROCESSOR_FIELDS = frozenset(
    {
        *(*PROCESSOR_DEFAULTS, "tile_size", "image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize"),
        *("image_processor_type", "processor_class", "do_resize", "do_convert_rgb"),
    }
)
THUMBNAILS = ("none", "first", "last")


def config(hf: dict[str, Any]) -> NetworkConfig:
    """Sizes and choices from config.json. Raises UnsupportedError, CheckpointError."""
    parts = {name: hf.get(name) for name in ("vision_config", "text_config")}
    for name, kind in (("vision_config", "siglip_vision_model"), ("text_config", "llama")):
        part = parts[name]
        if not isinstance(part, dict) or part.get("model_type", kind) != kind:
            raise UnsupportedError(
                f"config.json of a bluelm_v has {name} {part!r}; expected the fields of a {kind} model."
            )
    top = Fields(PreTrainedConfig(**{**DEFAULTS, **hf}), hf, inert=OWN)
    eye_given, text_given = parts["vision_config"] or {}, parts["text_config"] or {}
    vision_fields = Fields(
        completed("siglip_vision_model", eye_given), eye_given, "vision_config.", frozenset({"vision_use_head"})
    )
    text = Fields(completed("llama", text_given), text_given, "text_config.")
    eye, decoder = vision(vision_fields), llama_decoder(text, tied=text.flag("tie_word_embeddings"))
    factor = top.integer("downsample_factor")
    if factor > eye.grid:
        raise top.refusal("downsample_factor", f"at most the {eye.grid} patches along a tile's side")
    activation = top.activation("projector_hidden_act")
    projector = ProjectorConfig("downsample_mlp", eye.width, decoder.width, factor, activation)
    return NetworkConfig("bluelm_v", decoder, eye, projector)


def tensor_names(config: NetworkConfig) -> Names:
    """Our parameter names to the checkpoint's; transformers 4 nests the encoder one deeper."""
    assert config.vision is not None
    names = {
        **decoder_names(config.decoder, ("language_model.model.",), ("language_model.lm_head.weight",)),
        **vision_names(config.vision, ("vision_tower.", "vision_tower.vision_model.")),
    }
    for kind in ("weight", "bias"):
        names[f"projector.downsampler.{kind}"] = (f"downsampler.{kind}",)
        for linear in ("fc1", "fc2"):
            names[f"projector.{linear}.{kind}"] = (f"projector.{linear}.{kind}",)
    return names


def transform(name: str, tensor: Tensor, config: NetworkConfig) -> Tensor:
    """Tensors are used as they are stored."""
    return tensor


def image_rule(checkpoint: Checkpoint, config: NetworkConfig) -> ImageRule:
    """The rule that preprocessor_config.json states. Raises UnsupportedError, CheckpointError."""
    assert config.vision is not None
    given = _images.settings(checkpoint, PROCESSOR_DEFAULTS)
    unknown = given.keys() - PROCESSOR_FIELDS
    if unknown:
        raise UnsupportedError(
            f"preprocessor_config.json of a bluelm_v has {', '.join(sorted(unknown))}, which HandLens does not know; "
            "remove it if tiling is the same without it."
        )
    tile = config.vision.image_size
    _images.must_agree("tile_size", given.get("tile_size", tile), tile)
    tiling: TilingRule = _choice(given, "tiling", tuple(name for name in get_args(TilingRule) if name != "idefics3"))
    thumbnail: Literal["none", "first", "last"] = _choice(given, "thumbnail", THUMBNAILS)
    columns, rows = (1, 1) if tiling == "single" else _max_grid(given["max_grid"])
    return ImageRule(
        tiling=tiling,
        tile_size=tile,
        max_tiles=columns * rows,
        grids=grids_up_to(columns, rows),
        alpha=float(given["alpha"]),
        thumbnail=thumbnail,
        tokens_per_tile=config.tokens_per_tile,
        image_token=_images.token_of(checkpoint, checkpoint.config.get("image_token_id"), config),
        placeholder="<image>",
        row_end=_text(given, "row_end"),
        **_images.pixels(given),
    )


def _choice(given: dict[str, Any], name: str, allowed: tuple[str, ...]) -> Any:
    if given[name] not in allowed:
        raise UnsupportedError(
            f"preprocessor_config.json's {name} is {given[name]!r}; expected one of {', '.join(allowed)}."
        )
    return given[name]


def _text(given: dict[str, Any], name: str) -> str:
    if not isinstance(given[name], str):
        raise CheckpointError(f"preprocessor_config.json's {name} is {given[name]!r}; expected a text.")
    return str(given[name])


def _max_grid(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise CheckpointError(f"preprocessor_config.json's max_grid is {value!r}; expected [columns, rows].")
    return value[0], value[1]
