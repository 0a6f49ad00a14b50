"""Preset checkpoints: whole, the same for the same seed, and of the sizes they are named for."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from handlens_export.checkpoint.read import read
from handlens_export.errors import TargetError, UnsupportedError
from handlens_export.presets import PRESETS, init, write
from handlens_export.presets.sizes import FULL, NANO, config, tensors
from handlens_export.presets.tokenizer import CHAT_TEMPLATE, SPECIAL, build


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preset") / "nano"
    init("bluelm-v-nano", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_same_seed_same_bytes(nano: Path, tmp_path: Path) -> None:
    init("bluelm-v-nano", tmp_path / "elsewhere" / "again")
    init("bluelm-v-nano", tmp_path / "other", seed=1)
    assert contents(tmp_path / "elsewhere" / "again") == contents(nano)
    name = "model.safetensors"
    assert contents(tmp_path / "other")[name] != contents(nano)[name]


def test_read_back_whole(nano: Path) -> None:
    checkpoint = read(nano)
    specs = {spec.name: spec.shape for spec in tensors(NANO)}
    assert {name: checkpoint.tensors.shape(name) for name in checkpoint.tensors.names()} == specs
    assert checkpoint.config["model_type"] == "bluelm_v"
    assert checkpoint.generation_config["eos_token_id"] == [2, 0]
    assert checkpoint.processor["tiling"] == "relaxed" and checkpoint.processor["tile_size"] == 112
    assert checkpoint.chat_template == CHAT_TEMPLATE
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
    assert tokenizer.token_to_id("<image>") == checkpoint.config["image_token_id"]
    assert tokenizer.get_vocab_size() == checkpoint.config["text_config"]["vocab_size"]


def test_weights_are_sensible(nano: Path) -> None:
    source = read(nano).tensors
    assert torch.equal(source.read("language_model.model.norm.weight"), torch.ones(128))
    assert torch.equal(source.read("vision_tower.vision_model.post_layernorm.bias"), torch.zeros(64))
    weight = source.read("language_model.model.layers.0.mlp.down_proj.weight")
    assert abs(weight.mean()) < 0.01 and 0.9 < weight.std() * 256**0.5 < 1.1
    other = source.read("language_model.model.layers.1.mlp.down_proj.weight")
    assert not torch.equal(weight, other)


def test_the_decoder_is_transformers_llama(nano: Path) -> None:
    checkpoint = read(nano)
    model = LlamaForCausalLM(LlamaConfig(**checkpoint.config["text_config"]))
    prefix = "language_model."
    weights = {
        name.removeprefix(prefix): checkpoint.tensors.read(name)
        for name in checkpoint.tensors.names()
        if name.startswith(prefix)
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])


def test_the_full_size_is_the_references() -> None:
    specs = list(tensors(FULL))
    language = sum(spec.count for spec in specs if spec.name.startswith("language_model."))
    vision = sum(spec.count for spec in specs if spec.name.startswith("vision_tower."))
    assert 2.70e9 < language < 2.75e9 and 4.0e8 < vision < 4.3e8
    text = config(FULL, dict.fromkeys(SPECIAL, 0))["text_config"]
    wanted = {"num_hidden_layers": 36, "hidden_size": 2560, "intermediate_size": 6912, "vocab_size": 100_352}
    assert {key: text[key] for key in wanted} == wanted
    assert (text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]) == (20, 4, 128)


def test_shards_stay_below_their_bound(monkeypatch: pytest.MonkeyPatch, nano: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(write, "SHARD_BYTES", 600_000)
    seen: list[float] = []
    init("bluelm-v-nano", tmp_path / "sharded", progress=lambda stage, share: seen.append(share))
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 620_000 for shard in shards)
    assert seen == sorted(seen) and seen[-1] == 1
    whole, sharded = read(nano).tensors, read(tmp_path / "sharded").tensors
    assert all(torch.equal(whole.read(name), sharded.read(name)) for name in whole.names())
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * prod(whole.shape(name)) for name in whole.names())


def test_an_existing_target_needs_force(nano: Path, tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    init("bluelm-v-nano", target, seed=1)
    before = contents(target)
    with pytest.raises(TargetError, match="--force"):
        init("bluelm-v-nano", target)
    assert contents(target) == before
    init("bluelm-v-nano", target, force=True)
    assert contents(target) == contents(nano)
    assert [entry.name for entry in tmp_path.iterdir()] == ["ckpt"]


def test_force_spares_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TargetError, match="is not a checkpoint folder"):
        init("bluelm-v-nano", tmp_path, force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_things_as_they_were(existing: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    if existing:
        init("bluelm-v-nano", target, seed=1)
    before = contents(target) if existing else {}

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full_disk)
    with pytest.raises(TargetError, match="No space left on device"):
        init("bluelm-v-nano", target, force=True)
    assert (contents(target) if target.exists() else {}) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["ckpt"] if existing else [])


def test_an_unknown_preset_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=", ".join(PRESETS)):
        init("bluelm-v-7b", tmp_path / "ckpt")


def test_tokenizer_of_any_size_round_trips() -> None:
    text = "<|im_start|>user\n<image>\nWhat is 日本語 🎉?\n\n  I'll see 42 cats.<|im_end|>\n"
    for size in (400, 1024, 100_352):
        tokenizer = build(size)
        assert tokenizer.get_vocab_size() == size
        encoding = tokenizer.encode(text)
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
        assert encoding.ids.count(tokenizer.token_to_id("<image>")) == 1
        assert tokenizer.decode([size - 1]).strip()


def test_chat_template_takes_text_and_parts() -> None:
    template = jinja2.Environment(autoescape=False).from_string(CHAT_TEMPLATE)
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )
