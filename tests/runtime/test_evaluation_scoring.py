"""The arithmetic of scores and intervals, beside numbers worked out elsewhere; and the tables made of it."""

from pathlib import Path

import numpy as np
import pytest

from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation import Answer, Evaluation, Question
from handlens_runtime.evaluation.scoring import (
    character_accuracy,
    edit_distance,
    exact_match,
    paired_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_scores_leave_out_whitespace_at_the_ends_and_nothing_else():
    assert exact_match(" 12.40\n", "12.40") and not exact_match("12.4 0", "12.40") and not exact_match("Yes", "yes")
    assert character_accuracy(" 12.40\n", "12.40") == 1
    assert character_accuracy("12.45", "12.40") == pytest.approx(0.8)
    assert character_accuracy("", "abc") == 0
    assert character_accuracy("ab and much more", "ab") == pytest.approx(2 / 16)


@pytest.mark.parametrize(("hits", "count"), [(95, 100), (0, 10), (10, 10), (1, 3)])
def test_wilson_ends_where_a_true_share_would_just_be_accepted(hits, count):
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1 and low < high
    for end in (low, high):  # the score test that the interval inverts; 0 and 1 themselves solve it too
        assert (hits / count - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-12)


def test_the_paired_interval_covers_what_it_promises_and_never_closes():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        only_first, only_second, _ = random.multinomial(400, (0.03, 0.01, 0.96))
        low, high = paired_interval(only_first, only_second, 400)
        covered += low <= 0.02 <= high
    assert 0.93 < covered / 2000 < 0.975
    low, high = paired_interval(0, 0, 5000)
    assert low == -high and 0 < high < 0.001


def question(line, kind, group):
    return Question(line, None, "?", "yes", kind, group)


def evaluation(texts, sha256="0", cells=(("field", "seen"), ("field", "unseen"), ("count", "seen"))):
    answers = [Answer(question(i, *cells[i % len(cells)]), text, 9, 4 * i, 1) for i, text in enumerate(texts)]
    return Evaluation("tiny", Path("bundle"), "onnx", Path("set.jsonl"), sha256, tuple(answers))


def test_each_kind_and_group_is_scored_then_groups_then_all():
    scores = evaluation(["yes", "no", "yes", "yes ", "yes", "yesyes"]).scores
    assert [(s.kind, s.group, s.count, s.exact_match) for s in scores] == [
        ("field", "seen", 2, 1.0),
        ("field", "unseen", 2, 0.5),
        ("count", "seen", 2, 0.5),
        (None, "seen", 4, 0.75),
        (None, "unseen", 2, 0.5),
        (None, None, 6, 4 / 6),
    ]
    assert scores[2].character_accuracy == pytest.approx(0.75)
    assert scores[2].interval == wilson(1, 2)
    assert scores[-1].image_tokens == 10


def test_without_groups_there_is_a_row_a_kind_and_one_for_all():
    scores = evaluation(["yes", "no"], cells=(("field", None), ("count", None))).scores
    assert [(s.kind, s.group, s.count) for s in scores] == [("field", None, 1), ("count", None, 1), (None, None, 2)]


def test_two_runs_are_compared_question_by_question():
    ours, theirs = evaluation(["yes", "no", "maybe", "yes"]), evaluation(["yes", "no ", "no", "no"])
    whole = ours.compare(theirs)[-1]
    assert (whole.count, whole.only_first, whole.only_second) == (4, 1, 0)
    assert (whole.difference, whole.identical) == (0.25, 0.5)
    assert whole.interval == paired_interval(1, 0, 4)
    assert theirs.compare(ours)[-1].difference == -0.25
    # One that was stopped early is compared as far as it came.
    assert ours.compare(evaluation(["yes", "no"]))[-1].count == 2


def test_runs_of_other_sets_are_not_compared():
    with pytest.raises(EvaluationError, match="no questions in common"):
        evaluation(["yes"]).compare(evaluation(["yes"], sha256="1"))
    with pytest.raises(EvaluationError, match=r"No question of .* was answered"):
        _ = evaluation([]).overall
