"""From the path a person typed to a Checkpoint, or one sentence why not."""

from __future__ import annotations

import re
from pathlib import Path

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.checkpoint.folder import read_folder
from handlens_export.checkpoint.gguf import read_gguf
from handlens_export.checkpoint.lora import merge_lora
from handlens_export.errors import CheckpointError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read(path: Path, lora: Path | None = None) -> Checkpoint:
    """Read the checkpoint folder or GGUF file at `path`: its configuration, and where its tensors are.

    `lora` is a PEFT folder whose adapter is merged as tensors are read; one that lies in the checkpoint folder
    itself is found without being named. Raises CheckpointError, in one sentence that says what to do.
    """
    path = Path(path)
    if not path.exists():
        raise _missing(path)
    if path.is_dir():
        checkpoint = read_folder(path)
        inside = path / "adapter_config.json"
        if inside.exists():
            if lora is not None and lora.resolve() != path.resolve():
                raise CheckpointError(
                    f"{inside} is a LoRA adapter, and --lora names another ({lora}); move one of them away."
                )
            lora = path
    else:
        checkpoint = _read_file(path)
    return merge_lora(checkpoint, lora) if lora is not None else checkpoint


def _read_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} holds weights alone; give the folder it is in, with config.json beside it.")
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when opened and is refused; "
            "save the checkpoint with transformers' save_pretrained, which writes safetensors, and give its folder."
        )
    return read_gguf(path)


def _missing(path: Path) -> CheckpointError:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists():
        return CheckpointError(
            f"{path} looks like a model id, and HandLens downloads nothing; fetch it first, for example with "
            f"`hf download {path} --local-dir {path.name}`, and give that folder."
        )
    return CheckpointError(f"{path} does not exist; give a checkpoint folder or a GGUF file.")
