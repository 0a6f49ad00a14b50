"""A checkpoint's tensors find their places in every layout on disk, and none is missed, misshapen or left over."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from handlens_export.checkpoint.read import read
from handlens_export.errors import CheckpointError
from handlens_export.network.families import find
from handlens_export.network.load import Parameters, load
from handlens_export.network.network import Network

MakeCheckpoint = Callable[..., Path]
Rename = Callable[[str], str]

OTHER_LAYOUTS: dict[str, tuple[str, Rename]] = {
    "bare LlamaModel": ("llama", lambda name: name.removeprefix("model.")),
    "PaliGemma by transformers 4": (
        "paligemma",
        lambda name: re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name),
    ),
    "PaliGemma by its modules": (
        "paligemma",
        lambda name: "model." + name.replace("language_model.model.", "language_model."),
    ),
    "bluelm_v by transformers 4": (
        "bluelm_v",
        lambda name: re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name),
    ),
}


def parameters(folder: Path) -> Parameters:
    checkpoint = read(folder)
    family = find(checkpoint.config["model_type"])
    return Parameters(checkpoint, family, family.config(checkpoint.config))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_other_layouts_on_disk_give_the_same_parameters(
    layout: str, tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    family, rename = OTHER_LAYOUTS[layout]
    usual = parameters(tiny_checkpoint(family, tmp_path / "usual"))
    other = tiny_checkpoint(family, tmp_path / "other")
    rewrite(other, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    found = parameters(other)
    assert found.sources != usual.sources
    for name in usual.shapes:
        assert torch.equal(found.read(name), usual.read(name))


def test_missing_tensor_is_named_with_its_shape(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint("smolvlm", tmp_path)
    lost = "model.text_model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != lost})
    with pytest.raises(CheckpointError, match=re.escape(f"{lost} (128, 64)")):
        parameters(folder)


def test_wrong_shape_is_named_with_both_shapes(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint("llama", tmp_path)
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(folder, lambda tensors: {**tensors, name: tensors[name][:16].contiguous()})
    with pytest.raises(CheckpointError, match=re.escape(name) + r".*\(16, 64\).*\(32, 64\)"):
        parameters(folder)


def test_tensor_that_nothing_uses_is_named(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    """Biases that config.json does not mention: loaded without them, the network would answer wrong."""
    folder = tiny_checkpoint("llama", tmp_path)
    rewrite(folder, lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.q_proj\.bias"):
        parameters(folder)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.embeddings.position_ids", "vision_tower.head.probe"],
)
def test_tensor_that_is_known_to_be_of_no_use_is_passed_over(
    name: str, tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    folder = tiny_checkpoint("llama", tmp_path)
    shapes = parameters(folder).shapes
    rewrite(folder, lambda tensors: {**tensors, name: torch.ones(4)})
    assert parameters(folder).shapes == shapes


def test_tied_head_may_be_saved_too_but_not_be_another(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint("qwen2", tmp_path, 1)
    table = "model.embed_tokens.weight"
    rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": tensors[table].clone()})
    found = parameters(folder)
    assert torch.equal(found.read("decoder.head.weight"), found.read("decoder.embedding.table.weight"))
    rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": tensors[table] + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        parameters(folder)


def test_half_precision_weights_become_float32(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint("gemma", tmp_path)
    norm = "model.layers.0.input_layernorm.weight"
    stored = load_file(folder / "model.safetensors")[norm].bfloat16()
    rewrite(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    weight = parameters(folder).read("decoder.layers.0.attention_norm.weight")
    assert weight.dtype == torch.float32
    # Gemma's 1 is added after widening: in bfloat16 the sum would lose most of the weight's bits.
    assert torch.equal(weight, stored.float() + 1)


def test_load_fills_every_parameter(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = read(tiny_checkpoint("bluelm_v", tmp_path))
    family = find("bluelm_v")
    network = Network(family.config(checkpoint.config))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    load(network, checkpoint, family)
    assert not [name for name, parameter in network.named_parameters() if parameter.isnan().any()]
