"""Evaluation sets: what is read, what is refused by file and line, and how a part of one is drawn."""

import hashlib
import json
from collections import Counter

import pytest
from PIL import Image

from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation import read_set
from handlens_runtime.evaluation.question_set import by_picture

GOOD = {"image": "pages/a.png", "question": "What is the total?", "answer": "12.40", "kind": "field", "group": "seen"}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "pages").mkdir()
    for name in "ab":
        Image.new("RGB", (20, 10)).save(tmp_path / "pages" / f"{name}.png")

    def write(*lines):
        path = tmp_path / "set.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return path

    return write


def test_questions_come_with_their_lines_and_pictures_beside_the_file(write, tmp_path):
    text = {"image": None, "question": "Sum\u2028of 1 and 2?", "answer": "3", "kind": "chat"}
    path = write(GOOD, "", json.dumps(text, ensure_ascii=False))
    read = read_set(path)
    first, second = read.questions
    assert (first.line, first.image, first.group) == (1, tmp_path / "pages/a.png", "seen")
    assert (second.line, second.image, second.group) == (3, None, None)
    assert second.question == text["question"]  # a line separator inside a string ends no line
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ('"text"', "line 2: not an object"),
        ({**GOOD, "colour": "red"}, "line 2: the key 'colour' is unknown"),
        ({key: value for key, value in GOOD.items() if key != "image"}, "line 2: the key 'image' is missing"),
        ({**GOOD, "answer": 12}, "line 2: 'answer' is no string"),
        ({**GOOD, "answer": " "}, "line 2: 'answer' is empty"),
        ({**GOOD, "image": "pages/c.png"}, r"line 2: there is no picture .*pages/c\.png"),
        ({**GOOD, "image": "/pages/a.png"}, "line 2: the image /pages/a.png is an absolute path"),
    ],
)
def test_a_wrong_line_is_one_sentence_that_names_file_and_line(write, line, said):
    with pytest.raises(EvaluationError, match=said) as error:
        read_set(write(GOOD, line))
    assert "set.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_empty_is_refused(write, tmp_path):
    with pytest.raises(EvaluationError, match=r"nowhere\.jsonl cannot be read"):
        read_set(tmp_path / "nowhere.jsonl")
    with pytest.raises(EvaluationError, match="holds no questions"):
        read_set(write(""))
    (tmp_path / "set.jsonl").write_bytes(b'{"image": null, "question": "\xff"}\n')
    with pytest.raises(EvaluationError, match="line 1: not JSON"):
        read_set(tmp_path / "set.jsonl")


def test_a_limit_spreads_over_kinds_and_groups_by_a_seed(write):
    lines = [{**GOOD, "question": f"{i}?", "kind": "field", "group": "seen"} for i in range(60)]
    lines += [{**GOOD, "question": f"{i}?", "kind": "field", "group": "unseen"} for i in range(30)]
    lines += [{**GOOD, "question": f"{i}?", "kind": "count", "group": "seen"} for i in range(2)]
    whole = read_set(write(*lines))
    part = whole.spread(12)
    assert Counter((q.kind, q.group) for q in part.questions) == {
        ("field", "seen"): 5,
        ("field", "unseen"): 5,
        ("count", "seen"): 2,
    }
    numbers = [q.line for q in part.questions]
    assert numbers == sorted(numbers) and numbers[:5] != [1, 2, 3, 4, 5]
    assert part == whole.spread(12) != whole.spread(12, seed=1)
    assert part.sha256 == whole.sha256
    assert whole.spread(1000).questions == whole.questions


def test_questions_about_a_picture_come_together(write):
    lines = [{**GOOD, "image": f"pages/{name}.png", "question": f"{i}?"} for i, name in enumerate("abab")]
    assert [(q.image.stem, q.question) for q in by_picture(read_set(write(*lines)).questions)] == [
        ("a", "0?"),
        ("a", "2?"),
        ("b", "1?"),
        ("b", "3?"),
    ]
