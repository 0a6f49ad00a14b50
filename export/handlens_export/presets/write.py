"""`handlens init`: write a preset as a checkpoint folder, shard by shard."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from handlens_export.errors import TargetError, UnsupportedError
from handlens_export.presets.sizes import FULL, NANO, Preset, TensorSpec, config, image_rule, tensors
from handlens_export.presets.tokenizer import CHAT_TEMPLATE, SPECIAL, build

PRESETS: dict[str, Preset] = {"bluelm-v-nano": NANO, "bluelm-v-3b": FULL}
SHARD_BYTES = 1_000_000_000
CHUNK = 1 << 22
"""Random numbers made at a time, so that a bfloat16 tensor never stands in float32 as a whole."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Progress = Callable[[str, float], None]
"""Called with a stage's name and the share of the whole done, 0 to 1."""


def init(preset: str, target: Path, seed: int = 0, progress: Progress | None = None, force: bool = False) -> None:
    """Write the checkpoint folder `target` of a preset (`PRESETS`) with random weights, the same for the same `seed`.

    Memory stays at about one shard (1 GB). `target` is whole or not there; an existing one is replaced only with
    `force`. Raises UnsupportedError for an unknown preset, TargetError for a target that is taken or not writable.
    """
    sizes = PRESETS.get(preset)
    if sizes is None:
        raise UnsupportedError(f"There is no preset {preset}; choose one of {', '.join(PRESETS)}.")
    target = Path(target)
    _refuse_taken(target, force)
    try:
        with _beside(target) as folder:
            _write_texts(sizes, folder)
            _write_weights(sizes, folder, seed, progress or (lambda stage, share: None))
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TargetError(f"{target} cannot be written ({reason}); choose another folder or make room.") from None


def _refuse_taken(target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not force:
        raise TargetError(f"{target} exists already; choose another folder or add --force to replace it.")
    if not target.is_dir() or (any(target.iterdir()) and not (target / "config.json").exists()):
        raise TargetError(
            f"{target} is not a checkpoint folder, so --force will not replace it; choose another folder."
        )


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder that takes `target`'s place once the block ends well, and vanishes if it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True) as held:
        new = Path(held) / "new"
        new.mkdir()
        yield new
        old = Path(held) / "old"
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


def _write_texts(preset: Preset, folder: Path) -> None:
    tokenizer = build(preset.vocab_size)
    ids = {token: i for i, token in enumerate(SPECIAL)}
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    _write_json(folder / "config.json", config(preset, ids))
    _write_json(folder / "preprocessor_config.json", image_rule(preset))
    _write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ids["<|endoftext|>"]})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": preset.context,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "image_token": "<image>",
        },
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _write_weights(preset: Preset, folder: Path, seed: int, progress: Progress) -> None:
    dtype = DTYPES[preset.dtype]
    shards = _shards(list(tensors(preset)), dtype.itemsize)
    total = sum(spec.count for shard in shards for spec in shard)
    done, weight_map = 0, {}
    for i, shard in enumerate(shards):
        alone = len(shards) == 1
        file = "model.safetensors" if alone else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        weights: dict[str, Tensor] = {}
        for spec in shard:
            weights[spec.name] = _random(spec, dtype, seed)
            weight_map[spec.name] = file
            done += spec.count
            progress("init", done / total)
        save_file(weights, folder / file, metadata={"format": "pt"})
        (folder / file).chmod((folder / "config.json").stat().st_mode)  # safetensors lets only its owner read it
    if len(shards) > 1:
        index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _shards(specs: list[TensorSpec], itemsize: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        nbytes = spec.count * itemsize
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += nbytes
    return shards


def _random(spec: TensorSpec, dtype: torch.dtype, seed: int) -> Tensor:
    """Norm weights 1, biases 0, the rest normal with 1 / sqrt(inputs) (0.02 at 2,560), so that small widths work too.

    Each tensor has its own stream, seeded by its name: numpy's, which gives the same numbers on every processor.
    """
    if spec.name.endswith(".bias"):
        return torch.zeros(spec.shape, dtype=dtype)
    if len(spec.shape) == 1:
        return torch.ones(spec.shape, dtype=dtype)
    key = hashlib.sha256(f"{seed} {spec.name}".encode()).digest()
    stream = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
    scale = np.float32((spec.count // spec.shape[0]) ** -0.5)
    out = torch.empty(spec.count, dtype=dtype)
    for start in range(0, spec.count, CHUNK):
        part = out[start : start + CHUNK]
        part.copy_(torch.from_numpy(stream.standard_normal(len(part), dtype=np.float32) * scale))
    return out.view(spec.shape)
