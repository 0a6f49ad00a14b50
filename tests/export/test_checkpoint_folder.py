"""Folders as transformers saves them, read back; and each that is refused, in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from handlens_export.checkpoint.read import read
from handlens_export.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": 2,
}
FAMILIES = ("llama", "qwen2", "gemma", "smolvlm", "idefics3", "paligemma", "bluelm_v")
TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**SIZES))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A llama in two-kilobyte shards, with a tokenizer."""
    path = tmp_path / "ckpt"
    build("llama").save_pretrained(path, max_shard_size="4KB")
    put(path, "tokenizer.json", TOKENIZER)
    return path


def put(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shard", ["4KB", "1GB"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tensors_are_those_of_the_model(kind: str, shard: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(kind).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    put(tmp_path, "tokenizer.json", TOKENIZER)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "4KB")
    tensors = read(tmp_path).tensors
    expected = model.state_dict()
    assert set(tensors.names()) == set(expected)
    for name, value in expected.items():
        got = tensors.read(name)
        assert got.dtype == dtype and torch.equal(got, value)
        assert tensors.shape(name) == tuple(value.shape)
    with pytest.raises(KeyError):
        tensors.read("no.such.tensor")


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_whole(
    family: str, variant: int, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(family, tmp_path / "ckpt", variant)
    checkpoint = read(folder)
    stored = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    assert {name: checkpoint.tensors.shape(name) for name in checkpoint.tensors.names()} == {
        name: tuple(value.shape) for name, value in stored.items()
    }
    assert all(torch.equal(checkpoint.tensors.read(name), value) for name, value in stored.items())
    assert checkpoint.config["model_type"] == family
    assert Tokenizer.from_str(checkpoint.tokenizer_json).get_vocab_size() > 0
    assert all(isinstance(i, int) for i in checkpoint.generation_config["eos_token_id"])
    if family not in ("llama", "qwen2", "gemma"):
        assert checkpoint.processor["image_mean"] and "image_processor" not in checkpoint.processor
    if family != "paligemma":
        assert checkpoint.chat_template and "message" in checkpoint.chat_template


def test_digest_follows_type_shape_and_bytes(folder: Path, tmp_path: Path) -> None:
    weight, name = torch.arange(6, dtype=torch.float32), "w"
    digests = set()
    for i, value in enumerate((weight, weight.view(2, 3), weight.to(torch.bfloat16), weight + 1)):
        other = tmp_path / str(i)
        shutil.copytree(folder, other, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
        save_file({name: value}, other / "model.safetensors")
        digests.add(read(other).tensors.digest(name))
        assert read(other).tensors.digest(name) in digests
    assert len(digests) == 4


def test_float64_comes_as_float32(folder: Path) -> None:
    save_file({"w": torch.tensor([1.5], dtype=torch.float64)}, folder / "model.safetensors")
    assert read(folder).tensors.read("w").dtype == torch.float32


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": "JINJA", "tokenizer_config.json": {"chat_template": "T"}}, "JINJA"),
        ({"chat_template.json": {"chat_template": "J"}, "tokenizer_config.json": {"chat_template": "T"}}, "J"),
        ({"processor_config.json": {"chat_template": "P"}}, "P"),
        ({"tokenizer_config.json": {"chat_template": "T"}}, "T"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "only", "template": "O"}]}}, "O"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
                }
            },
            "D",
        ),
        ({}, None),
    ],
)
def test_chat_template_from_wherever_it_stands(files: dict[str, Any], expected: str | None, folder: Path) -> None:
    for name, value in files.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    assert read(folder).chat_template == expected


def test_special_tokens_are_plain_strings(folder: Path) -> None:
    put(folder, "special_tokens_map.json", {"bos_token": {"content": "<s>"}, "eos_token": "<old>"})
    put(folder, "tokenizer_config.json", {"eos_token": {"content": "</s>", "lstrip": False}})
    config = read(folder).tokenizer_config
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


@pytest.mark.parametrize(
    ("generation", "expected"), [(None, [2]), ({"eos_token_id": [5, 6]}, [5, 6]), ({"eos_token_id": 7}, [7])]
)
def test_end_tokens_are_a_list(generation: dict[str, Any] | None, expected: list[int], folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    if generation:
        put(folder, "generation_config.json", generation | {"temperature": 0.6})
    config = read(folder).generation_config
    assert config["eos_token_id"] == expected
    assert config.get("temperature") == (0.6 if generation else None)


def test_processor_layers(folder: Path) -> None:
    put(folder, "preprocessor_config.json", {"size": 1, "image_mean": [0.1]})
    put(folder, "processor_config.json", {"image_processor": {"image_mean": [0.5]}, "image_seq_len": 64})
    assert read(folder).processor == {"size": 1, "image_mean": [0.5], "image_seq_len": 64}


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def only(name: str, content: bytes = b"x") -> Callable[[Path], None]:
    """Leaves no safetensors, and `name` in their stead."""

    def change(folder: Path) -> None:
        for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
            file.unlink()
        (folder / name).write_bytes(content)

    return change


def quantized(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        put(folder, "config.json", json.loads((folder / "config.json").read_text()) | keys)

    return change


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (remove("config.json"), "save_pretrained"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
    "config too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json is not valid JSON"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json is not UTF-8"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json holds a JSON list"),
    "GPTQ": (quantized(quantization_config={"quant_method": "gptq"}), r"quantized already \(gptq\)"),
    "AWQ inside": (quantized(text_config={"quantization_config": {"quant_method": "awq"}}), r"already \(awq\)"),
    "bitsandbytes": (quantized(quantization_config={"quant_method": "bitsandbytes"}), r"\(bitsandbytes\)"),
    "fp8": (quantized(quantization_config={"quant_method": "fp8"}), r"\(fp8\)"),
    "compressed": (quantized(compression_config={"quant_method": "compressed-tensors"}), "compressed-tensors"),
    "MLX": (quantized(quantization={"bits": 4}), "quantized already"),
    "packed": (lambda f: save_file({"a.qweight": torch.ones(2)}, f / "model.safetensors"), r"packed weights"),
    "pickle": (only("pytorch_model.bin"), r"pytorch_model\.bin is a pickle"),
    "torch file": (only("model.pt"), r"model\.pt is a pickle"),
    "pth": (only("consolidated.00.pth"), r"consolidated\.00\.pth is a pickle"),
    "no weights": (only("notes.txt"), r"neither model\.safetensors nor"),
    "index not map": (lambda f: put(f, "model.safetensors.index.json", {}), "no weight_map"),
    "index outside": (
        lambda f: put(f, "model.safetensors.index.json", {"weight_map": {"a": "../b.safetensors"}}),
        r"names \.\./b\.safetensors",
    ),
    "no shard": (lambda f: shard(f).unlink(), r"names model-00001-of-\d+\.safetensors, which is not there"),
    "cut shard": (
        lambda f: shard(f).write_bytes(shard(f).read_bytes()[:-8]),
        r"model-00001-of-\d+\.safetensors is not a whole",
    ),
    "bad header": (lambda f: shard(f).write_bytes(b"\xff" * 64), r"model-00001-of-\d+\.safetensors is not a whole"),
    "emptied shard": (lambda f: save_file({"zz": torch.ones(1)}, shard(f)), "which .* places there"),
    "no tokenizer": (remove("tokenizer.json"), r"tokenizer\.json is missing"),
    "slow tokenizer": (
        lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
        r"tokenizer\.model but no tokenizer\.json; make one with transformers\.AutoTokenizer",
    ),
    "tokenizer empty": (lambda f: put(f, "tokenizer.json", {}), r"tokenizer\.json has no model"),
    "template unnamed": (
        lambda f: put(f, "tokenizer_config.json", {"chat_template": [{"name": n, "template": n} for n in "ab"]}),
        "none named default",
    ),
    "odd eos": (lambda f: put(f, "generation_config.json", {"eos_token_id": "x"}), "eos_token_id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence(case: str, folder: Path) -> None:
    change, message = REFUSED[case]
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_path_that_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, message in (
        ("HuggingFaceTB/SmolVLM-256M", "looks like a model id"),
        ("nowhere", "nowhere does not exist"),
        (str(tmp_path / "no/where"), "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read(Path(path))
    for name, message in (("w.bin", "pickle"), ("w.safetensors", "give the folder"), ("w.txt", "not a GGUF file")):
        (tmp_path / name).write_bytes(b"abcdefgh")
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / name)


def test_a_folder_with_gguf_files_names_one(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"give the file itself, such as .*model\.gguf"):
        read(tmp_path)


def test_integer_weights_are_refused_when_read(folder: Path) -> None:
    save_file({"w": torch.ones(2, dtype=torch.int8)}, folder / "model.safetensors")
    tensors = read(folder).tensors
    with pytest.raises(CheckpointError, match="stored as I8"):
        tensors.read("w")
