from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from handlens_export import materials
from handlens_export.easy_vqa import convert, main
from handlens_export.errors import TargetError
from handlens_runtime.evaluation import read_set

QUESTIONS = [
    ["what is the red shape?", "triangle", 0],
    ["what is the color of the shape?", "red", 1],
    ["is there a circle?", "no", 0],
]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package laid out as the real one is."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "png")
    path = tmp_path / "easy-vqa.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("easy_vqa/data/test/questions.json", json.dumps(QUESTIONS))
        for number in range(2):
            archive.writestr(f"easy_vqa/data/test/images/{number}.png", picture.getvalue())
    return path


def test_it_becomes_a_set_that_eval_reads(wheel: Path, tmp_path: Path) -> None:
    questions = read_set(convert(wheel, tmp_path / "deep" / "easy")).questions
    assert [(q.kind, q.answer) for q in questions] == [("shape", "triangle"), ("colour", "red"), ("yes-no", "no")]
    assert [q.image for q in questions] == [tmp_path / "deep/easy/images" / f"{i}.png" for i in (0, 1, 0)]


def test_a_failure_or_a_taken_place_leaves_what_was_there(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        convert(wheel, tmp_path / "easy", "train")
    assert [path.name for path in tmp_path.iterdir()] == ["easy-vqa.whl"]
    (tmp_path / "easy").mkdir()
    with pytest.raises(TargetError, match="already exists"):
        convert(wheel, tmp_path / "easy")


def test_the_command_prints_the_sets_path(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(materials, "fetch", lambda name: {"easy-vqa": wheel}[name])
    assert main(["-o", str(tmp_path / "easy")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'easy/set.jsonl'}\n"
    assert main(["-o", str(tmp_path / "easy")]) == 2
    assert "already exists" in capsys.readouterr().err
