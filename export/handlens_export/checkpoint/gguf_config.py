"""A GGUF header as transformers' config.json and tensor names. A key that is not known here is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlens_export.errors import CheckpointError

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""Architecture -> transformers' class; model_type is spelled alike."""
HONOURED = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "vocab_size",
}
WHERE_ZERO = {"expert_count", "expert_used_count", "attention.sliding_window"}
"""Keys that change nothing as long as they are 0."""
WITHOUT_EFFECT = {"tensor_data_layout", "rope.scaling.finetuned"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OUTSIDE_ALWAYS = ("token_embd.weight", "output_norm.weight")
ATTENTION, MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
Shapes = dict[str, tuple[int, ...]]


def hf_config(
    path: Path, metadata: dict[str, Any], shapes: Shapes, rope_freqs: NDArray[np.float32] | None
) -> dict[str, Any]:
    """transformers' config.json for a GGUF file with this metadata and these tensors.

    `rope_freqs`: the file's divisors of the rotary frequencies (head_dim / 2,), as llama.cpp writes for Llama 3.1.
    """
    header = _Header(path, metadata)
    width, heads = header.integer("embedding_length"), header.integer("attention.head_count")
    head_dim = header.integer("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if header.integer(key, head_dim) != head_dim:
            raise header.refused(key, f"this must be the head's {head_dim}")
    if "token_embd.weight" not in shapes:
        raise CheckpointError(f"{path} has no tensor token_embd.weight; convert the checkpoint again.")
    qkv_bias, output_bias = _biases(header, shapes)
    theta = float(header.get("rope.freq_base", 10000.0))
    return {
        "model_type": header.architecture,
        "architectures": [CLASSES[header.architecture]],
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": width,
        "intermediate_size": header.integer("feed_forward_length"),
        "num_hidden_layers": header.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": header.integer("context_length"),
        "rms_norm_eps": float(header.get("attention.layer_norm_rms_epsilon", 1e-5)),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(header, theta, head_dim, rope_freqs),
        "attention_bias": qkv_bias and output_bias,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }


def tensor_names(path: Path, config: dict[str, Any], shapes: Shapes) -> dict[str, str]:
    """The file's tensor names -> transformers'; all that the config calls for, and nothing is left over."""
    names = {name: hf_name for name, hf_name in OUTSIDE.items() if name in shapes}
    qkv = config["attention_bias"] or config["model_type"] == "qwen2"
    biased = {*(ATTENTION[:3] if qkv else ()), *(ATTENTION[3:] if config["attention_bias"] else ())}
    biased |= {*(MLP if config["mlp_bias"] else ())}
    for layer in range(config["num_hidden_layers"]):
        block = {
            f"blk.{layer}.{part}.{kind}": f"model.layers.{layer}.{hf_part}.{kind}"
            for part, hf_part in LAYER.items()
            for kind in (("weight", "bias") if part in biased else ("weight",))
        }
        absent = next((name for name in (*OUTSIDE_ALWAYS, *block) if name not in shapes), None)
        if absent is not None:  # at once: a damaged header may claim billions of layers
            raise CheckpointError(f"{path} has no tensor {absent}, which its header calls for; convert it again.")
        names |= block
    extra = next((name for name in shapes if name not in names), None)
    if extra is not None:
        raise CheckpointError(
            f"{path} has a tensor {extra} that a plain {config['model_type']} has not; it is not supported, "
            "so give another checkpoint."
        )
    return names


class _Header:
    """A file's keys of its own architecture, checked to be known."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path = path
        self.architecture = str(metadata.get("general.architecture"))
        if self.architecture not in CLASSES:
            raise CheckpointError(
                f"{path} is a GGUF file of architecture {self.architecture}; {' and '.join(CLASSES)} can be read, "
                "for others give the folder that transformers saves."
            )
        if metadata.get("split.count", 1) > 1:
            raise CheckpointError(
                f"{path} is one part of a split GGUF file; join them with `llama-gguf-split --merge` first."
            )
        prefix = f"{self.architecture}."
        self.values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        for key, value in self.values.items():
            if key in WHERE_ZERO and value:
                raise self.refused(key, "this must be 0")
            if key not in HONOURED | WHERE_ZERO | WITHOUT_EFFECT:
                raise self.refused(key, "this setting is not supported")

    def get(self, key: str, default: float | str | None = None) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path} has no {self.architecture}.{key}; convert the checkpoint again.")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or value < 1:
            raise self.refused(key, "one positive number for all layers is expected")
        return value

    def refused(self, key: str, want: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} has {self.architecture}.{key} = {self.values.get(key)}, but {want}; give another checkpoint."
        )


def _biases(header: _Header, shapes: Shapes) -> tuple[bool, bool]:
    """Whether q, k, v have biases, and whether the output projection has."""
    qkv, output = "blk.0.attn_q.bias" in shapes, "blk.0.attn_output.bias" in shapes
    if header.architecture == "llama" and qkv != output:
        raise CheckpointError(
            f"{header.path} has a bias on {'q, k and v' if qkv else 'the attention output'} only, which a llama "
            "config.json cannot say; give the folder that transformers saves."
        )
    return qkv, output


def _rope_scaling(
    header: _Header, theta: float, head_dim: int, rope_freqs: NDArray[np.float32] | None
) -> dict[str, Any] | None:
    kind = header.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise header.refused("rope.scaling.type", "none and linear are supported")
    if rope_freqs is not None:
        if kind != "none":
            raise header.refused("rope.scaling.type", "the file has rope_freqs.weight too")
        return _llama3(header.path, theta, head_dim, rope_freqs.astype(np.float64))
    return {"rope_type": "linear", "factor": float(header.get("rope.scaling.factor"))} if kind == "linear" else None


def _llama3(path: Path, theta: float, head_dim: int, divisors: NDArray[np.float64]) -> dict[str, Any] | None:
    """The Llama 3.1 scaling whose divisors these are; a GGUF file has the divisors only, so it is found and checked."""
    if divisors.shape != (head_dim // 2,):
        raise _odd_divisors(path)
    if np.all(divisors == 1):
        return None
    factor = round(float(divisors.max()), 4)
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, original = 1.0, 4.0, 8192  # what every Llama 3.1, 3.2 and 3.3 has
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - blend) / factor + blend)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise _odd_divisors(path)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _odd_divisors(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} has rope_freqs.weight, rotary frequencies that are not Llama 3's scaling; they are not supported, "
        "so give the folder that transformers saves."
    )
