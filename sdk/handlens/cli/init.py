"""`handlens init`: a checkpoint folder with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handlens.cli.choices import PresetChoice
from handlens.cli.interrupt import interruptible
from handlens.cli.outcome import answered
from handlens.cli.progress import shown


@answered
def init(
    preset: Annotated[
        PresetChoice,
        typer.Argument(
            metavar="PRESET",
            help="nano exports in seconds; 3b is the full size.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it is there.")] = False,
) -> None:
    """Write a checkpoint of random weights.

    To try the export before there are trained ones.
    """
    from handlens import _api

    with interruptible(), shown() as progress:
        _api.init(preset, output, seed=seed, force=force, progress=progress)
    typer.echo(f"{output}: {preset}, random weights. Next: handlens export {output} -o BUNDLE")
