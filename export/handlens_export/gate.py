"""The gate: before a bundle gets its name, its programs answer questions, and enough of the answers must be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from handlens_export.describe import Plan
from handlens_export.errors import GateError
from handlens_runtime import manifest
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import EvaluationError, OptionError
from handlens_runtime.evaluation import QuestionSet, Score, evaluate
from handlens_runtime.golden.asking import engine_for
from handlens_runtime.manifest import BackendName

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Gate:
    """What the exported programs have to answer."""

    path: Path
    """An evaluation set."""
    accuracy: float = 0.9
    """Least share of exact matches on every backend."""

    def __post_init__(self) -> None:
        share = self.accuracy
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise OptionError(f"--gate-accuracy is {share!r}, but a share lies between 0 and 1; give one such as 0.9.")


def check_readable(questions: QuestionSet, planned: Plan, option: str = "--gate") -> None:
    """Refuse, before any weight is read, questions about pictures for a network that reads text. EvaluationError."""
    shown = next((question for question in questions.questions if question.image is not None), None)
    if planned.image is None and shown is not None:
        raise EvaluationError(
            f"{questions.path}, line {shown.line}, shows a picture, but {planned.checkpoint.path} reads text only; "
            f"give {option} a set without pictures, or export a checkpoint that reads them."
        )


def judge(bundle: Bundle, questions: QuestionSet, accuracy: float, progress: Progress) -> manifest.Gate:
    """Ask each backend's programs of a bundle to be; the result is for its manifest.

    `progress` is told what is asked and the share of all questions on all backends done.

    Raises GateError at the first backend that answers too few questions exactly, EvaluationError, BackendError.
    """
    names = tuple(bundle.manifest.backends)
    scores: dict[BackendName, manifest.GateScore] = {}
    for index, name in enumerate(names):
        tell = partial(_tell, progress, f"gate {name}", index, len(names))
        score = evaluate(engine_for(bundle, name), questions, progress=tell).overall
        if score.exact_match < accuracy:
            raise _refused(name, questions, score, accuracy)
        scores[name] = manifest.GateScore(
            exact_match=round(score.exact_match, 6), character_accuracy=round(score.character_accuracy, 6)
        )
    return manifest.Gate(
        set_sha256=questions.sha256, questions=len(questions.questions), accuracy=accuracy, backends=scores
    )


def _tell(progress: Progress, what: str, before: int, backends: int, _stage: str, share: float) -> None:
    progress(what, (before + share) / backends)


def _refused(name: BackendName, questions: QuestionSet, score: Score, accuracy: float) -> GateError:
    right = round(score.exact_match * score.count)
    return GateError(
        f"The {name} program answers {right} of {score.count} questions of {questions.path} exactly "
        f"({score.exact_match:.1%}; characters {score.character_accuracy:.1%}), but --gate-accuracy asks for "
        f"{accuracy:.1%}",
        "export with more bits (--bits auto, --kv float), or ask for less",
    )
