"""The trained reader as an ordinary checkpoint folder: what `handlens export` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, SiglipVisionConfig

from handlens_export.errors import CheckpointError
from handlens_export.reader.model import Reader, text_config, vision_config
from handlens_export.reader.rule import MAX_GRID, RULE
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.tokenizer import CHAT_TEMPLATE, END, IMAGE, build

TIED = "language_model.lm_head.weight"


def save(reader: Reader, folder: Path) -> None:
    """Write config, tokenizer, chat template, image rule and bfloat16 weights into `folder`, made where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    ids = tokenizer.get_vocab()
    _write(folder / "config.json", _config(reader.sizes, ids))
    _write(
        folder / "preprocessor_config.json",
        {
            "tiling": RULE.tiling,
            "alpha": RULE.alpha,
            "tile_size": RULE.tile_size,
            "max_grid": list(MAX_GRID),
            "thumbnail": RULE.thumbnail,
            "row_end": RULE.row_end,
            "resample": 3,
            "image_mean": list(RULE.mean),
            "image_std": list(RULE.std),
            "rescale_factor": RULE.rescale,
        },
    )
    _write(folder / "generation_config.json", {"eos_token_id": [ids[END]], "pad_token_id": ids[END]})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": reader.sizes.context,
            "eos_token": END,
            "pad_token": END,
            "image_token": IMAGE,
        },
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in reader.state_dict().items()
        if name != TIED
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> Reader:
    """The reader of a folder that `save` wrote. Raises CheckpointError where there is none."""
    try:
        reader = Reader(_sizes(json.loads((folder / "config.json").read_text())))
        weights = load_file(folder / "model.safetensors")
        reader.load_state_dict({**weights, TIED: weights["language_model.model.embed_tokens.weight"]})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not hold a reader; give a folder that training wrote.") from error
    return reader


def _sizes(config: dict[str, Any]) -> Sizes:
    """What `_config` states."""
    vision, text = SiglipVisionConfig(**config["vision_config"]), LlamaConfig(**config["text_config"])
    return Sizes(
        tile=vision.image_size,
        patch=vision.patch_size,
        vision_width=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        mlp=text.intermediate_size,
        context=text.max_position_embeddings,
        downsample=config["downsample_factor"],
    )


def _config(sizes: Sizes, ids: dict[str, int]) -> dict[str, Any]:
    vision, text = (
        {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
        for config in (vision_config(sizes), text_config(sizes))
    )
    return {
        "architectures": ["BlueLMVForConditionalGeneration"],
        "model_type": "bluelm_v",
        "dtype": "bfloat16",
        "downsample_factor": sizes.downsample,
        "image_token_id": ids[IMAGE],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "vision_config": vision,
        "text_config": text,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
