"""The .pte files, unmodified, in ExecuTorch's own runners: the same greedy tokens as our engine gives."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import bundles
import executorch_judge
import numpy as np
from numpy.typing import NDArray
from outcome import Cases, Outcome
from tiny_checkpoints import tiny_checkpoint

from handlens_export import pipeline
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import PreparedPrompt, prepare_prompt
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.chat import Message, render
from handlens_runtime.engine import Engine
from handlens_runtime.options import Options

TOKENS = 32
QUESTIONS = ("What is the capital of France?", "Write a short poem about the sea.", "Explain why the sky is blue.")
PROGRAM = "executorch/model.pte"


def text(group: int) -> Outcome:
    """TextLLMRunner reads the rendered chat template with the bundle's own tokenizer.json."""
    folder = bundles.smollm2(group)
    engine = Engine(folder, "executorch")
    rows = []
    for question in QUESTIONS:
        messages = [Message("user", question)]
        ours, count = _engine_pieces(engine, messages)
        prompt = render(engine.bundle.manifest.chat, messages, parts=False, answer=True)
        with tempfile.TemporaryDirectory() as scratch:
            theirs, counted = executorch_judge.text_answer(
                folder / PROGRAM, folder / TOKENIZER, prompt, TOKENS, Path(scratch)
            )
        rows.append(_row(question, ours, theirs, count == counted))
    return _outcome("TextLLMRunner", rows)


def nano() -> Outcome:
    """MultimodalRunner gets token ids and the tiles that our preprocessing makes."""
    return _multimodal(bundles.nano(), photographs()[:3])


def tiny(family: str) -> Outcome:
    """The same on a tiny checkpoint of trained size weights, whose answers depend on the picture more."""
    with tempfile.TemporaryDirectory() as scratch:
        source = tiny_checkpoint(family, Path(scratch) / "checkpoint")
        pipeline.export(source, Path(scratch) / "bundle", Recipe(backends=("executorch",)))
        return _multimodal(Path(scratch) / "bundle", photographs()[:3])


def _multimodal(folder: Path, pictures: list[Path]) -> Outcome:
    engine = Engine(folder, "executorch")
    rows = []
    for picture in pictures:
        messages = [Message("user", "What is this?", images=(picture,))]
        ours, count = _engine_pieces(engine, messages)
        prepared = prepare_prompt(engine.bundle.manifest, engine.tokenizer, messages)
        with tempfile.TemporaryDirectory() as scratch:
            theirs, counted = executorch_judge.multimodal_answer(
                folder / PROGRAM, folder / TOKENIZER, _pieces(engine, prepared), TOKENS, Path(scratch)
            )
        rows.append(_row(picture.name, ours, theirs, count == counted))
    return _outcome("MultimodalRunner", rows)


def _engine_pieces(engine: Engine, messages: list[Message]) -> tuple[list[str], int]:
    """Each greedy token's own text, as the runners print it, and the prompt's length."""
    ids = [token.id for token in engine.generate(messages, Options(max_tokens=TOKENS, temperature=0.0))]
    return [engine.tokenizer.decode([one], skip_special_tokens=False) for one in ids], engine.stats.prompt_tokens


def _pieces(engine: Engine, prepared: PreparedPrompt) -> list[list[int] | NDArray[np.float32]]:
    """The prompt as the runner takes it: runs of ids, and a tile where its embeddings stand."""
    rule = engine.bundle.manifest.image
    assert rule is not None
    pieces: list[list[int] | NDArray[np.float32]] = []
    for key in prepared.prompt.keys:
        if isinstance(key, tuple):
            digest, row = key
            if row % rule.tokens_per_tile == 0:
                pieces.append(prepared.tiles[digest].pixels[row // rule.tokens_per_tile])
        elif pieces and isinstance(pieces[-1], list):
            pieces[-1].append(key)
        else:
            pieces.append([key])
    return pieces


def _row(question: str, ours: list[str], theirs: list[str], same_prompt: bool) -> dict[str, Any]:
    return {
        "question": question,
        "tokens": len(ours),
        "same": same_prompt and ours == theirs,
        "different kinds": len(set(ours)),
        "ours": "".join(ours),
        "theirs": "".join(theirs),
    }


def _outcome(runner: str, rows: list[dict[str, Any]]) -> Outcome:
    bar = f"{runner} gives the engine's greedy tokens"
    return Outcome({"questions": rows}, bar, all(row["same"] for row in rows))


CASES: Cases = {f"TextLLMRunner on SmolLM2 in groups of {group}": partial(text, group) for group in (32, 64)}
CASES |= {"MultimodalRunner on bluelm-v-nano with photographs": nano}
CASES |= {
    f"MultimodalRunner on a tiny {family} with photographs": partial(tiny, family) for family in ("bluelm_v", "smolvlm")
}
