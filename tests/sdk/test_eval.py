"""`handlens eval`: what it asks of the engine, what it shows and writes, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from handlens import _api
from handlens.cli import app
from handlens_runtime.bundle import Bundle, seal
from handlens_runtime.chat import Message
from handlens_runtime.engine import Token
from handlens_runtime.manifest import Manifest, Sparsity
from handlens_runtime.options import Options
from handlens_runtime.stats import Stats

LINES = [
    {"image": None, "question": f"{kind} {group} {i}?", "answer": str(i), "kind": kind, "group": group}
    for kind in ("field", "count")
    for group in ("seen", "unseen")
    for i in range(4)
]


class FakeEngine:
    """Knows every answer on onnx; on executorch it answers all about unseen pages with a dash."""

    interrupt_at: str | None = None
    """A question during which Ctrl-C is pressed."""
    interrupt_after: str | None = None
    """A question after whose answer it is pressed, before the next is asked."""

    def __init__(self, bundle: Bundle, backend: str | None, dense: bool = False) -> None:
        sparsity = SimpleNamespace(least_tokens=20, leaves_out=True)
        sizes = SimpleNamespace(context=64)
        self.bundle = SimpleNamespace(
            path=bundle.path, manifest=SimpleNamespace(name="tiny", image=None, sizes=sizes, sparsity=sparsity)
        )
        self.sparse = False if dense else None
        self.backend = SimpleNamespace(name=backend or "onnx")
        self.warnings = ()
        self.tokenizer = SimpleNamespace(encode=lambda text: list(text.encode()))
        self.stats = Stats(image_tokens=7)

    def generate(self, messages: Sequence[Message], options: Options) -> Iterator[Token]:
        (message,) = messages
        self.stats.finish = "stop"
        if message.text == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        wrong = self.backend.name == "executorch" and "unseen" in message.text
        yield Token(1, "-" if wrong else message.text.rstrip("?")[-1], -0.1)
        if message.text == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)
            self.stats.finish = "stop"

    def score_ids(self, ids: Sequence[int], prompt: int) -> NDArray[np.float64]:
        return np.full(len(ids) - prompt, -2.0 if self.backend.name == "onnx" else -2.5)

    def stop(self) -> None:
        self.stats.finish = "cancelled"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    monkeypatch.setattr(_api, "steady_engine", FakeEngine)
    monkeypatch.setattr(FakeEngine, "interrupt_at", None)
    return FakeEngine


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return path


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_scores_are_shown_per_kind_and_group(runner: CliRunner, bundle: Path, questions: Path) -> None:
    result = runner.invoke(app, ["eval", str(bundle), str(questions), "--backend", "executorch"])
    assert result.exit_code == 0, result.stderr
    assert f"{bundle} on executorch: {questions}" in result.stdout
    shown = rows(result.stdout)
    assert ["field", "seen", "4", "100.0%", "51.0%", "to", "100.0%", "100.0%", "7"] in shown
    assert ["count", "unseen", "4", "0.0%", "0.0%", "to", "49.0%", "0.0%", "7"] in shown
    assert shown[-1][:3] == ["all", "16", "50.0%"]
    assert "evaluate executorch" in result.stderr


def test_json_is_one_object_with_both_runs_and_their_differences(
    runner: CliRunner, bundle: Path, questions: Path
) -> None:
    words = ["eval", str(bundle), str(questions), "--backend", "onnx", "--vs-backend", "executorch", "--json"]
    result = runner.invoke(app, words)
    found = json.loads(result.stdout)
    assert (found["backend"], found["vs"]["backend"]) == ("onnx", "executorch")
    assert found["scores"][-1]["exact_match"] == 1.0
    assert found["vs"]["scores"][-1]["exact_match"] == 0.5
    whole = found["differences"][-1]
    assert (whole["count"], whole["difference"], whole["identical"], whole["only_first"]) == (16, 0.5, 0.5, 8)
    assert found["set"]["path"] == str(questions)


def test_another_bundle_is_compared_on_the_same_backend(
    runner: CliRunner, bundle: Path, questions: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    result = runner.invoke(app, ["eval", str(bundle), str(questions), "--vs", str(other), "--backend", "executorch"])
    assert result.exit_code == 0, result.stderr
    assert f"{bundle} on executorch minus {other} on executorch, the same questions" in result.stdout
    assert rows(result.stdout)[-1][:3] == ["all", "16", "+0.00"]


@pytest.fixture
def sparse(bundle: Path, manifest: Manifest) -> Path:
    """A bundle that leaves tokens out."""
    leaves_out = manifest.model_copy(update={"sparsity": Sparsity(tau=0.9, least_tokens=256)})
    text = leaves_out.model_dump_json().encode()
    (bundle / "manifest.json").write_bytes(text)
    (bundle / "manifest.sha256").write_bytes(seal(text))
    return bundle


def test_a_bundle_that_keeps_all_is_not_compared_with_itself(
    runner: CliRunner, bundle: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_api, "steady_engine", lambda *_: pytest.fail("an engine was loaded"))
    result = runner.invoke(app, ["eval", str(bundle), str(questions), "--vs-dense"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "keeps all of a prompt anyway" in result.stderr and result.stderr.count("\n") == 1


def test_a_bundle_is_compared_with_itself_keeping_all(
    runner: CliRunner, sparse: Path, questions: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    words = ["eval", str(sparse), str(questions), "--vs-dense", "--answers", str(answers)]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert f"{sparse} on onnx minus {sparse} on onnx, dense, the same questions" in result.stdout
    assert [json.loads(line)["dense"] for line in answers.read_text().splitlines()] == [False] * 16 + [True] * 16
    found = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert (found["dense"], found["vs"]["dense"]) == (False, True)


def test_a_text_is_scored_behind_prompts_or_it_is_said_that_none_is(
    runner: CliRunner, sparse: Path, tmp_path: Path
) -> None:
    text = tmp_path / "whale.txt"
    text.write_text("Call me Ishmael. " * 20)
    words = ["eval", str(sparse), str(text), "--vs-dense"]
    result = runner.invoke(app, [*words, "--after", "30"])
    # Of 340 tokens in windows of a whole context, 64, all but 30 of each.
    assert f"over 170 tokens of {text} behind prompts of 30." in result.stdout and "--after" not in result.stderr
    result = runner.invoke(app, words)
    assert f"over 334 tokens of {text}." in result.stdout
    said = "leaves tokens out of prompts of 20 and more, and is not asked one here; give --after 20"
    assert result.stderr.count(said) == 1
    twice = runner.invoke(app, ["eval", str(sparse), str(text), "--vs-backend", "executorch"])
    assert twice.exit_code == 0 and twice.stderr.count(said) == 1


def test_a_limit_spreads_over_kinds_and_groups(runner: CliRunner, bundle: Path, questions: Path) -> None:
    result = runner.invoke(app, ["eval", str(bundle), str(questions), "--limit", "8", "--json"])
    assert [score["count"] for score in json.loads(result.stdout)["scores"]] == [2, 2, 2, 2, 4, 4, 8]


def test_answers_and_a_picture_are_written(runner: CliRunner, bundle: Path, questions: Path, tmp_path: Path) -> None:
    answers, picture = tmp_path / "answers.jsonl", tmp_path / "bars.png"
    words = ["eval", str(bundle), str(questions), "--vs-backend", "executorch"]
    result = runner.invoke(app, [*words, "--answers", str(answers), "--picture", str(picture)])
    assert result.exit_code == 0, result.stderr
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["backend"] for line in written] == ["onnx"] * 16 + ["executorch"] * 16
    last = written[-1]
    assert (last["line"], last["expected"], last["answer"], last["exact"]) == (16, "3", "-", False)
    with Image.open(picture) as drawn:
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}
    # The first run's colours and the second's paler ones: but its bar of unseen pages has no length.
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0xAA, 0xD0, 0xE5)} <= colours


@pytest.mark.parametrize(("when", "line"), [("interrupt_at", 5), ("interrupt_after", 4)])
def test_ctrl_c_shows_and_keeps_what_there_is(
    runner: CliRunner,
    bundle: Path,
    questions: Path,
    tmp_path: Path,
    fake: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    line: int,
) -> None:
    monkeypatch.setattr(fake, when, LINES[line]["question"])
    answers = tmp_path / "answers.jsonl"
    words = ["eval", str(bundle), str(questions), "--vs-backend", "executorch", "--answers", str(answers)]
    result = runner.invoke(app, words)
    assert result.exit_code == 130
    assert rows(result.stdout)[-1][:2] == ["all", "5"]
    assert "Stopped after 5 of 16 questions." in result.stderr
    assert len(answers.read_text().splitlines()) == 5


def test_a_text_is_measured_by_perplexity(runner: CliRunner, bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "whale.txt"
    text.write_text("Call me Ishmael. " * 20)
    words = ["eval", str(bundle), str(text), "--limit", "100", "--vs-backend", "executorch"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert f"on onnx: perplexity 7.389, standard error 0.000, over 100 tokens of {text}" in result.stdout
    assert "The first is 0.6065 times the second" in result.stdout
    found = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert (found["tokens"], found["vs"]["backend"]) == (100, "executorch")
    assert found["ratio"]["ratio"] == pytest.approx(np.exp(-0.5))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "0"], "limit is 0"),
        (["--after", "300"], "--after is for a text"),
        (["--vs-dense", "--vs-backend", "onnx"], "--vs-dense compares a bundle with itself"),
        (["--picture", "bars.svg"], "bars.svg does not end in .png"),
        (["--picture", "nowhere/bars.png"], "there is no folder nowhere"),
        (["--answers", "nowhere/a.jsonl"], "nowhere/a.jsonl: No such file"),
    ],
)
def test_wrong_options_are_one_sentence(
    runner: CliRunner, bundle: Path, questions: Path, words: list[str], said: str
) -> None:
    result = runner.invoke(app, ["eval", str(bundle), str(questions), *words])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_a_wrong_set_is_one_sentence_and_a_text_has_no_answers(
    runner: CliRunner, bundle: Path, questions: Path, tmp_path: Path
) -> None:
    questions.write_text("{}\n")
    result = runner.invoke(app, ["eval", str(bundle), str(questions)])
    assert result.exit_code == 2
    assert f"{questions}, line 1: the key 'image' is missing" in result.stderr
    result = runner.invoke(app, ["eval", str(bundle), str(tmp_path / "a.txt"), "--answers", "a.jsonl"])
    assert result.exit_code == 2
    assert "--answers is for questions, but" in result.stderr
