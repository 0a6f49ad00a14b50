"""The reader's answers to sets that no training drew: each is asked once per bundle and backend, and kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import bundles

from handlens_export.reader import evaluation_set
from handlens_export.reader.draw import Grid
from handlens_export.reader.stages import MANY
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import Bundle
from handlens_runtime.evaluation import Answer, Evaluation, Question, QuestionSet, evaluate, read_set
from handlens_runtime.golden.asking import engine_for
from handlens_runtime.manifest import BackendName

CHECKPOINT = bundles.ROOT / "assets" / "reader"
FLOAT = Recipe(bits=32, head_bits=32, vision_bits=32, embedding_bits=32, kv="float")
INT4 = Recipe()
SEED = 0
"""Of the sets; the gate's and the demo's are others."""


def questions(name: str, each: int, groups: tuple[str, ...], grids: Sequence[Grid] = MANY) -> QuestionSet:
    """A set of `each` questions of each kind in each of the groups about pages of these sizes in tiles, drawn once per
    number and state of the code that draws.
    """
    drawn_by = bundles.digest([bundles.ROOT / "export" / "handlens_export" / "reader"])
    folder = bundles.verify_folder() / "reader" / f"{name}-{each}-{drawn_by}"
    if not folder.exists():
        for old in folder.parent.glob(f"{name}-*"):
            shutil.rmtree(old)
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        print(f"drawing {name}", file=sys.stderr, flush=True)
        evaluation_set.write(part, each, SEED, grids, groups)
        part.rename(folder)
    return read_set(folder / "questions.jsonl")


def bundle(name: str, recipe: Recipe, tiling: str = "relaxed") -> Path:
    """The reader, exported once per state of the exporter and of its weights; `tiling` may be another rule."""
    weights = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()[:12]
    return bundles.exported(_cut_by(tiling), f"reader-{name}-{tiling}-{weights}", recipe)


def answered(path: Path, backend: BackendName, asked: QuestionSet) -> Evaluation:
    """Every question's answer on one backend; those that are kept from before are not asked again."""
    loaded = Bundle.load(path)
    programs = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()[:12]
    kept = bundles.verify_folder() / "reader" / f"answers-{path.name}-{backend}-{programs}-{asked.sha256[:12]}.jsonl"
    by_line = {question.line: question for question in asked.questions}
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    before = [_from_json(line, by_line) for line in lines if line["line"] in by_line]  # others are of a larger part
    done = {answer.question.line for answer in before}
    left = replace(asked, questions=tuple(one for one in asked.questions if one.line not in done))
    if left.questions:
        began = time.monotonic()

        def keep(answer: Answer) -> None:
            with kept.open("a") as file:
                file.write(json.dumps(_to_json(answer)) + "\n")
            before.append(answer)
            if len(before) % 500 == 0:
                taken = time.monotonic() - began
                print(f"{kept.name}: {len(before)} of {len(by_line)}, {taken:.0f} s", file=sys.stderr, flush=True)

        evaluate(engine_for(loaded, backend), left, each=keep)
    return Evaluation(path.name, path, backend, asked.path, asked.sha256, tuple(before))


def _cut_by(tiling: str) -> Path:
    """The checkpoint, or a copy of it that names another rule."""
    if tiling == "relaxed":
        return CHECKPOINT
    folder = bundles.verify_folder() / "reader" / f"checkpoint-{tiling}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    rule = json.loads((folder / "preprocessor_config.json").read_text())
    rule["tiling"] = tiling
    (folder / "preprocessor_config.json").write_text(json.dumps(rule))
    return folder


def _to_json(answer: Answer) -> dict[str, object]:
    counts = (answer.prompt_tokens, answer.image_tokens, answer.generated_tokens)
    return {"line": answer.question.line, "answer": answer.text, "tokens": counts}


def _from_json(kept: dict[str, object], by_line: dict[int, Question]) -> Answer:
    line, text, tokens = kept["line"], kept["answer"], kept["tokens"]
    assert isinstance(line, int) and isinstance(text, str) and isinstance(tokens, list)
    return Answer(by_line[line], text, *tokens)
