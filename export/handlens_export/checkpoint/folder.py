"""Read a checkpoint folder as `transformers` saves it, in the layouts of its versions 4 and 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.checkpoint.json_file import read_json, read_json_if_there, read_text
from handlens_export.checkpoint.safetensors_source import INDEX, SINGLE, SafetensorsSource, open_folder
from handlens_export.errors import CheckpointError

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
QUANTIZED = ("quantization_config", "compression_config", "quantization")
"""Keys of config.json: transformers', compressed-tensors' older one, MLX's."""


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; CheckpointError in one sentence for what is missing, damaged or refused."""
    if not (folder / "config.json").exists():
        raise _no_config(folder)
    config = read_json(folder / "config.json")
    _refuse_quantized(folder, config)
    tensors = _tensors(folder)
    tokenizer_config = _tokenizer_config(folder)
    processor_config = read_json_if_there(folder / "processor_config.json")
    return Checkpoint(
        path=folder,
        config=config,
        tensors=tensors,
        tokenizer_json=_tokenizer_json(folder),
        tokenizer_config=tokenizer_config,
        chat_template=_chat_template(folder, processor_config, tokenizer_config),
        generation_config=_generation_config(folder, config),
        processor=_processor(folder, processor_config),
    )


def _no_config(folder: Path) -> CheckpointError:
    if (folder / "adapter_config.json").exists():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        return CheckpointError(
            f"{folder} holds a LoRA adapter alone; give the folder of {base} as the checkpoint "
            "and this one with --lora."
        )
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return CheckpointError(f"{folder} has no config.json but GGUF files; give the file itself, such as {ggufs[0]}.")
    return CheckpointError(
        f"{folder} has no config.json, so it is not a checkpoint folder; give a folder that transformers' "
        "save_pretrained wrote, or a GGUF file."
    )


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in parts:
        found = next((part[key] for key in QUANTIZED if part.get(key)), None)
        if found is not None:
            method = found.get("quant_method") if isinstance(found, dict) else None
            raise CheckpointError(
                f"{folder} is quantized already ({method or 'see its config.json'}); give the checkpoint as it was "
                "before, in float32, float16 or bfloat16, for HandLens quantizes on its own."
            )


def _tensors(folder: Path) -> SafetensorsSource:
    if not (folder / SINGLE).exists() and not (folder / INDEX).exists():
        pickle = next((file for pattern in PICKLES for file in sorted(folder.glob(pattern))), None)
        if pickle is not None:
            raise CheckpointError(
                f"{pickle} is a pickle, which can run code when opened and is refused; load the checkpoint with "
                "transformers where you trust it and save it with save_pretrained, which writes safetensors."
            )
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}; copy the weights and their index there.")
    source = open_folder(folder)
    packed = next((name for name in source.names() if name.endswith((".qweight", ".weight_packed"))), None)
    if packed is not None:
        raise CheckpointError(
            f"{folder} holds packed weights ({packed}), so it is quantized already; "
            "give the checkpoint as it was before."
        )
    return source


def _tokenizer_json(folder: Path) -> str:
    path = folder / "tokenizer.json"
    if path.exists():
        text = read_text(path)
        if not isinstance(read_json(path).get("model"), dict):
            raise CheckpointError(f"{path} has no model, so it is not a tokenizer's; copy it again.")
        return text
    slow = next((name for name in ("tokenizer.model", "spiece.model", "vocab.json") if (folder / name).exists()), None)
    if slow is not None:
        raise CheckpointError(
            f"{folder} has {slow} but no tokenizer.json; make one with "
            f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})."
        )
    raise CheckpointError(f"{path} is missing; copy it from where the checkpoint was saved.")


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    # Version 4 keeps special tokens in a file of their own too, and either may write one as an object.
    merged = read_json_if_there(folder / "special_tokens_map.json")
    merged |= read_json_if_there(folder / "tokenizer_config.json")
    for key, value in merged.items():
        if key.endswith("_token") and isinstance(value, dict) and "content" in value:
            merged[key] = value["content"]
    return merged


def _chat_template(folder: Path, processor_config: dict[str, Any], tokenizer_config: dict[str, Any]) -> str | None:
    """The first of: its own file, version 4's JSON file, the processor's, the tokenizer's."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    holders = {
        "chat_template.json": read_json_if_there(folder / "chat_template.json"),
        "processor_config.json": processor_config,
        "tokenizer_config.json": tokenizer_config,
    }
    for file, holder in holders.items():
        if holder.get("chat_template"):
            return _default_template(folder / file, holder["chat_template"])
    return None


def _default_template(file: Path, template: Any) -> str:
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default") if len(named) != 1 else next(iter(named.values()))
    elif isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise CheckpointError(f"{file} has chat templates but none named default; name one of them so.")
    return template


def _generation_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json, its end tokens always a list; what it leaves out, config.json's."""
    merged = read_json_if_there(folder / "generation_config.json")
    text = config.get("text_config")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for holder in (config, text if isinstance(text, dict) else {}):
            if merged.get(key) is None and holder.get(key) is not None:
                merged[key] = holder[key]
    ends = merged.get("eos_token_id")
    if ends is not None:
        merged["eos_token_id"] = [ends] if isinstance(ends, int) else ends
        if not isinstance(merged["eos_token_id"], list) or not all(isinstance(i, int) for i in merged["eos_token_id"]):
            raise CheckpointError(
                f"{folder} has {json.dumps(ends)} as eos_token_id in generation_config.json or config.json; "
                "it must be a token id or a list of them."
            )
    return merged


def _processor(folder: Path, processor_config: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json; over it version 5's nested image_processor, then processor_config.json's own keys."""
    nested = processor_config.get("image_processor")
    own = {key: value for key, value in processor_config.items() if key not in ("image_processor", "chat_template")}
    return read_json_if_there(folder / "preprocessor_config.json") | (nested if isinstance(nested, dict) else {}) | own
