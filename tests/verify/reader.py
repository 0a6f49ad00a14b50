"""The reader: what it reads, what tiling is worth, and what 4 bits cost, on pages that no training drew."""

from __future__ import annotations

from typing import Any

import reading
from outcome import Cases, Outcome

from handlens_export.reader.evaluation_set import USUAL
from handlens_runtime.evaluation import Evaluation, QuestionSet

EACH = 1000
PAIRED = 6000
SMALL = 300
"""Questions of each kind about small text."""


def accuracy() -> Outcome:
    """Float on ONNX Runtime, 1,000 questions of each kind in each group."""
    found = reading.answered(reading.bundle("float", reading.FLOAT), "onnx", _asked())
    values = _per_kind(found)
    least = {
        group: min(score.exact_match for score in found.scores if score.group == group and score.kind is not None)
        for group in ("seen", "unseen-fonts")
    }
    passed = least["seen"] >= 0.95 and least["unseen-fonts"] >= 0.85
    return Outcome(values, "exact match of every kind: seen at least 0.95, unseen fonts at least 0.85", passed)


def tiling() -> Outcome:
    """The same pages of small text, cut into tiles by each rule."""
    asked = reading.questions("small", SMALL, ("small-text",))
    runs = {
        rule: reading.answered(reading.bundle("float", reading.FLOAT, rule), "onnx", asked)
        for rule in ("relaxed", "single", "largest-effective", "closest-ratio")
    }
    values: dict[str, Any] = {"questions": len(asked.questions)}
    for rule, run in runs.items():
        values[rule] = {**_score(run), "vision tokens": round(run.overall.image_tokens)}
        if rule != "relaxed":
            whole = runs["relaxed"].compare(run)[-1]
            values[rule]["relaxed minus this"] = _points(whole.difference, whole.interval)
    gained = runs["relaxed"].overall.exact_match - runs["single"].overall.exact_match
    return Outcome(values, "relaxed at least 20 points over a single tile; the rest is reported", gained >= 0.2)


def four_bits(backend: Any) -> Outcome:
    """4 bits against float, paired, on one backend."""
    asked = _paired()
    floating = reading.answered(reading.bundle("float", reading.FLOAT), "onnx", asked)
    rounded = reading.answered(reading.bundle("int4", reading.INT4), backend, asked)
    whole = rounded.compare(floating)[-1]
    values = {
        "questions": whole.count,
        "float": _score(floating),
        "4 bits": _score(rounded),
        "4 bits minus float": _points(whole.difference, whole.interval),
    }
    return Outcome(values, "at most 1 point below float, 95 % interval included", whole.interval[0] >= -0.01)


def backends() -> Outcome:
    """The answers of both programs of one 4-bit bundle."""
    path, asked = reading.bundle("int4", reading.INT4), _paired()
    one, other = (reading.answered(path, name, asked) for name in ("onnx", "executorch"))  # type: ignore[arg-type]
    whole = one.compare(other)[-1]
    values = {"questions": whole.count, "same answer": round(whole.identical, 4)}
    return Outcome(values, "the same answer to at least 99 %", whole.identical >= 0.99)


def _asked() -> QuestionSet:
    return reading.questions("usual", EACH, USUAL)


def _paired() -> QuestionSet:
    return _asked().spread(PAIRED)


def _per_kind(found: Evaluation) -> dict[str, Any]:
    return {
        f"{score.group or 'all groups'}, {score.kind or 'all kinds'}": {
            "questions": score.count,
            "exact": round(score.exact_match, 4),
            "characters": round(score.character_accuracy, 4),
        }
        for score in found.scores
    }


def _score(found: Evaluation) -> dict[str, float]:
    whole = found.overall
    return {"exact": round(whole.exact_match, 4), "characters": round(whole.character_accuracy, 4)}


def _points(difference: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * difference:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"


CASES: Cases = {
    "what it reads, per kind": accuracy,
    "what tiling is worth": tiling,
    "4 bits on ONNX Runtime": lambda: four_bits("onnx"),
    "4 bits on ExecuTorch": lambda: four_bits("executorch"),
    "both backends answer alike": backends,
}
