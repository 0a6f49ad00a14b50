"""Questions and answers follow from the record of the page, and are the same for the same seed."""

from __future__ import annotations

import re
from collections import Counter
from io import BytesIO
from random import Random

import pytest
from PIL import ImageFont

from handlens_export.reader.chat import chat
from handlens_export.reader.layouts import LAYOUTS, drawn_style
from handlens_export.reader.page import Line, Page
from handlens_export.reader.questions import KINDS, PHRASES, turns
from handlens_export.reader.rows import rows
from handlens_export.reader.scene import Field, Kind, Scene, Turn


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Scene, Turn]]:
    """Questions about pages of all layouts."""
    face = ImageFont.load_default(12)
    assert isinstance(face, ImageFont.FreeTypeFont)
    assert isinstance(face.path, BytesIO)
    path = tmp_path_factory.mktemp("fonts") / "default.ttf"
    path.write_bytes(face.path.getvalue())
    found = []
    for name, draw in LAYOUTS.items():
        for seed in range(40):
            random = Random(f"{name} {seed}")
            scene = draw(random, drawn_style(random, (path,)), 260, 240)
            found += [(scene, turn) for turn in turns(scene, random, 8)]
    return found


def _line(text: str, left: float, top: float, tall: float = 10, colour: str = "black") -> Line:
    return Line(text, (left, top, left + 6 * len(text), top + tall), colour, ())  # type: ignore[arg-type]


def _scene(*lines: Line, fields: tuple[Field, ...] = ()) -> Scene:
    page = Page.blank(200, 200, (255, 255, 255))
    page.lines.extend(lines)
    return Scene("sign", page, fields)


def _answers(scene: Scene, kind: Kind, count: int = 40) -> dict[str, str]:
    return {turn.question: turn.answer for seed in range(12) for turn in turns(scene, Random(seed), count, (kind,))}


def test_every_kind_is_asked_often_enough(asked: list[tuple[Scene, Turn]]) -> None:
    kinds = Counter(turn.kind for _, turn in asked)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > len(asked) * 0.02


def test_yes_and_no_are_balanced(asked: list[tuple[Scene, Turn]]) -> None:
    answers = Counter(turn.answer for _, turn in asked if turn.kind == "yes-no")
    assert set(answers) == {"yes", "no"}
    assert 0.42 < answers["yes"] / answers.total() < 0.58


def test_answers_are_short_printable_and_on_the_page(asked: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in asked:
        assert 0 < len(turn.answer) <= (80 if turn.kind == "fields" else 40)
        assert all(" " <= character <= "~" for character in turn.question + turn.answer)
        if turn.kind == "field":
            assert turn.answer in {line.text for line in scene.page.lines}
        if turn.kind == "transcribe":
            assert turn.answer in {row.text for row in rows(scene.page)}


def test_same_seed_asks_the_same_and_never_twice() -> None:
    scene = _scene(_line("Gate", 0, 0), _line("B 17", 60, 0), _line("Fee", 0, 20), _line("12.50", 60, 20))
    one, other = (turns(scene, Random(5), 6) for _ in range(2))
    assert one == other
    assert len({turn.question for turn in one}) == len(one) == 6


def test_places_follow_from_where_the_runs_stand() -> None:
    scene = _scene(
        *(_line("Gate", 0, 0), _line("B 17", 60, 1), _line("Fee:", 0, 20), _line("12.50", 60, 20)), _line("End", 0, 40)
    )
    answers = _answers(scene, "place")
    assert answers["What is written at the top?"] == answers["Read the first line."] == "Gate B 17"
    assert answers["What is written at the bottom?"] == "End"
    assert answers["What is to the right of Fee?"] == "12.50"
    assert answers["What is written below Gate?"] == "Fee:"
    assert "What is written below End?" not in answers


def test_what_can_be_meant_twice_is_not_asked() -> None:
    twice = _scene(_line("Gate", 0, 0), _line("A 1", 60, 0), _line("gate", 0, 20), _line("B 2", 60, 20))
    assert not any("right of Gate" in question for question in _answers(twice, "place"))
    assert not any("starts with A" in question for question in _answers(twice, "transcribe"))
    askew = _scene(_line("one", 0, 0), _line("two", 60, 6), _line("three", 120, 12))
    assert rows(askew.page) == ()
    assert _answers(askew, "transcribe") == {}


def test_a_field_named_like_another_text_is_not_asked() -> None:
    fields = (Field("Oslo", "B 17", "black"), Field("Riga", "C 4", "black"))
    runs = (
        _line("OSLO", 0, 0),
        _line("Oslo", 0, 20),
        _line("B 17", 60, 20),
        _line("Riga", 0, 40),
        _line("C 4", 60, 40),
    )
    assert set(_answers(_scene(*runs, fields=fields), "field").values()) == {"C 4"}


def test_the_only_line_is_the_text() -> None:
    answers = _answers(_scene(_line("KX 4821", 0, 0)), "transcribe")
    assert answers["Read the text."] == answers["What is written here?"] == answers["Read line 1."] == "KX 4821"
    assert answers["Read the line that starts with KX."] == "KX 4821"
    assert "Read the line that starts with KX 4821." not in answers


def test_colour_of_a_field_is_asked_only_where_name_and_value_agree() -> None:
    lines = (_line("Gate", 0, 0), _line("B 17", 60, 0, colour="red"))
    scene = _scene(*lines, fields=(Field("Gate", "B 17", "red"),))
    answers = _answers(scene, "colour")
    assert answers == {"What colour is the text Gate?": "black", "What colour is the text B 17?": "red"}


def test_shapes_are_counted_named_and_denied() -> None:
    scene = _scene(_line("Nail", 20, 45))
    for left, kind, colour in ((10, "circle", "red"), (60, "circle", "blue"), (110, "star", "red")):
        scene.page.shape(kind, (left, 0, left + 40, 40), (0, 0, 0), colour)  # type: ignore[arg-type]
    counts, colours, truths = (_answers(scene, kind) for kind in ("count", "colour", "yes-no"))
    assert (counts["Count the circles."], counts["How many red shapes are there?"]) == ("2", "2")
    assert colours["What colour is the star?"] == "red"
    assert "What colour is the circle?" not in colours
    assert (truths["Is there a blue circle?"], truths["Is there a blue star?"]) == ("yes", "no")
    assert _answers(scene, "place")["What is written below the red circle?"] == "Nail"


def test_fields_are_listed_by_name_and_value() -> None:
    fields = (Field("Gate", "B 17", "black"), Field("Fee", "12.50", "black"))
    lines = (_line("Gate", 0, 0), _line("B 17", 60, 0), _line("Fee:", 0, 20), _line("12.50", 60, 20))
    scene = _scene(*lines, fields=fields)
    assert set(_answers(scene, "fields").values()) == {"Gate, Fee"}
    assert _answers(scene, "field")["What is the Fee?"] == "12.50"
    truths = _answers(scene, "yes-no")
    assert truths["Is the Fee 12.50?"] == "yes"
    assert truths["Is the Fee B 17?"] == "no"
    assert all(answer == "no" for question, answer in truths.items() if re.search(r"Fee (?!12\.50)", question))


def test_chat_is_deterministic_and_right() -> None:
    said = chat(Random(1), 4000)
    assert said == chat(Random(1), 4000)
    answers = {turn.question: turn.answer for turn in said}
    assert answers["What is the capital of France?"] == "Paris"
    assert answers["What comes after December?"] == "January"
    assert answers["Opposite of small?"] == "big"
    assert answers["Who are you?"] == "I am a small model that reads pictures."
    for question, answer in answers.items():
        if found := re.search(r"(\d+) ([+-]) (\d+)", question):
            left, right = int(found[1]), int(found[3])
            assert int(answer) == (left + right if found[2] == "+" else left - right)
    assert len(answers) > 1000


def test_phrases_hold_the_questions_words(asked: list[tuple[Scene, Turn]]) -> None:
    starts = {phrase.split("{", 1)[0] for phrase in PHRASES if "{" in phrase} | set(PHRASES)
    assert all(any(turn.question.startswith(start) for start in starts) for _, turn in asked)
