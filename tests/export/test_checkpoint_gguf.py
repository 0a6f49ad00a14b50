"""GGUF files, written here with gguf's own writer, read back under transformers' names."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.checkpoint.read import read
from handlens_export.errors import CheckpointError

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "ab", "Ġ"]
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def llama(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes)).eval()


def qwen2(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES | changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def pairs_side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of a llama's q and k rows, element by element."""
    out, dim = np.empty_like(weight), weight.shape[0] // heads
    for head in range(heads):
        for i in range(dim // 2):
            for half in range(2):
                out[head * dim + 2 * i + half] = weight[head * dim + half * dim // 2 + i]
    return out


def ggml_tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    config, tensors = model.config, {}
    for hf_name, weight in model.state_dict().items():
        name, values = hf_name, weight.numpy()
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if config.model_type == "llama" and ("q_proj" in hf_name or "k_proj" in hf_name):
            queries = "q_proj" in hf_name
            values = pairs_side_by_side(values, config.num_attention_heads if queries else config.num_key_value_heads)
        tensors[name] = values
    return tensors


def write(
    path: Path,
    model: PreTrainedModel,
    kinds: dict[str, Kind] | None = None,
    keys: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file of `model`; `kinds` quantizes tensors, `keys` adds or replaces metadata."""
    config = model.config
    arch = config.model_type
    values = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    } | (keys or {})
    if getattr(config, "head_dim", None):
        values |= {f"{arch}.attention.{part}_length": config.head_dim for part in ("key", "value")}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, list: writer.add_array}
        add.get(type(value), writer.add_uint32)(key, value)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    for name, weight in (ggml_tensors(model) | (extra or {})).items():
        kind = (kinds or {}).get(name)
        data = weight if kind is None else quants.quantize(weight, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[3, 4, 5, 6, 7, 3]])).logits


def rebuilt(checkpoint: Checkpoint) -> PreTrainedModel:
    """The transformers model that a read GGUF file describes."""
    llama_type = checkpoint.config["model_type"] == "llama"
    config = (LlamaConfig if llama_type else Qwen2Config)(**checkpoint.config)
    model = (LlamaForCausalLM if llama_type else Qwen2ForCausalLM)(config).eval()
    weights = {name: checkpoint.tensors.read(name) for name in checkpoint.tensors.names()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model


@pytest.mark.parametrize(
    "model",
    [
        llama(),
        llama(head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        llama(rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, num_key_value_heads=1),
        qwen2(),
        qwen2(tie_word_embeddings=True, rms_norm_eps=1e-5),
    ],
    ids=["llama", "llama-biases-wide-heads-tied", "llama-theta-one-key", "qwen2", "qwen2-tied"],
)
def test_the_model_read_back_gives_the_same_logits(model: PreTrainedModel, tmp_path: Path) -> None:
    checkpoint = read(write(tmp_path / "m.gguf", model))
    assert torch.equal(logits(rebuilt(checkpoint)), logits(model))
    assert checkpoint.generation_config == {"eos_token_id": [2, 0]}
    assert checkpoint.chat_template == "{{ messages }}"


def test_shapes_and_names_come_from_the_header(tmp_path: Path) -> None:
    tensors = read(write(tmp_path / "m.gguf", llama())).tensors
    shapes = {name: tuple(value.shape) for name, value in llama().state_dict().items()}
    assert {name: tensors.shape(name) for name in tensors.names()} == shapes


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes make infinite scales
@pytest.mark.parametrize("kind", list(quants._type_traits), ids=lambda kind: kind.name)
def test_every_type_gguf_dequantizes_is_read(kind: Kind, tmp_path: Path) -> None:
    model = llama(hidden_size=256, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
    path = write(tmp_path / "m.gguf", model)
    packed = np.random.default_rng(0).integers(0, 256, quants.quant_shape_to_byte_shape((8, 256), kind), np.uint8)
    tensors = ggml_tensors(model)
    writer = gguf.GGUFWriter(path, "llama")
    copy_metadata(path, writer)
    for name, weight in tensors.items():
        is_table = name == "token_embd.weight"
        writer.add_tensor(name, packed if is_table else weight, raw_dtype=kind if is_table else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got = read(path).tensors.read("model.embed_tokens.weight")
    np.testing.assert_array_equal(got.float().numpy(), quants.dequantize(packed, kind))


def copy_metadata(path: Path, writer: gguf.GGUFWriter) -> None:
    for name, field in gguf.GGUFReader(path).fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), kind, inner)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_quantized_rows_are_put_back_in_order(kind: Kind, tmp_path: Path) -> None:
    model, name = llama(), "model.layers.1.self_attn.q_proj.weight"
    path = write(tmp_path / "m.gguf", model, {"blk.1.attn_q.weight": kind})
    weight = model.state_dict()[name].numpy()
    expected = quants.dequantize(quants.quantize(weight, kind), kind)  # a row's own blocks: order does not matter
    np.testing.assert_array_equal(read(path).tensors.read(name).numpy(), expected)


def test_digest_tells_type_bytes_and_order_apart(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    plain = read(write(tmp_path / "a.gguf", llama())).tensors
    again = read(write(tmp_path / "b.gguf", llama())).tensors
    other = read(write(tmp_path / "c.gguf", llama(), {"blk.0.attn_q.weight": Kind.Q8_0})).tensors
    assert plain.digest(name) == again.digest(name) != other.digest(name)
    assert plain.digest("model.norm.weight") == other.digest("model.norm.weight")


def llama3_divisors(factor: float) -> np.ndarray:
    """rope_freqs.weight of Llama 3.1 for heads of 8 channels and theta 500,000, as llama.cpp computes it."""
    out = []
    for i in range(4):
        wavelength = 2 * np.pi * 500000 ** (i / 4)
        if wavelength < 8192 / 4:
            out.append(1.0)
        elif wavelength > 8192:
            out.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def test_llama3_scaling_is_found_from_its_divisors(tmp_path: Path) -> None:
    model = llama(rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    path = write(tmp_path / "m.gguf", model, extra={"rope_freqs.weight": llama3_divisors(32.0)})
    assert read(path).config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_other_divisors_are_refused(tmp_path: Path) -> None:
    model = llama(rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    path = write(tmp_path / "m.gguf", model, extra={"rope_freqs.weight": llama3_divisors(32.0) * 1.1})
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        read(path)


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf", llama(), keys={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    )
    assert read(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("keys", "extra", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, (), r"rope\.scaling\.type = yarn"),
        ({"llama.expert_count": 8}, (), r"expert_count = 8"),
        ({"llama.logit_scale": 0.5}, (), r"logit_scale = 0\.5"),
        ({"llama.attention.sliding_window": 16}, (), r"sliding_window = 16"),
        ({"llama.rope.dimension_count": 4}, (), r"rope\.dimension_count = 4"),
        ({"llama.attention.head_count_kv": [1, 2]}, (), r"head_count_kv = \[1, 2\]"),
        ({"split.count": 3}, (), r"--merge"),
        ({"tokenizer.ggml.model": "bert"}, (), r"tokenizer of kind bert"),
        ({"tokenizer.ggml.pre": "unheard-of"}, (), r"pre = unheard-of"),
        ({}, ("blk.0.attn_q_norm.weight",), r"blk\.0\.attn_q_norm\.weight"),
        ({}, ("blk.0.attn_q.bias",), r"bias on q, k and v only"),
        ({"llama.block_count": 2**31}, (), r"no tensor blk\.2\.attn_norm\.weight"),
        ({"llama.block_count": 3}, (), r"no tensor blk\.2\.attn_norm\.weight"),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(
    keys: dict[str, Any], extra: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.gguf", llama(), keys=keys, extra={name: np.ones(32, np.float32) for name in extra})
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="architecture falcon; llama and qwen2 can be read"):
        read(tmp_path / "m.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", llama()).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 3000, 97), *range(3000, len(whole), 2999), len(whole) - 33]:
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            read(cut)


def test_a_damaged_header_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "m.gguf", llama()).read_bytes())
    damaged, dice = tmp_path / "damaged.gguf", random.Random(0)
    refusals: list[str] = []
    for _ in range(300):
        broken = bytearray(whole)
        broken[dice.randrange(2600)] ^= 1 << dice.randrange(8)
        damaged.write_bytes(broken)
        refusals += refusal(damaged)
    assert len(refusals) > 100
    assert all("damaged.gguf" in sentence for sentence in refusals)


def refusal(path: Path) -> list[str]:
    try:
        read(path)
    except CheckpointError as error:
        return [str(error)]
    return []
