"""What an evaluation found, per kind and group, and how two of the same questions differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation.question_set import Question
from handlens_runtime.evaluation.scoring import character_accuracy, exact_match, paired_interval, wilson

Found = TypeVar("Found")
Cell = tuple[str | None, str | None]
"""A kind and a group; None stands for all of them."""


@dataclass(frozen=True)
class Answer:
    """What was answered to one question."""

    question: Question
    text: str
    prompt_tokens: int = 0
    image_tokens: int = 0
    """Prompt tokens that the picture fills."""
    generated_tokens: int = 0

    @cached_property
    def exact(self) -> bool:
        """The expected string, but for whitespace at both ends."""
        return exact_match(self.text, self.question.answer)

    @cached_property
    def character_accuracy(self) -> float:
        """1 - edit distance / length of the longer of both strings, from 0 to 1."""
        return character_accuracy(self.text, self.question.answer)

    def to_json(self) -> dict[str, Any]:
        """One line of `--answers`: the question as its file has it, and the answer."""
        asked = self.question
        return {
            "line": asked.line,
            "image": None if asked.image is None else str(asked.image),
            "question": asked.question,
            "expected": asked.answer,
            "answer": self.text,
            "kind": asked.kind,
            "group": asked.group,
            "exact": self.exact,
            "character_accuracy": round(self.character_accuracy, 4),
            "prompt_tokens": self.prompt_tokens,
            "image_tokens": self.image_tokens,
            "generated_tokens": self.generated_tokens,
        }


@dataclass(frozen=True)
class Score:
    """How well the questions of one kind and group were answered."""

    kind: str | None
    """None: all kinds."""
    group: str | None
    """None: all groups, or questions that name none."""
    count: int
    exact_match: float
    """Share, 0 to 1."""
    interval: tuple[float, float]
    """95 % interval of the exact match (Wilson)."""
    character_accuracy: float
    """Mean, 0 to 1."""
    image_tokens: float
    """Mean of a question's prompt."""


@dataclass(frozen=True)
class Difference:
    """The same questions answered twice: this run beside another."""

    kind: str | None
    group: str | None
    count: int
    difference: float
    """This run's exact match minus the other's."""
    interval: tuple[float, float]
    """95 % interval of the difference, paired."""
    only_first: int
    """Questions that this run alone answered right."""
    only_second: int
    """Questions that the other run alone answered right."""
    identical: float
    """Share of questions with the same answer, right or wrong, whitespace at both ends left out."""


@dataclass(frozen=True)
class Evaluation:
    """One bundle's answers to a set on one backend."""

    bundle: str
    """The bundle's name, from its manifest."""
    folder: Path
    """The bundle's, absolute."""
    backend: str
    path: Path
    """The evaluation set."""
    sha256: str
    """The evaluation set's."""
    answers: tuple[Answer, ...]
    """Fewer than there are questions where the run was stopped."""
    dense: bool = False
    """Told to keep all of a prompt."""

    @property
    def overall(self) -> Score:
        """All questions together. Raises EvaluationError where there is no answer."""
        if not self.answers:
            raise EvaluationError(f"No question of {self.path} was answered; let at least one be.")
        return _score((None, None), self.answers)

    @property
    def scores(self) -> tuple[Score, ...]:
        """A score for each kind and group, in order of appearance; each group in all where there are several; all."""
        return tuple(_score(cell, chosen) for cell, chosen in _cells(self.answers, lambda answer: answer.question))

    def compare(self, other: Evaluation) -> tuple[Difference, ...]:
        """This run minus `other`, question by question, for the same kinds and groups as `scores`.

        Questions that only one of them answered are left out. Raises EvaluationError where they have none in common.
        """
        theirs = {answer.question.line: answer for answer in other.answers}
        pairs = [(ours, theirs[ours.question.line]) for ours in self.answers if ours.question.line in theirs]
        if self.sha256 != other.sha256 or not pairs:
            raise EvaluationError(
                f"The runs of {self.path} and {other.path} have no questions in common; "
                "compare two runs of one evaluation set with the same limit."
            )
        return tuple(_difference(cell, chosen) for cell, chosen in _cells(pairs, lambda pair: pair[0].question))

    def to_json(self) -> dict[str, Any]:
        """For scripts: the scores, not the answers."""
        return {
            "bundle": self.bundle,
            "folder": str(self.folder),
            "backend": self.backend,
            "dense": self.dense,
            "set": {"path": str(self.path), "sha256": self.sha256},
            "scores": [asdict(score) for score in self.scores],
        }


def _cells(found: Sequence[Found], question: Callable[[Found], Question]) -> Iterator[tuple[Cell, list[Found]]]:
    """Each kind and group with what belongs to it, then each group where there are several, then everything."""
    kinds = dict.fromkeys(question(one).kind for one in found)
    groups = dict.fromkeys(question(one).group for one in found)
    cells: list[Cell] = [(kind, group) for kind in kinds for group in groups]
    if len(groups) > 1:
        cells += [(None, group) for group in groups if group is not None]
    for kind, group in cells:
        chosen = [one for one in found if kind in (None, question(one).kind) and group == question(one).group]
        if chosen:
            yield (kind, group), chosen
    if found:
        yield (None, None), list(found)


def _score(cell: Cell, answers: Sequence[Answer]) -> Score:
    count, hits = len(answers), sum(answer.exact for answer in answers)
    return Score(
        *cell,
        count=count,
        exact_match=hits / count,
        interval=wilson(hits, count),
        character_accuracy=fmean(answer.character_accuracy for answer in answers),
        image_tokens=fmean(answer.image_tokens for answer in answers),
    )


def _difference(cell: Cell, pairs: Sequence[tuple[Answer, Answer]]) -> Difference:
    only_first = sum(ours.exact and not theirs.exact for ours, theirs in pairs)
    only_second = sum(theirs.exact and not ours.exact for ours, theirs in pairs)
    return Difference(
        *cell,
        count=len(pairs),
        difference=(only_first - only_second) / len(pairs),
        interval=paired_interval(only_first, only_second, len(pairs)),
        only_first=only_first,
        only_second=only_second,
        identical=fmean(exact_match(ours.text, theirs.text) for ours, theirs in pairs),
    )
