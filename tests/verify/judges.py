"""The .pte files, unmodified, in ExecuTorch's own runners: the same greedy tokens as our engine gives."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import bundles
import executorch_judge
from outcome import Cases, Outcome
from tiny_checkpoints import tiny_checkpoint

from handlens_export import pipeline
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import prepare_prompt
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
        # Each token's own text, as the runner prints it.
        ours = [engine.tokenizer.decode([one], skip_special_tokens=False) for one in _ids(engine, messages)]
        prompt = render(engine.bundle.manifest.chat, messages, parts=False, answer=True)
        with tempfile.TemporaryDirectory() as scratch:
            theirs, count = executorch_judge.text_answer(
                folder / PROGRAM, folder / TOKENIZER, prompt, TOKENS, Path(scratch)
            )
        same = count == engine.stats.prompt_tokens and ours == theirs
        rows.append({"question": question, "tokens": len(ours), "same": same, "answer": "".join(theirs)})
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
    manifest = engine.bundle.manifest
    rows = []
    for picture in pictures:
        messages = [Message("user", "What is this?", images=(picture,))]
        ours = _ids(engine, messages)
        prepared = prepare_prompt(manifest, engine.tokenizer, messages)
        assert manifest.image is not None
        tiles = {key: cut.pixels for key, cut in prepared.tiles.items()}
        pieces = executorch_judge.in_pieces(prepared.prompt.keys, tiles, manifest.image.tokens_per_tile)
        with tempfile.TemporaryDirectory() as scratch:
            theirs, count = executorch_judge.multimodal_answer(
                folder / PROGRAM, manifest.sizes.vocab_size, pieces, TOKENS, Path(scratch)
            )
        same = count == engine.stats.prompt_tokens and ours == theirs
        rows.append({"picture": picture.name, "tokens": len(ours), "same": same, "ours": ours, "theirs": theirs})
    return _outcome("MultimodalRunner", rows)


def _ids(engine: Engine, messages: list[Message]) -> list[int]:
    return [token.id for token in engine.generate(messages, Options(max_tokens=TOKENS, temperature=0.0))]


def _outcome(runner: str, rows: list[dict[str, Any]]) -> Outcome:
    bar = f"{runner} gives the engine's greedy tokens"
    return Outcome({"questions": rows}, bar, all(row["same"] for row in rows))


CASES: Cases = {f"TextLLMRunner on SmolLM2 in groups of {group}": partial(text, group) for group in (32, 64)}
CASES |= {"MultimodalRunner on bluelm-v-nano with photographs": nano}
CASES |= {
    f"MultimodalRunner on a tiny {family} with photographs": partial(tiny, family) for family in ("bluelm_v", "smolvlm")
}
