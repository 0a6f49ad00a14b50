"""What an export measures activations on: the set, asked as the bundle will ask, and all that decides its rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

import handlens_runtime
from handlens_export.describe import Plan
from handlens_export.gate import check_readable
from handlens_export.network.network import Network
from handlens_export.quantize.calibrated import Calibration
from handlens_export.quantize.calibration import calibration_rows, digest, own_rows
from handlens_export.recipe import LENGTH
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.evaluation import read_set
from handlens_runtime.manifest import Manifest
from handlens_runtime.tokenizer import Tokenizer

SOURCES = ("images/*.py", "chat.py", "prompt.py", "tokenizer.py")
"""The runtime's code that a conversation's rows depend on."""


def calibration_of(path: Path | None, planned: Plan, manifest: Manifest) -> Calibration:
    """The user's own set, a text or an evaluation set (JSONL), or the built-in one, for a bundle to be.

    Raises CalibrationError where it cannot be read, EvaluationError where a question cannot be asked.
    """
    if path is not None and path.suffix == ".jsonl":
        check_readable(read_set(path), planned, "--calibration")

    def rows(network: Network) -> list[Tensor]:
        tokenizer = tokenizer_of(planned)
        if path is None:
            return list(calibration_rows(network, manifest, tokenizer))
        return list(own_rows(path, network, manifest, tokenizer, planned.bos_id))

    return Calibration(digest(path), _state(planned, manifest), rows)


def tokenizer_of(planned: Plan) -> Tokenizer:
    """The one that a bundle of the checkpoint will have: the runtime's, which reads a file."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / TOKENIZER
        file.write_text(planned.checkpoint.tokenizer_json, encoding="utf-8")
        return Tokenizer(file)


def _state(planned: Plan, manifest: Manifest) -> str:
    runtime = Path(handlens_runtime.__file__).parent
    state = hashlib.sha256(planned.checkpoint.tokenizer_json.encode())
    for part in (manifest.chat, manifest.image):
        state.update((part.model_dump_json() if part is not None else "").encode())
    for file in sorted(file for pattern in SOURCES for file in runtime.glob(pattern)):
        state.update(file.read_bytes())
    state.update(f"{min(LENGTH, planned.context)} {planned.bos_id}".encode())
    return state.hexdigest()
