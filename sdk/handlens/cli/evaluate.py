"""`handlens eval`: how many questions a bundle answers right, or how well it predicts a text; two runs, paired."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.choices import BackendChoice
from handlens.cli.interrupt import interruptible, stops
from handlens.cli.outcome import STOPPED, answered, complain
from handlens.cli.progress import Progress, shown
from handlens.cli.quiet import hushed_loading
from handlens.cli.tiles import check_target
from handlens_runtime.errors import OptionError

if TYPE_CHECKING:
    from handlens_runtime.engine import Engine
    from handlens_runtime.evaluation import Answer, Evaluation, Perplexity, QuestionSet

TEXT = ".txt"
"""Ending of a file that is a text to predict, and not questions to answer."""


@dataclass(frozen=True)
class Run:
    """One of the bundles to measure."""

    bundle: Path
    backend: BackendChoice | None
    start: float
    """Where its progress begins, as a share of the whole."""
    part: float
    """Its share of the whole."""
    dense: bool = False
    """Whether it is to keep all of a prompt."""


@answered
def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="SET", help="JSONL with questions and answers; or a .txt, for perplexity.", show_default=False
        ),
    ],
    backend: Annotated[
        BackendChoice | None, typer.Option(help="What runs it.", show_default="fastest installed")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Questions, spread over kinds and groups; or tokens of a text.", show_default="all"
        ),
    ] = None,
    vs: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Another bundle to compare with.", show_default=False)
    ] = None,
    vs_backend: Annotated[
        BackendChoice | None,
        typer.Option(help="What runs the one to compare with, by itself the same bundle.", show_default=False),
    ] = None,
    vs_dense: Annotated[
        bool, typer.Option("--vs-dense", help="Compare with the same bundle keeping all of each prompt.")
    ] = False,
    after: Annotated[
        int | None,
        typer.Option(metavar="N", help="Score a text behind prompts of N tokens.", show_default="from the first token"),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every answer, one JSON a line.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw exact match per kind and group.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON object.")] = False,
) -> None:
    """Count the questions that a bundle answers right.

    Exact match and character accuracy per kind and group, with 95 % intervals. Ctrl-C shows what there is so far.
    """
    from handlens import _api

    _api.check_limit(limit)
    is_text = questions.suffix.lower() == TEXT
    for name, given in (("--answers", answers), ("--picture", picture)):
        if given is not None and is_text:
            raise OptionError(f"{name} is for questions, but {questions} is a text; leave it out or give a .jsonl.")
    if after is not None and not is_text:
        raise OptionError(f"--after is for a text, but {questions} is a set of questions; leave it out or give a .txt.")
    if after is not None and after < 1:
        raise OptionError(f"--after is {after}; choose a whole number of at least 1, or leave it out.")
    if vs_dense and not (vs is None and vs_backend is None):
        raise OptionError("--vs-dense compares a bundle with itself; leave out --vs and --vs-backend, or it.")
    if picture is not None:
        check_target("--picture", picture)
    if vs_dense:
        _check_dense(bundle)
    runs = _runs(bundle, backend, vs, vs_backend, vs_dense)
    if is_text:
        _predict(runs, questions, limit, after, as_json)
    else:
        _ask(runs, questions, limit, answers, picture, as_json)


def _check_dense(bundle: Path) -> None:
    from handlens import _api
    from handlens_runtime.bundle import Bundle

    with interruptible():
        _api.check_dense(Bundle.load(bundle))


def _runs(
    bundle: Path, backend: BackendChoice | None, vs: Path | None, vs_backend: BackendChoice | None, vs_dense: bool
) -> tuple[Run, ...]:
    if vs is None and vs_backend is None and not vs_dense:
        return (Run(bundle, backend, 0.0, 1.0),)
    return Run(bundle, backend, 0.0, 0.5), Run(vs or bundle, vs_backend or backend, 0.5, 0.5, vs_dense)


def _ask(
    runs: tuple[Run, ...], path: Path, limit: int | None, answers: Path | None, picture: Path | None, as_json: bool
) -> None:
    with interruptible():
        from handlens_runtime.evaluation import read_set

        chosen = read_set(path)
    if limit is not None:
        chosen = chosen.spread(limit)
    found: list[Evaluation] = []
    stopped = False
    with shown() as progress, _answers_to(answers) as write:
        for run in runs:
            if not stopped:
                evaluation, stopped = _asked(run, chosen, progress, write)
                found.append(evaluation)
    if stopped:
        complain(f"Stopped after {len(found[-1].answers)} of {len(chosen.questions)} questions.")
    found = [evaluation for evaluation in found if evaluation.answers]
    if found:
        _tell(found, picture, as_json)
    if stopped:
        raise typer.Exit(STOPPED)


def _tell(found: list[Evaluation], picture: Path | None, as_json: bool) -> None:
    from handlens.cli.scores import show_scores

    if picture is not None:
        from handlens.cli.bars import draw_bars

        draw_bars(found).save(picture)
    if as_json:
        typer.echo(json.dumps(_as_json(found)))
    else:
        show_scores(found)


def _asked(
    run: Run, chosen: QuestionSet, progress: Progress, write: Callable[[dict[str, object], Answer], None]
) -> tuple[Evaluation, bool]:
    from handlens_runtime.evaluation import evaluate

    engine = _loaded(run)
    name = engine.backend.name
    with stops(engine) as seen:
        evaluation = evaluate(
            engine,
            chosen,
            progress=_part(progress, run),
            each=lambda answer: write({"folder": str(run.bundle), "backend": name, "dense": run.dense}, answer),
            stopped=lambda: bool(seen),
        )
    return evaluation, len(evaluation.answers) < len(chosen.questions)


def _as_json(found: list[Evaluation]) -> dict[str, object]:
    other = found[1] if len(found) > 1 else None
    return {
        **found[0].to_json(),
        "vs": None if other is None else other.to_json(),
        "differences": [] if other is None else [asdict(one) for one in found[0].compare(other)],
    }


@contextmanager
def _answers_to(path: Path | None) -> Iterator[Callable[[dict[str, object], Answer], None]]:
    """What writes one answer and who gave it: each line is in the file before the next question is asked."""
    if path is None:
        yield lambda _by, _answer: None
        return
    with path.open("w", encoding="utf-8") as file:

        def write(by: dict[str, object], answer: Answer) -> None:
            file.write(json.dumps({**by, **answer.to_json()}, ensure_ascii=False) + "\n")
            file.flush()

        yield write


def _predict(runs: tuple[Run, ...], path: Path, limit: int | None, after: int | None, as_json: bool) -> None:
    found: list[Perplexity] = []
    stopped = False
    told: set[Path] = set()
    with shown() as progress:
        for run in runs:
            if not stopped:
                perplexity, stopped = _predicted(run, path, limit, after, progress, told)
                found.append(perplexity)
    if stopped:
        complain(f"Stopped after {found[-1].tokens:,} tokens.")
    found = [perplexity for perplexity in found if perplexity.tokens]
    if found:
        _tell_perplexity(found, compared=len(runs) > 1 and not stopped, as_json=as_json)
    if stopped:
        raise typer.Exit(STOPPED)


def _predicted(
    run: Run, path: Path, limit: int | None, after: int | None, progress: Progress, told: set[Path]
) -> tuple[Perplexity, bool]:
    """`told`: bundles of which it was said that behind so short a prompt they leave nothing out."""
    from handlens_runtime.evaluation import measure

    engine, prompt = _loaded(run), after or 1
    sparsity = engine.bundle.manifest.sparsity
    untold = not run.dense and run.bundle not in told
    if untold and sparsity is not None and sparsity.leaves_out and prompt < sparsity.least_tokens:
        told.add(run.bundle)
        complain(
            f"{run.bundle} leaves tokens out of prompts of {sparsity.least_tokens} and more, and is not asked one "
            f"here; give --after {sparsity.least_tokens} or more to score behind one."
        )
    with stops(engine) as seen:
        found = measure(
            engine,
            path,
            after=prompt,
            limit=limit,
            progress=_part(progress, run),
            stopped=lambda: bool(seen),
        )
    return found, bool(seen)


def _tell_perplexity(found: list[Perplexity], compared: bool, as_json: bool) -> None:
    ratio = found[0].compare(found[1]) if compared else None
    if as_json:
        other = found[1].to_json() if len(found) > 1 else None
        told = {**found[0].to_json(), "vs": other, "ratio": None if ratio is None else asdict(ratio)}
        typer.echo(json.dumps(told))
        return
    from handlens.cli.scores import name_of

    for one in found:
        typer.echo(
            f"{name_of(one)}: perplexity {one.perplexity:.3f}, standard error "
            f"{one.standard_error:.3f}, over {one.tokens:,} tokens of {one.path}"
            f"{f' behind prompts of {one.after:,}' * (one.after > 1)}."
        )
    if ratio is not None:
        low, high = ratio.interval
        typer.echo(f"The first is {ratio.ratio:.4f} times the second, 95 % interval {low:.4f} to {high:.4f}, paired.")


def _loaded(run: Run) -> Engine:
    from handlens import _api
    from handlens_runtime.bundle import Bundle

    with interruptible():
        bundle = Bundle.load(run.bundle)
    for warning in bundle.warnings:
        complain(warning)
    with hushed_loading(), interruptible():
        engine = _api.steady_engine(bundle, run.backend, run.dense)
    for warning in engine.warnings:
        complain(warning)
    return engine


def _part(progress: Progress, run: Run) -> Progress:
    return lambda stage, share: progress(stage, run.start + run.part * share)
