"""A field of config.json is honoured or refused by name; what it leaves out is transformers' default."""

from __future__ import annotations

from typing import Any

import pytest

from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.network.config import NetworkConfig, RopeScaling
from handlens_export.network.families import find, known

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
QWEN2 = {**LLAMA, "model_type": "qwen2"}
GEMMA = {**LLAMA, "model_type": "gemma", "head_dim": 16}
EYE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
EYE |= {"image_size": 32, "patch_size": 8}
SMOLVLM = {"model_type": "smolvlm", "text_config": LLAMA, "vision_config": EYE, "scale_factor": 2}
IDEFICS3 = {**SMOLVLM, "model_type": "idefics3"}
SIGLIP = {"model_type": "siglip_vision_model", **EYE}
PALIGEMMA = {
    "model_type": "paligemma",
    "text_config": GEMMA,
    "vision_config": {**SIGLIP, "projection_dim": 32},
    "projection_dim": 32,
    "hidden_size": 32,
}
BLUELM_V = {"model_type": "bluelm_v", "text_config": LLAMA, "vision_config": SIGLIP}
MINIMAL = {config["model_type"]: config for config in (LLAMA, QWEN2, GEMMA, SMOLVLM, IDEFICS3, PALIGEMMA, BLUELM_V)}


def read(hf: dict[str, Any], **changes: Any) -> NetworkConfig:
    """The family's reading of `hf` with `changes`; `part__field` reaches into a part."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in hf.items()}
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        (changed[part] if part else changed)[field] = value
    return find(hf["model_type"]).config(changed)


def test_every_family_is_tried_here() -> None:
    assert set(known()) == set(MINIMAL)


@pytest.mark.parametrize("hf", MINIMAL.values(), ids=MINIMAL)
def test_config_that_leaves_out_what_it_can_takes_transformers_defaults(hf: dict[str, Any]) -> None:
    config = read(hf)
    assert config.family == hf["model_type"]
    assert config.decoder.rope_theta == 10000.0
    assert config.decoder.tied_head is (hf["model_type"] in ("gemma", "paligemma"))
    assert config.decoder.norm_eps == 1e-6
    assert config.decoder.head_dim == (16 if hf["model_type"] in ("gemma", "paligemma") else 8)


def test_rope_is_read_from_both_versions_of_config() -> None:
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read(LLAMA, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaled})
    new = read(LLAMA, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaled})
    assert old == new
    assert new.decoder.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    oldest = read(LLAMA, rope_scaling={"type": "linear", "factor": 4.0})
    assert oldest.decoder.rope_scaling == RopeScaling("linear", 4.0)


def test_biases_go_where_the_family_has_them() -> None:
    llama, qwen2 = read(LLAMA, attention_bias=True, mlp_bias=True).decoder, read(QWEN2).decoder
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias) == (True, False, False)


def test_sliding_window_that_no_layer_uses_is_no_reason_to_refuse() -> None:
    plain = read(QWEN2)
    assert read(QWEN2, use_sliding_window=False, sliding_window=16) == plain
    assert read(QWEN2, use_sliding_window=True, sliding_window=16, max_window_layers=2) == plain


def test_published_smolvlm_config_is_read() -> None:
    """The fields that SmolVLM2-500M-Video-Instruct's config.json has beside the sizes."""
    extra = {"is_llama_config": True, "neftune_noise_alpha": 0.0, "pixel_shuffle_factor": 4, "qk_layer_norms": False}
    extra |= {"rope_interleaved": False, "rope_theta": 100000, "torch_dtype": "bfloat16", "use_resampler": False}
    extra |= {"_flash_attn_2_enabled": True, "transformers.js_config": {"dtype": "q4"}}
    eye = {**EYE, "max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 64}, "use_base_siglip": False}
    top = {"vocab_size": 64, "use_reentrant_checkpointing": False, "pad_token_id": 2, "image_token_id": 60}
    config = read({**SMOLVLM, **top, "text_config": {**LLAMA, **extra}, "vision_config": eye})
    assert config.decoder.rope_theta == 100000.0


@pytest.mark.parametrize(
    ("hf", "field", "value"),
    [
        (LLAMA, "hidden_act", "relu"),
        (LLAMA, "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        (LLAMA, "rope_scaling", {"rope_type": "dynamic", "factor": 4.0}),
        (LLAMA, "partial_rotary_factor", 0.5),
        (LLAMA, "num_key_value_heads", 3),
        (LLAMA, "sliding_window", 64),
        (LLAMA, "attn_logit_softcapping", 50.0),
        (LLAMA, "final_logit_softcapping", 30.0),
        (LLAMA, "query_pre_attn_scalar", 256),
        (LLAMA, "logit_scale", 0.25),
        (LLAMA, "qk_norm", True),
        (QWEN2, "layer_types", ["full_attention", "sliding_attention"]),
        (QWEN2, "rope_scaling", {"rope_type": "default", "mrope_section": [2, 1, 1]}),
        (GEMMA, "use_bidirectional_attention", True),
        (GEMMA, "hidden_activation", "silu"),
        (SMOLVLM, "scale_factor", 3),
        (SMOLVLM, "text_config__model_type", "mistral"),
        (SMOLVLM, "vision_config__num_channels", 4),
        (SMOLVLM, "vision_config__image_size", [32, 48]),
        (SMOLVLM, "vision_config__hidden_act", "quick_gelu"),
        (SMOLVLM, "vision_config__num_attention_heads", 5),
        (IDEFICS3, "text_config__use_resampler", True),
        (PALIGEMMA, "text_config__use_bidirectional_attention", False),
        (PALIGEMMA, "projection_dim", 48),
        (PALIGEMMA, "vision_config__model_type", "clip_vision_model"),
        (BLUELM_V, "downsample_factor", 9),
        (BLUELM_V, "projector_hidden_act", "relu"),
        (BLUELM_V, "downsampler_depth", 2),
        (BLUELM_V, "text_config__model_type", "qwen2"),
    ],
)
def test_field_that_changes_the_mathematics_is_refused_by_name(hf: dict[str, Any], field: str, value: Any) -> None:
    read(hf)
    name = {"text_config__model_type": "text_config"}.get(field, field.replace("__", "."))
    with pytest.raises(UnsupportedError, match=name if field != "rope_scaling" else "rotary") as error:
        read(hf, **{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", "wide"), ("num_hidden_layers", 0), ("rope_scaling", {"rope_type": "linear"})]
)
def test_config_that_makes_no_sense_is_one_sentence(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as error:
        read(LLAMA, **{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3", "qwen2_vl", "llava", "_decoder", "nothing", None])
def test_family_without_a_file_is_refused_with_those_that_have_one(model_type: str | None) -> None:
    with pytest.raises(UnsupportedError, match="bluelm_v, gemma, idefics3, llama, paligemma, qwen2, smolvlm"):
        find(model_type)


def test_paligemma_2_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="PaliGemma 2"):
        find("paligemma").config({**PALIGEMMA, "text_config": {**GEMMA, "model_type": "gemma2"}})
