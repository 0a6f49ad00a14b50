"""Merge a PEFT LoRA adapter into a checkpoint's tensors, one tensor at a time, as they are read.

W' = W + scaling * B A, with scaling = alpha / r, or alpha / sqrt(r) for rsLoRA (Hu et al. 2021; Kalajdzievski 2023).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlens_export.checkpoint.checkpoint import Checkpoint, TensorSource
from handlens_export.checkpoint.json_file import read_json
from handlens_export.checkpoint.safetensors_source import SafetensorsSource
from handlens_export.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REFUSED = (
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "use_qalora",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
)
"""Settings of adapter_config.json that change what merging means."""
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")
"""Initializations that also change the base weights, so that the adapter alone does not say what to add."""
ADAPTER_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
PREFIXES = (
    ("", ""),
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "language_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.", ""),
    ("lm_head", "language_model.lm_head"),
    ("", "language_model."),
)
"""Prefixes of a module in memory and of its tensor in a file, where transformers' two spellings differ."""


@dataclass(frozen=True)
class _Delta:
    down: str
    """Name in the adapter of A (r, in)."""
    up: str
    """Name in the adapter of B (out, r)."""
    scaling: float
    transposed: bool
    """An embedding's: the table is (vocab, width), and A (r, vocab), B (width, r)."""


class LoraSource:
    """A TensorSource whose tensors are another's with an adapter merged in; merged ones come in float32."""

    def __init__(
        self, base: TensorSource, adapter: TensorSource, deltas: dict[str, _Delta], replaced: dict[str, str]
    ) -> None:
        """`deltas` by base tensor; `replaced`: base tensor -> the adapter's full copy (modules_to_save)."""
        self._base, self._adapter, self._deltas, self._replaced = base, adapter, deltas, replaced

    def names(self) -> Iterator[str]:
        """The base's."""
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The base's, which merging keeps."""
        return self._base.shape(name)

    def read(self, name: str) -> Tensor:
        """One tensor, merged."""
        if name in self._replaced:
            return self._adapter.read(self._replaced[name])
        weight = self._base.read(name)
        delta = self._deltas.get(name)
        if delta is None:
            return weight
        product = self._adapter.read(delta.up).float() @ self._adapter.read(delta.down).float()
        return weight.float() + delta.scaling * (product.T if delta.transposed else product)

    def digest(self, name: str) -> str:
        """The base's, or sha256 over it, the adapter's tensors and the scaling."""
        if name in self._replaced:
            return self._adapter.digest(self._replaced[name])
        base = self._base.digest(name)
        delta = self._deltas.get(name)
        if delta is None:
            return base
        parts = (base, self._adapter.digest(delta.down), self._adapter.digest(delta.up), repr(delta.scaling))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def merge_lora(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """`checkpoint` with the PEFT adapter in `folder` merged into its tensors as they are read.

    Every tensor of the adapter is used, or CheckpointError says which one is not and why.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a PEFT LoRA adapter with --lora.")
    config = read_json(folder / CONFIG)
    _refuse(folder, config)
    adapter = _open(folder)
    deltas, replaced = _match(folder, config, checkpoint, adapter)
    return dataclasses.replace(checkpoint, tensors=LoraSource(checkpoint.tensors, adapter, deltas, replaced))


def _open(folder: Path) -> SafetensorsSource:
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise CheckpointError(
            f"{folder / 'adapter_model.bin'} is a pickle, which can run code when opened and is refused; "
            "save the adapter again with PEFT's save_pretrained, which writes safetensors."
        )
    return SafetensorsSource([folder / WEIGHTS])


def _refuse(folder: Path, config: dict[str, Any]) -> None:
    file = folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{file} has peft_type {config.get('peft_type')}; only LORA adapters can be merged.")
    setting = next((key for key in REFUSED if config.get(key)), None)
    init = config.get("init_lora_weights")
    if config.get("bias", "none") != "none":
        setting = "bias"
    elif isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        setting = "init_lora_weights"
    if setting is not None:
        raise CheckpointError(
            f"{file} sets {setting} to {config[setting]}, which is not merged here; "
            "merge the adapter with PEFT's merge_and_unload and give the folder that saves."
        )


def _match(
    folder: Path, config: dict[str, Any], checkpoint: Checkpoint, adapter: SafetensorsSource
) -> tuple[dict[str, _Delta], dict[str, str]]:
    base = checkpoint.tensors
    known = set(base.names())
    pairs: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    replaced: dict[str, str] = {}
    for name in adapter.names():
        bare = name.removeprefix("base_model.model.")
        found = ADAPTER_TENSOR.fullmatch(bare)
        target = _base_name(f"{found['module']}.weight" if found else bare, known)
        if target is None:
            raise CheckpointError(
                f"{folder / WEIGHTS} has {name}, which belongs to no tensor of {checkpoint.path}; "
                "give the adapter together with the checkpoint it was trained on."
            )
        _refuse_tied(folder, name, target, checkpoint, known)
        if found:
            side = pairs.setdefault(target, {})
            side[found["side"]] = name
            side["module"] = found["module"]
            embeddings.update([target] if found["embedding"] else [])
        else:
            if adapter.shape(name) != base.shape(target):
                raise _misfit(folder, name, adapter.shape(name), base.shape(target))
            replaced[target] = name
    if not pairs and not replaced:
        raise CheckpointError(f"{folder / WEIGHTS} has no tensors; save the adapter again.")
    deltas = {
        target: _delta(folder, config, adapter, pair, base.shape(target), target in embeddings)
        for target, pair in pairs.items()
    }
    return deltas, replaced


def _base_name(name: str, known: set[str]) -> str | None:
    candidates = (new + name.removeprefix(old) for old, new in PREFIXES if name.startswith(old))
    return next((candidate for candidate in candidates if candidate in known), None)


def _refuse_tied(folder: Path, name: str, target: str, checkpoint: Checkpoint, known: set[str]) -> None:
    # PEFT adapts only one of two uses of a shared matrix; merged, it would change both.
    tied = checkpoint.config.get("tie_word_embeddings") or not any(key.endswith("lm_head.weight") for key in known)
    if tied and target.endswith(("embed_tokens.weight", "lm_head.weight")):
        raise CheckpointError(
            f"{folder / WEIGHTS} changes {name}, but {checkpoint.path} uses one matrix for embedding and head; "
            "untie them, merge with PEFT's merge_and_unload and give the folder that saves."
        )


def _delta(
    folder: Path,
    config: dict[str, Any],
    adapter: SafetensorsSource,
    pair: dict[str, str],
    shape: tuple[int, ...],
    embedding: bool,
) -> _Delta:
    module = pair["module"]
    if "A" not in pair or "B" not in pair:
        have = pair.get("A") or pair["B"]
        raise CheckpointError(f"{folder / WEIGHTS} has {have} without its other half; save the adapter again.")
    down, up = adapter.shape(pair["A"]), adapter.shape(pair["B"])
    product = (down[1:] + up[:1]) if embedding else (up[:1] + down[1:])
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or product != shape:
        raise _misfit(folder, pair["A"], product, shape)
    rank = _setting(config, "rank_pattern", "r", module)
    alpha = _setting(config, "alpha_pattern", "lora_alpha", module)
    if rank != down[0] or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"{folder / CONFIG} gives {module} rank {rank} and alpha {alpha}, but {pair['A']} has rank {down[0]}; "
            "give the adapter_config.json that was saved with these weights."
        )
    return _Delta(pair["A"], pair["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), embedding)


def _setting(config: dict[str, Any], patterns: str, default: str, module: str) -> Any:
    """A module's own value where a pattern ends its name, as PEFT matches; else the adapter's."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return config.get(default)


def _misfit(folder: Path, name: str, have: tuple[int, ...], want: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"{folder / WEIGHTS} has {name} for a matrix of shape {have}, but the checkpoint's is {want}; "
        "give the adapter together with the checkpoint it was trained on."
    )
