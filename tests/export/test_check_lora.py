"""A bundle exported with a LoRA, beside its checkpoint."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from handlens_export.check import check
from handlens_export.pipeline import export
from handlens_export.recipe import Recipe

MODULE = "model.layers.0.self_attn.q_proj"


def test_a_bundle_with_a_lora_answers_like_its_checkpoint_with_the_lora_only(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint("llama", tmp_path / "checkpoint")
    rows, columns = load_file(checkpoint / "model.safetensors")[f"{MODULE}.weight"].shape
    lora, dice = tmp_path / "lora", torch.Generator().manual_seed(0)
    lora.mkdir()
    pair = {
        f"base_model.model.{MODULE}.lora_A.weight": torch.randn(2, columns, generator=dice),
        f"base_model.model.{MODULE}.lora_B.weight": torch.randn(rows, 2, generator=dice),
    }
    save_file(pair, lora / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none", "init_lora_weights": True}
    (lora / "adapter_config.json").write_text(json.dumps(settings))

    export(checkpoint, tmp_path / "bundle", Recipe(backends=("onnx",), kv="float", context=64), lora=lora)
    assert check(tmp_path / "bundle", checkpoint, lora=lora).passed
    assert not check(tmp_path / "bundle", checkpoint).passed
