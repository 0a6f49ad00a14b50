"""An evaluation set: a JSONL file beside its pictures, one object a line. Knows nothing about engines or scores.

    {"image": "pages/7.png", "question": "What is the total?", "answer": "12.40", "kind": "field", "group": "unseen"}

`image` is relative to the file's folder, or null for a question without a picture; `group` may be left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from handlens_runtime.errors import EvaluationError

Text = Annotated[str, StringConstraints(pattern=r"\S")]
"""Says something: more than spaces."""
_EXAMPLE = '{"image": "1.png", "question": "…", "answer": "…", "kind": "field"}'


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image: Text | None
    question: Text
    answer: Text
    kind: Text
    group: Text | None = None


@dataclass(frozen=True)
class Question:
    """One question and the one string that answers it."""

    line: int
    """Where it stands in the file, from 1."""
    image: Path | None
    """Its picture, which exists."""
    question: str
    answer: str
    kind: str
    """What is asked for: results are given per kind."""
    group: str | None = None
    """What is to be told apart within a kind, such as `seen` and `unseen` fonts."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one file, or some of them."""

    path: Path
    sha256: str
    """Of the file's bytes, as `sha256sum` prints it; the pictures are not in it."""
    questions: tuple[Question, ...]

    def spread(self, limit: int, seed: int = 0) -> QuestionSet:
        """`limit` questions drawn by `seed`, as evenly over kinds and groups as there are any, in the file's order."""
        strata: dict[tuple[str, str | None], list[Question]] = {}
        for question in self.questions:
            strata.setdefault((question.kind, question.group), []).append(question)
        random = Random(seed)
        for stratum in strata.values():
            random.shuffle(stratum)
        in_turn = [question for one in zip_longest(*strata.values()) for question in one if question is not None]
        return replace(self, questions=tuple(sorted(in_turn[:limit], key=lambda question: question.line)))


def read_set(path: Path) -> QuestionSet:
    """Read an evaluation set and see that its pictures are there.

    Raises EvaluationError, one sentence that names the file and the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}); give an evaluation set (JSONL).") from error
    # Not splitlines, which breaks a line at characters that may stand in a JSON string.
    lines = content.split(b"\n")
    questions = [_question(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise EvaluationError(f"{path} holds no questions; write one object a line, such as {_EXAMPLE}.")
    return QuestionSet(path, hashlib.sha256(content).hexdigest(), tuple(questions))


def by_picture(questions: Sequence[Question]) -> list[Question]:
    """Those about the same picture one after another, pictures in the order of their first question."""
    first: dict[Path | None, int] = {}
    for question in questions:
        first.setdefault(question.image, len(first))
    return sorted(questions, key=lambda question: first[question.image])


def _question(path: Path, number: int, line: bytes) -> Question:
    where = f"{path}, line {number}"
    try:
        read = _Line.model_validate_json(line)
    except ValidationError as error:
        raise EvaluationError(f"{where}: {_wrong(error)}; write an object such as {_EXAMPLE}.") from error
    image = None if read.image is None else path.parent / read.image
    if read.image is not None and Path(read.image).is_absolute():
        raise EvaluationError(f"{where}: the image {read.image} is an absolute path; write it relative to the file.")
    if image is not None and not image.is_file():
        raise EvaluationError(f"{where}: there is no picture {image}; put it there or correct the line.")
    return Question(number, image, read.question, read.answer, read.kind, read.group)


def _wrong(error: ValidationError) -> str:
    """The first thing that is wrong with a line, in words of the file."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    said = {
        "json_invalid": f"not JSON ({first.get('ctx', {}).get('error', 'unreadable')})",
        "model_type": "not an object",
        "missing": f"the key '{key}' is missing",
        "extra_forbidden": f"the key '{key}' is unknown",
        "string_type": f"'{key}' is no string",
        "string_pattern_mismatch": f"'{key}' is empty",
    }
    return said.get(first["type"], f"{key} {first['msg']}".strip())
