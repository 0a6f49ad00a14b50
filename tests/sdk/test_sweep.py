"""`handlens sweep` and `handlens advise`: the tables, the picture, and words that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from handlens.cli import app

TEXT = "The quick brown fox jumps over the lazy dog while it rains in the mountains. " * 30


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("sweep") / "tiny")


@pytest.fixture(scope="module")
def swept(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("swept")
    (folder / "text.txt").write_text(TEXT)
    words = ["sweep", str(checkpoint), "-o", str(folder / "out"), "--text", str(folder / "text.txt")]
    result = CliRunner().invoke(app, [*words, "--tokens", "100", "--methods", "round, rotate+clip", "--bits", "3,4"])
    assert result.exit_code == 0, result.stderr
    return folder / "out", result.stdout


def test_a_sweep_is_a_table_a_file_and_a_picture(swept: tuple[Path, str]) -> None:
    folder, said = swept
    assert "rotate+clip" in said and "perplexity" in said and str(folder) in said
    rows = json.loads((folder / "sweep.json").read_text())["rows"]
    assert [(row["method"], row["bits"]) for row in rows] == [
        ("float", 32), ("round", 3), ("rotate+clip", 3), ("round", 4), ("rotate+clip", 4)
    ]  # fmt: skip
    with Image.open(folder / "sweep.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0, 0x72, 0xB2), (0xE6, 0x9F, 0)} <= colours  # a bar of each method


def test_advice_stands_beside_what_was_measured(runner: CliRunner, checkpoint: Path, swept: tuple[Path, str]) -> None:
    folder, _ = swept
    result = runner.invoke(
        app, ["advise", str(checkpoint), "--trained-tokens", "11T", "--sweep", str(folder), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["trained_tokens"] == 11e12
    assert "0.017 * tokens^0.5251" in found["law"]["loss_increase"] and "300B tokens" in found["law"]["fitted_on"]
    by_bits = {one["bits"]: one for one in found["predicted"]}
    assert by_bits[2]["measured_by"] is None and by_bits[4]["measured_by"].endswith("4 bits, groups of 32")
    assert by_bits[2]["loss_increase"] > by_bits[3]["loss_increase"] > by_bits[4]["loss_increase"]
    told = runner.invoke(app, ["advise", str(checkpoint), "--trained-tokens", "11T"])
    assert "extrapolated: parameters, tokens" in told.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["advise", "ckpt", "--trained-tokens", "many"], "'many' is no number of tokens; give one such as 11T"),
        (["sweep", "ckpt", "-o", "out"], "give --text, --questions or both"),
        (["sweep", "ckpt", "-o", "out", "--bits", "four", "--text", "a.txt"], "'four' is no list of whole numbers"),
        (["sweep", "ckpt", "-o", "out", "--methods", "awq", "--text", "a.txt"], "--methods names 'awq'"),
        (["sweep", "ckpt", "-o", "out", "--text", "a.txt"], "ckpt"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(runner: CliRunner, words: list[str], said: str) -> None:
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    assert said in result.stderr and "Traceback" not in result.stderr


def test_another_checkpoints_sweep_is_no_measurement_of_this_one(
    runner: CliRunner, tiny_checkpoint: Callable[..., Path], swept: tuple[Path, str], tmp_path: Path
) -> None:
    other = tiny_checkpoint("gemma", tmp_path / "other")
    result = runner.invoke(app, ["advise", str(other), "--trained-tokens", "1T", "--sweep", str(swept[0])])
    assert result.exit_code == 2
    assert "give the folder of its own" in result.stderr


def test_a_folder_without_a_sweep_is_named(runner: CliRunner, checkpoint: Path, tmp_path: Path) -> None:
    words = ["advise", str(checkpoint), "--trained-tokens", "1T", "--sweep", str(tmp_path)]
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    assert f"{tmp_path} holds no sweep; make one with handlens sweep" in result.stderr
