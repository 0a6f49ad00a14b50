"""`handlens advise`: how few bits a model will bear, from its size and its training, beside what a sweep measured."""

from __future__ import annotations

import json
import re
from math import isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handlens.cli.interrupt import interruptible
from handlens.cli.light import without_torch
from handlens.cli.outcome import answered
from handlens.cli.tables import add_row, plain_table
from handlens.cli.units import count

if TYPE_CHECKING:
    from handlens_export.forecast.qid import Advice
    from handlens_export.sweep.table import Table

UNITS = {"": 1.0, "M": 1e6, "B": 1e9, "T": 1e12}


@answered
def advise(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="Checkpoint folder, or a GGUF file.", show_default=False)
    ],
    trained_tokens: Annotated[
        str, typer.Option(metavar="N", help="Tokens it was trained on, such as 11T or 600B.", show_default=False)
    ],
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What sweep measured, to stand beside the prediction.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the prediction as one JSON object.")] = False,
) -> None:
    """Predict what 2, 3, 4 and 8 bits cost a model trained on so many tokens.

    By the law of arXiv 2411.17691, which was fitted on GPTQ at 2 to 4 bits of models from 160 million to 12 billion
    parameters and up to 300 billion tokens; beyond that it is an extrapolation, and says so.
    """
    tokens = _tokens(trained_tokens)
    from handlens import _api

    _api.require_workstation("advise")
    with interruptible():
        without_torch()
        from handlens_export.forecast.qid import FORMULA, VALIDITY

        advice = _api.advise(checkpoint, tokens)
    measured = None
    if sweep is not None:
        from handlens_export.errors import TargetError
        from handlens_export.sweep.table import read

        measured = read(sweep)
        if measured is None:
            raise TargetError(f"{sweep} holds no sweep; make one with handlens sweep {checkpoint} -o {sweep}.")
        if measured.parameters != advice.parameters:
            raise TargetError(
                f"{sweep} holds a sweep of {measured.checkpoint}, whose layers have {measured.parameters} parameters "
                f"where those of {checkpoint} have {advice.parameters}; give the folder of its own."
            )
    if as_json:
        law = {"loss_increase": FORMULA, "fitted_on": VALIDITY}
        typer.echo(json.dumps({"law": law, **_as_json(advice, measured)}))
        return
    from rich.console import Console

    table = plain_table("bits", "loss rises by", "perplexity times", "measured", "by", "")
    for one in advice.predicted:
        found = None if measured is None else _best(measured, one.bits)
        add_row(
            table,
            str(one.bits),
            f"{one.loss:.4f} nats",
            f"{one.perplexity_factor:.4g}",
            "-" if found is None else f"{found[0]:+.4f} nats",
            "-" if found is None else found[1],
            f"extrapolated: {', '.join(one.extrapolated)}" if one.extrapolated else "",
        )
    Console(width=None if Console().is_terminal else 160).print(table)
    typer.echo(
        f"For {count(advice.parameters)} parameters outside of embeddings and head, trained on {trained_tokens} "
        f"tokens: loss rises by {FORMULA}. {VALIDITY}"
    )


def _best(table: Table, bits: int) -> tuple[float, str] | None:
    """The least increase of the loss that a sweep measured at some bits, and by which variant."""
    exact = table.exact
    rows = [row for row in table.rows if row.bits == bits and row.perplexity is not None]
    if exact is None or exact.perplexity is None or not rows:
        return None
    increase, name = min((log(row.perplexity / exact.perplexity), row.name) for row in rows if row.perplexity)
    return increase, name


def _as_json(advice: Advice, measured: Table | None) -> dict[str, Any]:
    rows = []
    for one in advice.predicted:
        found = None if measured is None else _best(measured, one.bits)
        rows.append(
            {
                "bits": one.bits,
                "loss_increase": one.loss,
                "perplexity_factor": one.perplexity_factor if isfinite(one.perplexity_factor) else None,
                "extrapolated": one.extrapolated,
                "measured_increase": None if found is None else found[0],
                "measured_by": None if found is None else found[1],
            }
        )
    return {"parameters": advice.parameters, "trained_tokens": advice.tokens, "predicted": rows}


def _tokens(value: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MBT]?)", value.strip(), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(
            f"'{value}' is no number of tokens; give one such as 11T or 600B.", param_hint="--trained-tokens"
        )
    return float(match[1]) * UNITS[match[2].upper()]
