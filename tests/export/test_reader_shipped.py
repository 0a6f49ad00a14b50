"""The reader that comes with HandLens has learned: in 4 bits it reads far more than a random network would."""

from __future__ import annotations

from pathlib import Path

from handlens_export.pipeline import export
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import Bundle
from handlens_runtime.evaluation import evaluate, read_set
from handlens_runtime.golden.asking import engine_for

READER = Path(__file__).resolve().parents[2] / "assets" / "reader"
LEAST = 0.3
"""Mean character accuracy on the gate's questions: 0.75 in 4 bits over all of them; random weights reach under 0.1."""


def test_the_shipped_weights_read_in_four_bits(tmp_path: Path) -> None:
    """For ONNX Runtime alone, whose lowering takes seconds."""
    export(READER, tmp_path / "bundle", Recipe(backends=("onnx",), context=1024))
    asked = read_set(READER / "gate" / "questions.jsonl").spread(60)
    found = evaluate(engine_for(Bundle.load(tmp_path / "bundle"), "onnx"), asked)
    assert found.overall.character_accuracy >= LEAST
    answers = {answer.text for answer in found.answers}
    assert len(answers) > len(found.answers) / 4  # not the few likeliest answers to everything
