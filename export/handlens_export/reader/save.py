"""The trained reader as an ordinary checkpoint folder: what `handlens export` takes.

python -m handlens_export.reader.save STATE.pt -o FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from handlens_export.errors import CheckpointError, ExportError
from handlens_export.reader import state
from handlens_export.reader.batches import MAX_GRID, RULE
from handlens_export.reader.model import Networks, Reader, Sizes, text_config, vision_config
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


def load(reader: Reader, folder: Path) -> None:
    """Give a reader the weights of a folder that `save` wrote. Raises CheckpointError where there are none."""
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
        reader.load_state_dict({**weights, TIED: weights["language_model.model.embed_tokens.weight"]})
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold the weights of a reader; give a folder that save wrote."
        ) from error


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


def main(arguments: list[str] | None = None) -> int:
    """Save the weights of a training state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    networks = Networks(Sizes())
    try:
        networks.load_state_dict(state.read(options.state)["modules"])
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    save(networks.reader, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
