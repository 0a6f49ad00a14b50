"""The set that judges the reader holds what training never drew, and as much of each kind as was asked for."""

from __future__ import annotations

import json
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from handlens_export.reader import examples
from handlens_export.reader.draw import Drawer, Order
from handlens_export.reader.evaluation_set import USUAL, groups, main, pages, write
from handlens_export.reader.examples import TILE
from handlens_export.reader.fonts import Family
from handlens_export.reader.layouts import HELD_OUT
from handlens_export.reader.questions import KINDS
from handlens_export.reader.stages import stages
from handlens_runtime.evaluation.question_set import read_set


@pytest.fixture(autouse=True)
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Family]:
    """The families that were drawn in, all of them in the font that Pillow carries."""
    face = ImageFont.load_default(12)
    assert isinstance(face, ImageFont.FreeTypeFont)
    assert isinstance(face.path, BytesIO)
    path = tmp_path / "default.ttf"
    path.write_bytes(face.path.getvalue())
    asked: list[Family] = []

    def files(family: Family) -> tuple[Path, ...]:
        asked.append(family)
        return (path,)

    monkeypatch.setattr(examples, "font_files", files)
    return asked


def test_the_set_has_as_many_of_each_kind_and_is_readable(tmp_path: Path) -> None:
    write(tmp_path / "set", each=3, seed=0)
    found = read_set(tmp_path / "set" / "questions.jsonl")
    counts = Counter((question.group, question.kind) for question in found.questions)
    for group in ("seen", "unseen-fonts"):
        assert {kind: counts[group, kind] for kind in KINDS} == dict.fromkeys(KINDS, 3)
    assert counts["seen", "chat"] == 3
    assert all(counts["unseen-layouts", kind] == 3 for kind in ("field", "transcribe", "place"))
    for question in found.questions:
        if question.image is not None:
            Image.open(question.image).verify()


def test_the_same_seed_gives_the_same_set(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, each=1, seed=5)
    one, other = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    write(tmp_path / "c", each=1, seed=6)
    assert (tmp_path / "c" / "questions.jsonl").read_text() != (tmp_path / "a" / "questions.jsonl").read_text()
    assert json.loads((tmp_path / "a" / "questions.jsonl").read_text().splitlines()[0])["group"] == "seen"


def test_training_draws_neither_held_out_fonts_nor_layouts(used: list[Family]) -> None:
    seen, unseen_fonts, unseen_layouts = (groups()[name] for name in USUAL)
    assert all(family.held_out for family in unseen_fonts.typefaces)
    assert set(unseen_layouts.layouts) == set(HELD_OUT)
    for stage in stages():
        assert not set(stage.mix.layouts) & set(HELD_OUT)
        Drawer().draw(Order(stage.mix, 0, (1, 1), 4))
    assert used
    assert not any(family.held_out for family in used)
    assert {family.name for family in used} <= {family.name for family in seen.typefaces}


def test_a_set_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-o", str(tmp_path / "set"), "--each", "0"])
    assert ended.value.code == 2
    assert "argument --each" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_the_small_text_group_has_only_pages_that_one_tile_cannot_show() -> None:
    found = list(pages(groups()["small-text"], each=1, seed=0))
    assert found
    for made in found:
        assert made.small
        assert max(made.picture.size) > 2 * TILE
