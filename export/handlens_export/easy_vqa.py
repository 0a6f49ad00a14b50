"""easy-VQA as an evaluation set: coloured shapes on 64 x 64 pixels, simple questions, one of 13 words for an answer.

    python -m handlens_export.easy_vqa -o FOLDER     # FOLDER/set.jsonl and FOLDER/images/, for `handlens eval`

The package `easy-vqa` (Victor Zhou, MIT) is downloaded once, never installed and never imported (`materials`).
Its answers are bare lower-case words: a model that writes "Yes." is not an exact match.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from handlens_export import materials
from handlens_export.errors import ExportError, TargetError

Part = Literal["test", "train"]
SET = "set.jsonl"
_SHAPES, _YES_NO = {"circle", "rectangle", "triangle"}, {"yes", "no"}


def convert(wheel: Path, folder: Path, part: Part = "test") -> Path:
    """Write the questions and pictures of one part of the package at `wheel` into `folder`; returns the set's path.

    `folder` appears whole or not at all. Raises TargetError where it is already there.
    """
    if folder.exists():
        raise TargetError(f"{folder} already exists; give another place, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workplace:
        new = Path(workplace) / "new"
        (new / "images").mkdir(parents=True)
        root = f"easy_vqa/data/{part}"
        with zipfile.ZipFile(wheel) as archive:
            questions: list[tuple[str, str, int]] = json.loads(archive.read(f"{root}/questions.json"))
            for number in sorted({number for _, _, number in questions}):
                (new / "images" / f"{number}.png").write_bytes(archive.read(f"{root}/images/{number}.png"))
        (new / SET).write_text("".join(_line(*question) for question in questions), encoding="utf-8")
        shutil.move(new, folder)
    return folder / SET


def _line(question: str, answer: str, number: int) -> str:
    kind = "yes-no" if answer in _YES_NO else "shape" if answer in _SHAPES else "colour"
    line = {"image": f"images/{number}.png", "question": question, "answer": answer, "kind": kind}
    return json.dumps(line) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch and convert, and print the set's path; 2 where it cannot be had or written."""
    parser = argparse.ArgumentParser(prog="python -m handlens_export.easy_vqa", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--part", choices=("test", "train"), default="test", help="which questions (default: test)")
    asked = parser.parse_args(arguments)
    try:
        print(convert(materials.fetch("easy-vqa"), asked.output, asked.part))
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{asked.output} could not be written ({error.strerror}); give another place.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
