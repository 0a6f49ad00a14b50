"""Asks an engine the questions of a set, greedily, one by one. Knows nothing about files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.errors import EvaluationError, ImageError, PromptError
from handlens_runtime.evaluation.question_set import Question, QuestionSet, by_picture
from handlens_runtime.evaluation.report import Answer, Evaluation
from handlens_runtime.options import Options

MARGIN = 8
"""Tokens beyond the longest expected answer: enough to see that an answer goes on where it should end."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole done, 0 to 1."""


def ask(engine: Engine, chosen: QuestionSet, stopped: Callable[[], bool] | None = None) -> Iterator[Answer]:
    """Answer each question in a conversation of its own, and yield the answer at once.

    Ends early where the engine's `stop()` cuts an answer, or `stopped` is true before a question: a `stop()` between
    two answers alone would have no effect.
    Questions about one picture come one after another, so that the engine encodes it once and keeps its cache rows:
    the order is not the file's. No answer may be longer than the longest expected one and MARGIN tokens: not than
    its own, which would cut a wrong answer to the right length. Raises EvaluationError, which names the line, for a
    question that the bundle cannot be asked; BackendError, BusyError.
    """
    _refuse_pictures(engine, chosen)
    longest = max((len(engine.tokenizer.encode(question.answer)) for question in chosen.questions), default=0)
    options = Options(max_tokens=longest + MARGIN, temperature=0.0, repetition_penalty=1.0)
    for question in by_picture(chosen.questions):
        if stopped is not None and stopped():
            return
        images = () if question.image is None else (question.image,)
        try:
            text = "".join(t.text for t in engine.generate([Message("user", question.question, images)], options))
        except (PromptError, ImageError) as error:
            raise EvaluationError(f"{chosen.path}, line {question.line}: {error}") from error
        stats = engine.stats
        if stats.finish == "cancelled":
            return
        yield Answer(question, text, stats.prompt_tokens, stats.image_tokens, stats.generated_tokens)


def evaluate(
    engine: Engine,
    chosen: QuestionSet,
    *,
    progress: Progress | None = None,
    each: Callable[[Answer], None] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Evaluation:
    """Ask all questions; `each` is given every answer as soon as it is there. Ends early and raises as `ask` does."""
    name = engine.backend.name
    answers: list[Answer] = []
    for answer in ask(engine, chosen, stopped):
        answers.append(answer)
        if each is not None:
            each(answer)
        if progress is not None:
            progress(f"evaluate {name}", len(answers) / len(chosen.questions))
    bundle = engine.bundle
    return Evaluation(
        bundle.manifest.name,
        bundle.path,
        name,
        chosen.path,
        chosen.sha256,
        tuple(answers),
        dense=engine.sparse is False,
    )


def _refuse_pictures(engine: Engine, chosen: QuestionSet) -> None:
    """Before anything is asked: a text-only bundle cannot answer about pictures."""
    if engine.bundle.manifest.image is not None:
        return
    shown: list[Question] = [question for question in chosen.questions if question.image is not None]
    if shown:
        raise EvaluationError(
            f"{chosen.path}, line {shown[0].line}, shows a picture, but {engine.bundle.path} reads text only; "
            "give a bundle that reads pictures, or a set without them."
        )
