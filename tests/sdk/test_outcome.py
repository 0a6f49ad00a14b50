from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from handlens.cli import app
from handlens.cli.interrupt import interruptible
from handlens.cli.outcome import answered
from handlens_runtime.errors import HandLensError

ROOT = Path(__file__).resolve().parents[2]


def left_with(error: BaseException) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a verb that raises `error`."""
    verbs = typer.Typer()

    @verbs.command()
    @answered
    def verb() -> None:
        raise error

    result = CliRunner().invoke(verbs)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (HandLensError("Two\nlines become one."), "handlens: Two lines become one.\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "handlens: a.txt: No such file or directory.\n"),
        (PermissionError(13, "Permission denied", "b"), "handlens: b: Permission denied.\n"),
        (OSError(28, "No space left on device"), "handlens: No space left on device.\n"),
    ],
)
def test_what_the_user_can_mend(error: BaseException, line: str) -> None:
    assert left_with(error) == (2, "", line)


def test_out_of_memory_is_the_users_to_mend() -> None:
    code, _, err = left_with(MemoryError())
    assert code == 2
    assert "not enough memory" in err


def test_interrupted() -> None:
    assert left_with(KeyboardInterrupt()) == (130, "", "")


def test_our_fault_is_one_line_that_names_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = left_with(ZeroDivisionError("division\nby zero"))
    (written,) = tmp_path.iterdir()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "ZeroDivisionError: division" in err
    assert str(written) in err
    assert "Traceback" in written.read_text()


def test_a_report_holds_what_is_not_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["handlens", "run", "b", "\udcff"])
    assert left_with(ZeroDivisionError())[0] == 1
    (written,) = tmp_path.iterdir()
    assert written.read_text().startswith("handlens run b \\udcff\nTraceback")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HANDLENS_DEBUG", "1")
    code, _, err = left_with(HandLensError("Known."))
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("handlens: Known.\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "b", "--nonsense"], ["run", "b", "--seed", "x"]])
def test_usage_errors_leave_with_2_and_no_traceback(runner: CliRunner, arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["run", "b", "-5 plus 3?"],
            "No such option: -5; put -- before a question that starts with a minus; see handlens run --help.",
        ),
        (
            ["run", "b", "--what is this?"],
            "No such option: --what is this?; put -- before a question that starts with a minus; "
            "see handlens run --help.",
        ),
        (["run", "b", "--", "-5 plus 3?", "--image", "x"], "(--image x); put options before the --; see handlens run"),
        (["run", "b", "what", "is"], "(is); put quotes around a question of several words; see handlens run --help."),
        (["inspect", "b", "c"], "(c); see handlens inspect --help."),
        (["run", "b", "--xyz"], "No such option: --xyz; see handlens run --help."),
        (
            ["run", "b", "Hi", "--backend", "tflite"],
            "Invalid value for '--backend': 'tflite' is not one of 'executorch', 'onnx'; see handlens run --help.",
        ),
        (["init", "foo", "-o", "x"], "'foo' is not one of 'bluelm-v-nano', 'bluelm-v-3b'; see handlens init --help."),
        (["export", "c", "-o", "x", "--backend", "tflite"], "'tflite' is not one of executorch, onnx, or both joined"),
        (["run", "b", "Hi", "--seed", "x"], "'--seed': should be a valid integer; see handlens run --help."),
        (["nonsense"], "No such command 'nonsense'; see handlens --help."),
        (["--nonsense"], "No such option: --nonsense; see handlens --help."),
    ],
)
def test_what_was_typed_wrongly_is_one_line(runner: CliRunner, arguments: list[str], line: str) -> None:
    result = runner.invoke(app, arguments, prog_name="handlens")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("handlens: ") and line in result.stderr


def test_usage_has_no_braces(runner: CliRunner) -> None:
    result = runner.invoke(app, ["run", "--help"], prog_name="handlens")
    assert "Usage: handlens run [OPTIONS] BUNDLE [PROMPT]\n" in result.stdout


@pytest.mark.parametrize("swallowed", [True, False])
def test_an_interrupted_import_is_an_interruption(swallowed: bool) -> None:
    before = signal.getsignal(signal.SIGINT)

    def load() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            if not swallowed:
                raise ImportError("initialization failed") from None

    with pytest.raises(KeyboardInterrupt), interruptible():
        load()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ImportError, match="other"), interruptible():
        raise ImportError("other")


def handlens(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    paths = os.pathsep.join(str(ROOT / root) for root in ("sdk", "export", "runtime"))
    return subprocess.Popen(
        [sys.executable, "-m", "handlens", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_reader_that_goes_away_is_no_error(bundle: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = handlens("inspect", str(bundle), "--json", stdout=writing)
    os.close(writing)
    _, err = process.communicate()
    assert (process.returncode, err) == (141, "")


def test_the_real_process_answers_in_one_line(tmp_path: Path) -> None:
    process = handlens("run", str(tmp_path / "nowhere"), "Hello")
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert "nowhere does not exist" in err
