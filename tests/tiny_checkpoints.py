"""Whole checkpoint folders of tiny random models, as transformers saves them: what tests use in place of downloads.

Three variants a family. Variant 0 has sizes that every quantization group up to 64 divides and files as transformers 5
writes them; 1 and 2 are awkward in sizes and choices, 1 with the files of transformers 4, 2 in several shards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 320
LINES = (
    "What is the capital of France? The capital of France is Paris.",
    "What is this? This is a photograph of a cat on a table.",
    "Describe the image. The image shows a street, two people and a dog.",
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

GPT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IDEFICS_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
SPECIAL: dict[str, tuple[str, ...]] = {
    "llama": GPT_TOKENS,
    "qwen2": GPT_TOKENS,
    "gemma": ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    "smolvlm": IDEFICS_TOKENS,
    "idefics3": IDEFICS_TOKENS,
    "paligemma": ("<pad>", "<eos>", "<bos>", "<image>"),
    "bluelm_v": (*GPT_TOKENS, "<image>"),
}
"""Special tokens in the order of their ids."""
TEMPLATES = {
    "llama": CHATML,
    "qwen2": CHATML,
    "gemma": GEMMA,
    "smolvlm": IDEFICS,
    "idefics3": IDEFICS,
    "bluelm_v": CHATML,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
GROUPED = {"hidden_size": 48, "intermediate_size": 88, "num_attention_heads": 6, "num_key_value_heads": 2}
ONE_KEY = {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True}
LLAMA_TEXT: tuple[dict[str, Any], ...] = (
    {},
    {**GROUPED, "head_dim": 24, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE},
    {**ONE_KEY, "rope_parameters": LINEAR_ROPE},
)
TEXT: dict[str, tuple[dict[str, Any], ...]] = {
    "llama": LLAMA_TEXT,
    "qwen2": (
        {"use_sliding_window": False, "sliding_window": 16},
        {**ONE_KEY, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-5},
        {**GROUPED, "head_dim": 16, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "gemma": (
        {"head_dim": 32, "tie_word_embeddings": True},
        {**ONE_KEY, "head_dim": 16, "hidden_act": "gelu", "attention_bias": True},
        {**GROUPED, "head_dim": 16, "rope_parameters": LINEAR_ROPE, "tie_word_embeddings": True},
    ),
    "smolvlm": LLAMA_TEXT,
    "idefics3": ({**ONE_KEY, "rms_norm_eps": 1e-5}, *LLAMA_TEXT[1:]),
    "paligemma": (
        {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {**GROUPED, "head_dim": 24, "tie_word_embeddings": True},
        {**ONE_KEY, "head_dim": 32, "rope_parameters": LINEAR_ROPE},
    ),
    "bluelm_v": LLAMA_TEXT,
}
EYE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
NARROW_EYE = {"hidden_size": 36, "num_attention_heads": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
VISION: dict[str, tuple[dict[str, Any], ...]] = {
    "smolvlm": ({}, {**NARROW_EYE, "image_size": 36, "patch_size": 4}, {"image_size": 100, "patch_size": 4}),
    "idefics3": (
        {"patch_size": 4},
        {**NARROW_EYE, "image_size": 38, "patch_size": 6},
        {"image_size": 57, "patch_size": 3},
    ),
    "paligemma": ({}, {**NARROW_EYE, "image_size": 30, "patch_size": 6, "vision_use_head": False}, {"patch_size": 4}),
    "bluelm_v": ({"image_size": 36, "patch_size": 4}, NARROW_EYE, {"image_size": 31, "patch_size": 4}),
}
MERGE = {"smolvlm": (2, 3, 5), "idefics3": (4, 3, 19), "bluelm_v": (2, 2, 3)}
"""Patches that the projector merges along a side, by variant."""


def tiny_checkpoint(family: str, folder: Path, variant: int = 0) -> Path:
    """Write a whole checkpoint of `family` into `folder`, made where it is missing; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(variant)
        config = _save_bluelm_v(folder, variant) if family == "bluelm_v" else _save_model(family, folder, variant)
    _tokenizer(family).save(str(folder / "tokenizer.json"))
    _write_text_files(family, folder, variant)
    if "vision_config" in config:
        _write_processor(family, folder, variant, config)
    return folder


def image_token_id(family: str) -> int:
    """Id of the token that stands for an image's embeddings."""
    return SPECIAL[family].index("<image>")


def _text_config(family: str, variant: int) -> dict[str, Any]:
    begin, end = ("<bos>", "<eos>") if "<bos>" in SPECIAL[family] else ("<|im_start|>", "<|endoftext|>")
    ids = {"bos_token_id": SPECIAL[family].index(begin), "eos_token_id": SPECIAL[family].index(end), "pad_token_id": 0}
    return {**PLAIN, **ids, **TEXT[family][variant]}


def _save_model(family: str, folder: Path, variant: int) -> dict[str, Any]:
    text = _text_config(family, variant)
    if family not in VISION:
        config = transformers.AutoConfig.for_model(family, **text)
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        config = transformers.AutoConfig.for_model(family, **_image_config(family, variant, text))
        model = transformers.AutoModelForImageTextToText.from_config(config)
    _scatter(model)
    model.save_pretrained(folder, max_shard_size="100KB" if variant == 2 else "1GB")
    written: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if variant == 1:
        _as_transformers_4(written)
        _write(folder / "config.json", written)
    return written


def _image_config(family: str, variant: int, text: dict[str, Any]) -> dict[str, Any]:
    vision = {**EYE, **VISION[family][variant]}
    tied = {"tie_word_embeddings": text["tie_word_embeddings"]}
    if family == "paligemma":
        width = text["hidden_size"]
        vision |= {"model_type": "siglip_vision_model", "projection_dim": width}
        sizes = {"projection_dim": width, "hidden_size": width, "image_token_index": image_token_id(family)}
        return {"text_config": {"model_type": "gemma", **text}, "vision_config": vision, **sizes, **tied}
    sizes = {"scale_factor": MERGE[family][variant], "image_token_id": image_token_id(family)}
    return {"text_config": {"model_type": "llama", **text}, "vision_config": vision, **sizes, **tied}


def _save_bluelm_v(folder: Path, variant: int) -> dict[str, Any]:
    text, vision = _text_config("bluelm_v", variant), {**EYE, **VISION["bluelm_v"][variant]}
    encoder = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision, vision_use_head=variant == 2))
    decoder = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text))
    factor, seen, width = MERGE["bluelm_v"][variant], vision["hidden_size"], text["hidden_size"]
    projector = torch.nn.ModuleDict(
        {
            "downsampler": torch.nn.Linear(factor**2 * seen, seen),
            "projector": torch.nn.ModuleDict(
                {"fc1": torch.nn.Linear(seen, width), "fc2": torch.nn.Linear(width, width)}
            ),
        }
    )
    tensors = {}
    for prefix, part in (("vision_tower.", encoder), ("", projector), ("language_model.", decoder)):
        _scatter(part)
        tensors.update({prefix + name: tensor.contiguous() for name, tensor in part.state_dict().items()})
    if text["tie_word_embeddings"]:
        del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BlueLMVForConditionalGeneration"],
        "model_type": "bluelm_v",
        "downsample_factor": factor,
        "projector_hidden_act": "gelu",
        "image_token_id": image_token_id("bluelm_v"),
        "vision_config": {"model_type": "siglip_vision_model", **vision},
        "text_config": {"model_type": "llama", **text},
    }
    _write(folder / "config.json", config)
    return config


def _scatter(model: torch.nn.Module) -> None:
    """Weights of a trained model's size, so that no part of the network is too faint for a test to see."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def _as_transformers_4(config: dict[str, Any]) -> None:
    """rope_theta and rope_scaling instead of rope_parameters; torch_dtype instead of dtype."""
    for part in (config, config.get("text_config", {})):
        rope = part.pop("rope_parameters", None)
        if rope is not None:
            part["rope_theta"] = rope.pop("rope_theta")
            part["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        if "dtype" in part:
            part["torch_dtype"] = part.pop("dtype")
    config["transformers_version"] = "4.57.1"


def _tokenizer(family: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL[family]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    if family == "gemma":
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def _write_text_files(family: str, folder: Path, variant: int) -> None:
    tokens = SPECIAL[family]
    begin, end = ("<bos>", "<eos>") if "<bos>" in tokens else ("<|im_start|>", "<|endoftext|>")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end}
    if variant == 1:
        settings["eos_token"] = {"content": end, "lstrip": False, "normalized": False, "rstrip": False, "special": True}
    if family in TEMPLATES and variant == 1:
        settings["chat_template"] = TEMPLATES[family]
    elif family in TEMPLATES:
        (folder / "chat_template.jinja").write_text(TEMPLATES[family])
    _write(folder / "tokenizer_config.json", settings)
    turn_ends = [tokens.index(t) for t in ("<|im_end|>", "<end_of_utterance>", "<end_of_turn>") if t in tokens]
    ends = [tokens.index(end), *turn_ends]
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20} if variant == 1 else {}
    _write(folder / "generation_config.json", {"eos_token_id": ends if len(ends) > 1 else ends[0], **sampling})


def _write_processor(family: str, folder: Path, variant: int, config: dict[str, Any]) -> None:
    side = config["vision_config"]["image_size"]
    image: dict[str, Any] = {"do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    image |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    tokens = (side // config["vision_config"]["patch_size"] // (MERGE[family][variant] if family in MERGE else 1)) ** 2
    if family == "bluelm_v":
        image |= {"tiling": "relaxed", "alpha": 0.1, "tile_size": side, "max_grid": [3, 3], "thumbnail": "first"}
        _write(folder / "preprocessor_config.json", image | {"resample": 3})
        return
    if family == "paligemma":
        image |= {"image_processor_type": "SiglipImageProcessor", "resample": 3, "do_resize": True}
        image |= {"size": {"height": side, "width": side}, "image_seq_length": tokens}
        processor: dict[str, Any] = {"processor_class": "PaliGemmaProcessor"}
    else:
        name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[family]
        image |= {"image_processor_type": f"{name}ImageProcessor", "resample": 1, "do_resize": True, "do_pad": True}
        image |= {"do_image_splitting": True, "do_convert_rgb": True}
        image |= {"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}}
        processor = {"processor_class": f"{name}Processor", "image_seq_len": tokens}
    if variant == 1:
        _write(folder / "preprocessor_config.json", image)
    else:
        processor["image_processor"] = image
    _write(folder / "processor_config.json", processor)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
