from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from handlens.cli import app
from handlens.cli.run import statistics
from handlens_runtime.chat import Message
from handlens_runtime.errors import ImageError, PromptError
from handlens_runtime.options import Options
from handlens_runtime.stats import Stats

if TYPE_CHECKING:
    from conftest import FakeEngine


def test_answer_is_alone_on_stdout_and_numbers_on_stderr(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    result = runner.invoke(app, ["run", str(bundle), "What?"])
    assert (result.exit_code, result.stdout) == (0, "The answer is 42.\n")
    assert result.stderr.startswith("[prefill 9 tokens in ")
    assert result.stderr.count("\n") == 1


def test_every_option_reaches_the_engine(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    words = "--max-tokens 7 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --seed 5"
    more = ["--stop", "END", "--stop", "\n", "--system", "Be brief.", "--image", "a.jpg", "--image", "b.jpg"]
    result = runner.invoke(
        app, ["run", str(bundle), "What?", "--backend", "onnx", "--release-encoder", *words.split(), *more]
    )
    assert result.exit_code == 0, result.stderr
    ((messages, options),) = engine.asked
    assert messages == [Message("system", "Be brief."), Message("user", "What?", (Path("a.jpg"), Path("b.jpg")))]
    assert options == Options(7, 0.5, 3, 0.9, 0.1, 1.2, 5, ("END", "\n"))
    assert engine.backend == "onnx" and engine.release_encoder


def test_options_left_out_leave_the_choice_to_the_bundle(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    runner.invoke(app, ["run", str(bundle), "What?"])
    assert engine.asked[0][1] == Options() and not engine.release_encoder


def test_json_is_one_object_with_answer_and_numbers(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    result = runner.invoke(app, ["run", str(bundle), "What?", "--json"])
    answer = json.loads(result.stdout)
    assert answer["text"] == "The answer is 42."
    assert answer["stats"] == engine.stats.as_dict()


def test_json_without_a_question_is_a_usage_error(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    result = runner.invoke(app, ["run", str(bundle), "--json"])
    assert result.exit_code == 2
    assert "--json answers one question" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["What?", "--temperature", "-1"], "temperature"),
        (["What?", "--max-tokens", "0"], "--max-tokens is 0"),
        (["What?", "--backend", "executorch"], "executorch"),
        (["What?", "--show-tiles", "t.png"], "--show-tiles"),
        (["What?", "--show-kept", "t.png"], "exported with --sparsity"),
        (["What?", "--sparse"], "export it with --sparsity zipvl"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(
    runner: CliRunner, bundle: Path, engine: FakeEngine, arguments: list[str], names: str
) -> None:
    result = runner.invoke(app, ["run", str(bundle), *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("handlens: ")
    assert result.stderr.count("\n") == 1
    assert names in result.stderr


def test_ctrl_c_stops_the_answer_and_leaves_with_130(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    generate = engine.generate
    engine.words = ("One", "two", "three")

    def interrupted(messages: list[Message], options: Options) -> object:
        for token in generate(messages, options):
            yield token
            if token.text == "two":
                os.kill(os.getpid(), signal.SIGINT)

    engine.generate = interrupted  # type: ignore[method-assign,assignment]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
    try:
        result = runner.invoke(app, ["run", str(bundle), "What?"])
        assert (result.exit_code, result.stdout) == (130, "Onetwo\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_statistics_name_what_took_the_time() -> None:
    stats = Stats(
        image_decode_s=0.012,
        encode_s=1.5,
        image_tokens=64,
        prompt_tokens=80,
        reused_tokens=10,
        prefill_s=0.7,
        time_to_first_token_s=2.25,
        generated_tokens=11,
        decode_s=2.0,
        peak_memory_bytes=2_200_000_000,
        finish="length",
    )
    assert statistics(stats) == (
        "[image decode 12 ms, encode 1.50 s, prefill 80 tokens (10 reused) in 700 ms, first token 2.25 s, "
        "11 tokens at 5.0 tokens/s, peak memory 2.2 GB, cut at --max-tokens]"
    )


def chat(runner: CliRunner, bundle: Path, lines: str, *arguments: str) -> tuple[int, str, str]:
    result = runner.invoke(app, ["run", str(bundle), *arguments], input=lines)
    return result.exit_code, result.stdout, result.stderr


def test_chat_carries_the_conversation_and_the_picture_of_its_question(
    runner: CliRunner, bundle: Path, engine: FakeEngine, tmp_path: Path
) -> None:
    picture = tmp_path / "a b.jpg"
    picture.touch()
    code, out, _ = chat(runner, bundle, f"/image {picture}\nWhat?\nAnd now?\n", "--system", "Be brief.")
    assert (code, out) == (0, "The answer is 42.\n" * 2)
    system, first = Message("system", "Be brief."), Message("user", "What?", (picture,))
    assert engine.prefilled == [[system, Message("user", images=(picture,))]]  # while the question is being typed
    assert engine.asked[0][0] == [system, first]
    assert engine.asked[1][0] == [
        system,
        first,
        Message("assistant", "The answer is 42."),
        Message("user", "And now?"),
    ]


def test_chat_commands(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    code, _, err = chat(runner, bundle, "Hi\n/reset\n/image nowhere.jpg\n/what\nAgain\n/quit\nnever\n")
    assert code == 0
    assert [messages for messages, _ in engine.asked] == [[Message("user", "Hi")], [Message("user", "Again")]]
    assert engine.resets == 2  # at the start, and when told to
    assert "handlens: nowhere.jpg does not exist.\n" in err
    assert "/image PATH" in err


def test_chat_survives_a_question_that_cannot_be_answered(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    engine.error = ImageError("a.jpg is not a picture.")
    code, _, err = chat(runner, bundle, "What?\n")
    assert (code, err) == (0, "handlens: a.jpg is not a picture.\n")
    engine.error = None
    chat(runner, bundle, "Fine?\n")
    assert engine.asked[-1][0] == [Message("user", "Fine?")]


def test_ctrl_c_in_a_chat_keeps_what_was_said(runner: CliRunner, bundle: Path, engine: FakeEngine) -> None:
    generate = engine.generate

    def interrupted(messages: list[Message], options: Options) -> object:
        engine.stopped = False
        for token in generate(messages, options):
            yield token
            if len(engine.asked) == 1 and token.id == 1:
                os.kill(os.getpid(), signal.SIGINT)

    engine.generate = interrupted  # type: ignore[method-assign,assignment]
    code, out, _ = chat(runner, bundle, "One\nTwo\n")
    assert (code, out) == (0, "The answer\nThe answer is 42.\n")
    assert engine.asked[1][0][1] == Message("assistant", "The answer")


def test_an_error_of_the_prompt_in_a_single_question_leaves_with_2(
    runner: CliRunner, bundle: Path, engine: FakeEngine
) -> None:
    engine.error = PromptError("The prompt does not fit.")
    result = runner.invoke(app, ["run", str(bundle), "What?"])
    assert (result.exit_code, result.stderr) == (2, "handlens: The prompt does not fit.\n")
