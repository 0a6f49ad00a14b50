"""The sweep: the float network first, then each variant, quantized, tried and written down."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path

from handlens_export.checkpoint.read import read as read_checkpoint
from handlens_export.describe import Plan, describe, plan
from handlens_export.errors import TargetError, UnsupportedError
from handlens_export.forecast.files import weight_bytes
from handlens_export.gate import check_readable
from handlens_export.measuring import calibration_of, tokenizer_of
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.pipeline import TOO_FEW
from handlens_export.quantize.calibrated import CODE, Calibration, in_layers
from handlens_export.quantize.calibration import digest
from handlens_export.quantize.formats import is_product, weigh
from handlens_export.quantize.network import quantize_network
from handlens_export.quantize.stages import code_version, stage_key
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_export.sweep.items import Item, answer_items, text_items
from handlens_export.sweep.quality import Quality, quality
from handlens_export.sweep.table import Row, Table, read
from handlens_export.sweep.variants import Variant
from handlens_export.transform.transformed import transformed
from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation import QuestionSet, read_set
from handlens_runtime.evaluation.perplexity import read_text

Progress = Callable[[str, float], None]
FLOAT = "float"


@dataclass(frozen=True)
class Asked:
    """What every variant is tried on: a text, questions, or both."""

    text: Path | None = None
    tokens: int = 2048
    """Of the text, its first."""
    questions: Path | None = None
    limit: int = 100
    """Questions, spread over kinds and groups."""

    def __post_init__(self) -> None:
        if self.text is None and self.questions is None:
            raise UnsupportedError("Nothing was given to try the variants on; give --text, --questions or both.")
        for flag, value in (("--tokens", self.tokens), ("--limit", self.limit)):
            if value < 2:
                raise UnsupportedError(f"{flag} is {value}, which tells nothing; give at least 2.")


def sweep(
    checkpoint: Path,
    folder: Path,
    wanted: Sequence[Variant],
    asked: Asked,
    *,
    calibration: Path | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Table:
    """Try each variant on a checkpoint folder or GGUF file; the table is written to `folder` row by row.

    A row that is there from before is not measured again. What makes the table say less than it seems to goes to
    `warn`; without one, to Python's `warnings`. Raises CheckpointError, UnsupportedError, CalibrationError,
    EvaluationError, and TargetError where the folder holds a sweep of something else or cannot be written to.
    """
    report, said = progress or (lambda _stage, _share: None), warn or warnings.warn
    planned = plan(read_checkpoint(checkpoint), wanted[0].recipe)
    if not planned.config.decoder.causal:
        raise UnsupportedError(
            f"{checkpoint} reads a prompt as a whole, each token seeing those behind it, so that its answers cannot be "
            "scored along the right ones; export it in each way, and compare the bundles with handlens eval."
        )
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    chosen = None
    if asked.questions is not None:
        chosen = read_set(asked.questions).spread(asked.limit)
        check_readable(chosen, planned, "--questions")
    manifest = describe(planned, wanted[0].recipe, weigh(parameters.shapes, wanted[0].recipe))
    measured = calibration_of(calibration, planned, manifest)
    table = _begun(folder, planned, parameters, asked, measured, calibration, wanted[0].recipe.backends)
    missing = [variant for variant in wanted if all(row.name != variant.name for row in table.rows)]
    if not missing:
        return _in_order(table, wanted)
    items = list(_items(planned, parameters, asked, chosen))
    counts = Counter(item.kind for item in items)
    if chosen is not None and counts["answer"] < len(chosen.questions):
        if not counts["answer"]:
            raise EvaluationError(
                f"No question of {chosen.path} fits into {planned.context} tokens with its picture and answer; give "
                "questions with smaller pictures, or a text."
            )
        said(
            f"{len(chosen.questions) - counts['answer']} of {len(chosen.questions)} questions do not fit into "
            f"{planned.context} tokens with picture and answer, and were left out."
        )
    few = sorted({variant.recipe.method for variant in missing} & {"gptq", "rsq"})
    if calibration is None and few:
        said(TOO_FEW.format(" and ".join(few)))
    table.tokens = sum(len(item.expected) for item in items if item.kind == "text")
    table.questions = counts["answer"]
    steps = len(missing) + 1

    def told(step: int, name: str, begin: float, end: float) -> Callable[[float], None]:
        return lambda share: report(name, (step + begin + (end - begin) * share) / steps)

    exact = quality(float_network(parameters, planned.config, planned.context), items, told(0, FLOAT, 0, 1))
    if table.exact is None:
        table.rows.append(_row(parameters, None, wanted[0].recipe, exact, exact, 0.0))
        table.write(folder)
    for step, variant in enumerate(missing, start=1):
        name = variant.name
        began = time.monotonic()
        with StageCache() as kept:
            source = transformed(parameters, planned.config, variant.recipe, kept, measured, told(step, name, 0, 0.3))
            network, _ = quantize_network(
                source, planned.config, variant.recipe, planned.context, told(step, name, 0.3, 0.8), kept, measured
            )
            taken = time.monotonic() - began
            found = quality(network, items, told(step, name, 0.8, 1))
            del network
        table.rows.append(_row(parameters, variant, variant.recipe, found, exact, taken))
        table.write(folder)
    return _in_order(table, wanted)


def _begun(
    folder: Path,
    planned: Plan,
    parameters: Parameters,
    asked: Asked,
    calibration: Calibration,
    calibration_path: Path | None,
    backends: Sequence[str],
) -> Table:
    """An earlier table of the same, or an empty one."""
    for tried in (asked.text, asked.questions):
        if tried is not None and calibration_path is not None and tried.resolve() == calibration_path.resolve():
            raise UnsupportedError(
                f"{tried} is both what the variants are tried on and what activations are measured on, which flatters "
                "the methods that look at activations; give another --calibration."
            )
    state = [
        code_version((*CODE, "sweep/*.py")),
        stage_key(parameters, parameters.shapes, Recipe()),
        [calibration.digest, calibration.state],
        None if asked.text is None else [read_text(asked.text)[1], asked.tokens],
        None if asked.questions is None else [digest(asked.questions), asked.limit],
        planned.context,
        backends,
    ]
    inputs = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    found = read(folder)
    if found is not None and found.inputs != inputs:
        raise TargetError(
            f"{folder} holds a sweep of another checkpoint, text, set or HandLens; choose another folder with -o, or "
            "remove it."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"{folder} cannot be a folder ({error.strerror}); choose another with -o.") from error
    weights = sum(prod(shape) for name, shape in parameters.shapes.items() if in_layers(name))
    return found or Table(str(planned.checkpoint.path), inputs, weights)


def _items(planned: Plan, parameters: Parameters, asked: Asked, chosen: QuestionSet | None) -> Iterator[Item]:
    tokenizer = tokenizer_of(planned)
    if asked.text is not None:
        text, _ = read_text(asked.text)
        yield from text_items(text, tokenizer, asked.tokens, planned.context, planned.bos_id)
    if chosen is not None:
        recipe = Recipe(context=planned.context)
        manifest = describe(planned, recipe, weigh(parameters.shapes, recipe))
        yield from answer_items(chosen, manifest, tokenizer)


def _row(
    parameters: Parameters, variant: Variant | None, recipe: Recipe, found: Quality, exact: Quality, seconds: float
) -> Row:
    backend = recipe.backends[0]
    linears = {name: shape for name, shape in parameters.shapes.items() if in_layers(name) and is_product(name, shape)}
    count = sum(map(prod, linears.values()))
    if variant is None:
        size, name, method, bits, group = 4 * count, FLOAT, FLOAT, 32, None
    else:
        size = sum(weight_bytes(linears, recipe, backend).values())
        name, method, bits, group = variant.name, variant.method, recipe.bits, variant.group
    return Row(
        name=name,
        method=method,
        bits=bits,
        group=group,
        bits_per_weight=round(8 * size / count, 3),
        bytes=size,
        perplexity=_number(found.perplexity),
        exact_match=found.exact_match,
        kl=_number(found.divergence(exact)),
        seconds=round(seconds, 1),
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _in_order(table: Table, wanted: Sequence[Variant]) -> Table:
    """The float network, then what was asked for, in its order; the file keeps the others, too."""
    rows = {row.name: row for row in table.rows}
    chosen = [rows[name] for name in (FLOAT, *(variant.name for variant in wanted))]
    return replace(table, rows=chosen)
