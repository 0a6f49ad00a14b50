"""A PEFT adapter merged as tensors are read, against plain matrix arithmetic on the same files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from handlens_export.checkpoint.read import read
from handlens_export.errors import CheckpointError

RANK = 4
QUERY = "model.layers.0.self_attn.q_proj"
GATE = "model.layers.1.mlp.gate_proj"


@pytest.fixture
def base(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """An untied llama."""
    return tiny_checkpoint("llama", tmp_path / "base", 0)


def pair(folder: Path, module: str, tensor: str, seed: int = 0, rank: int = RANK) -> dict[str, Tensor]:
    """Random A and B for `module`, shaped for the base's `tensor`."""
    rows, columns = read(folder).tensors.shape(tensor)
    dice = torch.Generator().manual_seed(seed)
    return {
        f"base_model.model.{module}.lora_A.weight": torch.randn(rank, columns, generator=dice),
        f"base_model.model.{module}.lora_B.weight": torch.randn(rows, rank, generator=dice),
    }


def adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "bias": "none", "init_lora_weights": True} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def product(tensors: dict[str, Tensor], module: str) -> Tensor:
    up, down = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA")
    return up @ down


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 16 / 4),
        ({"use_rslora": True}, 16 / 2),
        ({"alpha_pattern": {"q_proj": 3}}, 3 / 4),
        ({"alpha_pattern": {r"layers\.0\..*_proj": 8, "q_proj": 2}}, 8 / 4),
        ({"alpha_pattern": {"proj": 3, "xq_proj": 3}}, 16 / 4),
    ],
)
def test_merged_is_base_plus_scaled_product(config: dict[str, Any], scaling: float, base: Path, tmp_path: Path) -> None:
    tensors = pair(base, QUERY, f"{QUERY}.weight")
    merged = read(base, adapter(tmp_path / "lora", tensors, **config)).tensors
    plain = read(base).tensors
    expected = plain.read(f"{QUERY}.weight") + scaling * product(tensors, QUERY)
    assert torch.allclose(merged.read(f"{QUERY}.weight"), expected, atol=1e-5)
    for name in plain.names():
        if name != f"{QUERY}.weight":
            assert torch.equal(merged.read(name), plain.read(name))
    assert list(merged.names()) == list(plain.names())
    assert merged.shape(f"{QUERY}.weight") == plain.shape(f"{QUERY}.weight")


def test_a_module_may_have_its_own_rank(base: Path, tmp_path: Path) -> None:
    tensors = pair(base, QUERY, f"{QUERY}.weight") | pair(base, GATE, f"{GATE}.weight", seed=1, rank=2)
    lora = adapter(tmp_path / "lora", tensors, rank_pattern={"gate_proj": 2}, use_rslora=True)
    merged, plain = read(base, lora).tensors, read(base).tensors
    for module, rank in ((QUERY, RANK), (GATE, 2)):
        expected = plain.read(f"{module}.weight") + 16 / math.sqrt(rank) * product(tensors, module)
        assert torch.allclose(merged.read(f"{module}.weight"), expected, atol=1e-5)


def test_an_adapter_in_the_folder_is_found(base: Path) -> None:
    tensors = pair(base, QUERY, f"{QUERY}.weight")
    before = read(base).tensors.read(f"{QUERY}.weight")
    adapter(base, tensors)
    assert torch.allclose(read(base).tensors.read(f"{QUERY}.weight"), before + 4 * product(tensors, QUERY), atol=1e-5)
    assert torch.equal(read(base, base).tensors.read(f"{QUERY}.weight"), read(base).tensors.read(f"{QUERY}.weight"))


def test_two_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    tensors = pair(base, QUERY, f"{QUERY}.weight")
    other = adapter(tmp_path / "lora", tensors)
    adapter(base, tensors)
    with pytest.raises(CheckpointError, match="move one of them away"):
        read(base, other)


def test_half_precision_bases_merge_in_float32(base: Path, tmp_path: Path) -> None:
    plain = read(base).tensors
    weights = {name: plain.read(name).to(torch.bfloat16) for name in plain.names()}
    for file in base.glob("model*.safetensors*"):
        file.unlink()
    save_file(weights, base / "model.safetensors")
    tensors = pair(base, QUERY, f"{QUERY}.weight")
    merged = read(base, adapter(tmp_path / "lora", tensors, lora_alpha=0.001)).tensors.read(f"{QUERY}.weight")
    expected = weights[f"{QUERY}.weight"].float() + 0.001 / 4 * product(tensors, QUERY)
    assert merged.dtype == torch.float32 and torch.allclose(merged, expected, atol=1e-7)


def test_embedding_pairs_and_whole_modules(base: Path, tmp_path: Path) -> None:
    plain = read(base).tensors
    vocab, width = plain.shape("model.embed_tokens.weight")
    down, up = torch.randn(RANK, vocab), torch.randn(width, RANK)
    head = torch.randn(plain.shape("lm_head.weight"))
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": down,
        "base_model.model.model.embed_tokens.lora_embedding_B": up,
        "base_model.model.lm_head.weight": head,
    }
    merged = read(base, adapter(tmp_path / "lora", tensors, modules_to_save=["lm_head"])).tensors
    expected = plain.read("model.embed_tokens.weight") + 4 * (up @ down).T
    assert torch.allclose(merged.read("model.embed_tokens.weight"), expected, atol=1e-5)
    assert torch.equal(merged.read("lm_head.weight"), head)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert merged.digest(name) != plain.digest(name)


@pytest.mark.parametrize(
    ("family", "module", "tensor"),
    [
        ("paligemma", "model.language_model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"),
        ("paligemma", "language_model.model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"),
        ("paligemma", "model.multi_modal_projector.linear", "multi_modal_projector.linear"),
        ("smolvlm", "model.text_model.layers.0.mlp.up_proj", "model.text_model.layers.0.mlp.up_proj"),
        ("bluelm_v", "model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"),
    ],
)
def test_names_in_memory_find_names_in_files(
    family: str, module: str, tensor: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(family, tmp_path / "base", 0)
    tensors = pair(folder, module, f"{tensor}.weight")
    merged, plain = read(folder, adapter(tmp_path / "lora", tensors)).tensors, read(folder).tensors
    expected = plain.read(f"{tensor}.weight").float() + 4 * product(tensors, module)
    assert torch.allclose(merged.read(f"{tensor}.weight"), expected, atol=1e-4)


def test_digest_includes_adapter_and_scaling(base: Path, tmp_path: Path) -> None:
    name = f"{QUERY}.weight"
    first = pair(base, QUERY, name)
    sources = [
        read(base).tensors,
        read(base, adapter(tmp_path / "a", first)).tensors,
        read(base, adapter(tmp_path / "b", first, lora_alpha=8)).tensors,
        read(base, adapter(tmp_path / "c", pair(base, QUERY, name, seed=1))).tensors,
    ]
    assert len({source.digest(name) for source in sources}) == 4
    assert len({source.digest(f"{GATE}.weight") for source in sources}) == 1
    assert read(base, tmp_path / "a").tensors.digest(name) == sources[1].digest(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "sets use_dora to True"),
        ({"bias": "all"}, "sets bias to all"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "sets init_lora_weights to pissa_niter_4"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"r": 8}, "rank 8 .* has rank 4"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 2 .* has rank 4"),
        ({"lora_alpha": None}, "alpha None"),
    ],
)
def test_settings_that_merge_differently_are_refused(
    config: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    lora = adapter(tmp_path / "lora", pair(base, QUERY, f"{QUERY}.weight"), **config)
    with pytest.raises(CheckpointError, match=message):
        read(base, lora)


def test_no_tensor_is_ignored(base: Path, tmp_path: Path) -> None:
    good = pair(base, QUERY, f"{QUERY}.weight")
    down = f"base_model.model.{QUERY}.lora_A.weight"
    cases: tuple[tuple[dict[str, Tensor], str], ...] = (
        (good | pair(base, "model.layers.9.mlp.up_proj", f"{GATE}.weight"), "belongs to no tensor"),
        (good | {f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(2)}, "belongs to no tensor"),
        ({down: good[down]}, "without its other half"),
        (good | {down: torch.ones(RANK, 3)}, r"has .*lora_A\.weight for a matrix of shape"),
        ({"base_model.model.lm_head.weight": torch.ones(2, 2)}, "for a matrix of shape"),
        ({}, "has no tensors"),
    )
    for tensors, message in cases:
        with pytest.raises(CheckpointError, match=message):
            read(base, adapter(tmp_path / "lora", tensors))


def test_a_shared_matrix_is_not_adapted(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = {"base_model.model.model.embed_tokens.weight": read(base).tensors.read("model.embed_tokens.weight")}
    with pytest.raises(CheckpointError, match="one matrix for embedding and head"):
        read(base, adapter(tmp_path / "lora", tensors))


def test_folders_that_hold_no_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        read(base, tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        read(base, tmp_path)
    lora = adapter(tmp_path / "lora", pair(base, QUERY, f"{QUERY}.weight"), base_model_name_or_path="org/base")
    with pytest.raises(CheckpointError, match="give the folder of org/base as the checkpoint and this one with --lora"):
        read(lora)
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle"):
        read(base, lora)
