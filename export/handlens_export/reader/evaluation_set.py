"""Pages that no training run has drawn, with questions, as a set that `handlens eval` takes.

    python -m handlens_export.reader.evaluation_set -o FOLDER [--each 1000] [--seed 0] [--grids few] [--group NAME]

FOLDER/questions.jsonl and FOLDER/pages/. Its groups: `seen`, the fonts and layouts of training; `unseen-fonts`, the
families held out of training; `unseen-layouts`, layouts held out, in fonts of training. Two more are written only
where they are named: `small-text`, pages as in `seen` whose text is too small to read once they are resized to one
tile; `unseen-both`, layouts and fonts held out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from handlens_export.errors import ExportError
from handlens_export.reader.chat import chat
from handlens_export.reader.examples import Example, example
from handlens_export.reader.fonts import Family, families
from handlens_export.reader.layouts import HELD_OUT
from handlens_export.reader.options import at_least
from handlens_export.reader.questions import KINDS
from handlens_export.reader.scene import Kind, Turn
from handlens_export.reader.stages import FEW, MANY, TRAINED

QUESTIONS_OF_A_PAGE = 6
QUALITY = 95
"""Of the pages' JPEG."""
GRIDS = {"many": MANY, "few": FEW}
"""Sizes of pages, in tiles."""


@dataclass(frozen=True)
class Group:
    """What is told apart in the results."""

    name: str
    layouts: Sequence[str]
    typefaces: Sequence[Family]
    small: bool = False
    """Only pages whose text is too small for one tile."""


def groups() -> dict[str, Group]:
    """All of them by name."""
    trained = families(held_out=False)
    return {
        group.name: group
        for group in (
            Group("seen", TRAINED, trained),
            Group("unseen-fonts", TRAINED, families(held_out=True)),
            Group("unseen-layouts", HELD_OUT, trained),
            Group("small-text", TRAINED, trained, small=True),
            Group("unseen-both", HELD_OUT, families(held_out=True)),
        )
    }


USUAL = ("seen", "unseen-fonts", "unseen-layouts")


def pages(group: Group, each: int, seed: int, grids: Sequence[tuple[int, int]] = MANY) -> Iterator[Example]:
    """Pages until every kind that the group's layouts allow has `each` questions; none has more.

    A kind of which a thousand pages on end gave nothing is one that these layouts do not allow.
    """
    asked: Counter[Kind] = Counter()
    barren = 0
    number = 0
    while barren < 1000:
        wanted = tuple(kind for kind in KINDS if asked[kind] < each)
        if not wanted:
            return
        # Training draws from other seeds: each of its begins with the name of a stage.
        random = Random(f"evaluation {seed} {group.name} {number}")
        number += 1
        made = example(random, group.layouts, group.typefaces, random.choice(grids), QUESTIONS_OF_A_PAGE, kinds=wanted)
        fits = made.small or not group.small
        kept = tuple(turn for turn in made.turns if fits and _counted(asked, turn, each))
        barren = 0 if kept else barren + 1
        if kept:
            yield replace(made, turns=kept)


def _counted(asked: Counter[Kind], turn: Turn, each: int) -> bool:
    if asked[turn.kind] >= each:
        return False
    asked[turn.kind] += 1
    return True


def write(
    folder: Path, each: int, seed: int, grids: Sequence[tuple[int, int]] = MANY, names: Sequence[str] = USUAL
) -> None:
    """A whole set: pages as JPEG, the questions of one one after another; chat goes with `seen`."""
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    with (folder / "questions.jsonl").open("w") as file:
        for group in (groups()[name] for name in names):
            for number, made in enumerate(pages(group, each, seed, grids)):
                name = f"pages/{group.name}-{number:05d}.jpg"
                made.picture.save(folder / name, quality=QUALITY, subsampling=0)
                file.writelines(_line(name, turn, group.name) for turn in made.turns)
        if "seen" in names:
            said = dict.fromkeys(turn for turn in chat(Random(f"evaluation {seed} chat"), each))
            file.writelines(_line(None, turn, "seen") for turn in said)


def _line(image: str | None, turn: Turn, group: str) -> str:
    line = {"image": image, "question": turn.question, "answer": turn.answer, "kind": turn.kind, "group": group}
    return json.dumps(line) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--each", type=at_least(1, int), default=1000, help="questions of each kind in each group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grids", choices=tuple(GRIDS), default="many", help="pages of one or two tiles, or up to 16")
    parser.add_argument("--group", choices=tuple(groups()), help="this one alone")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        print(f"{options.folder} exists already; choose another folder.", file=sys.stderr)
        return 2
    try:
        write(
            options.folder,
            options.each,
            options.seed,
            GRIDS[options.grids],
            (options.group,) if options.group else USUAL,
        )
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
