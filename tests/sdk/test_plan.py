"""`handlens plan`: tables and JSON of a forecast, words that are refused, and no torch on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handlens import _api
from handlens.cli import app
from handlens.cli.units import bytes_of
from handlens_export.forecast import Device
from handlens_runtime.manifest import Manifest

SOURCES = [str(Path(__file__).parents[2] / folder) for folder in ("sdk", "export", "runtime")]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("bluelm_v", tmp_path_factory.mktemp("plan") / "tiny")


def test_json_is_the_whole_forecast(runner: CliRunner, checkpoint: Path) -> None:
    words = [
        "plan",
        str(checkpoint),
        "--device",
        "snapdragon-8-elite",
        "--backend",
        "onnx",
        "--image",
        "36x36",
        "--json",
    ]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["bytes"] == sum(size for parts in found["files"].values() for size in parts.values())
    assert (found["tiles"], found["fits"], found["device"]["name"]) == (1, True, "snapdragon-8-elite")
    speed = found["speeds"]["onnx"]
    assert speed["first_token_seconds"] == pytest.approx(speed["vision_seconds"] + speed["prefill_seconds"])
    memory = Manifest.model_fields["memory"].annotation.model_validate(found["memory"])
    assert memory.peak > memory.kv_cache > 0


def test_tables_name_host_files_memory_and_speed(runner: CliRunner, checkpoint: Path) -> None:
    result = runner.invoke(app, ["plan", str(checkpoint), "--device", "dimensity-9300", "--text", "9"])
    assert result.exit_code == 0, result.stderr
    for text in ("export, peak memory", "executorch", "key-value cache", "first token", "tok/s", "figures of the NPU"):
        assert text in result.stdout
    assert "tok/s" not in runner.invoke(app, ["plan", str(checkpoint)]).stdout


def test_a_sparse_prompt_is_faster_by_what_is_assumed_to_be_kept(runner: CliRunner, checkpoint: Path) -> None:
    words = ["plan", str(checkpoint), "--device", "snapdragon-8-elite", "--backend", "onnx", "--image", "36x36"]
    words += ["--text", "300", "--context", "512"]
    sparse = [*words, "--sparsity", "zipvl"]
    result = runner.invoke(app, [*sparse, "--kept", "0.3"])
    assert "of which layers keep 30% (assumed: --kept)" in result.stdout
    assert "assumed" not in runner.invoke(app, words).stdout
    found = [json.loads(runner.invoke(app, [*sparse, "--kept", kept, "--json"]).stdout) for kept in ("0.3", "0.6", "1")]
    rates = [one["speeds"]["onnx"]["tokens_per_second"] for one in found]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(rates)
    assert rates[-1] == json.loads(runner.invoke(app, [*words, "--json"]).stdout)["speeds"]["onnx"]["tokens_per_second"]


def test_a_method_that_looks_at_activations_has_a_line_of_its_own(runner: CliRunner, checkpoint: Path) -> None:
    words = ["plan", str(checkpoint), "--method", "rsq", "--smooth", "--rotate", "--layer-bits", "decoder.layers.0=8"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "rsq and smoothing on a calibration set of 64 x" in result.stdout
    assert "calibration set" not in runner.invoke(app, ["plan", str(checkpoint)]).stdout
    sizes = [
        json.loads(runner.invoke(app, ["plan", str(checkpoint), "--layer-bits", each, "--json"]).stdout)["bytes"]
        for each in ("decoder.layers.0=4", "decoder.layers.0=8")
    ]
    assert sizes[0] < sizes[1]


def test_a_limit_that_nothing_keeps_is_one_sentence(runner: CliRunner, checkpoint: Path) -> None:
    result = runner.invoke(app, ["plan", str(checkpoint), "--ram", "20kB"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "does not fit --ram 20kB" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ram", "much"], "such as 2.2GB"),
        (["--image", "0x9"], "such as 768x1536"),
        (["--image", "wide"], "such as 768x1536"),
        (["--device", "abacus"], "no device abacus"),
        (["--text", "0"], "at least 1"),
        (["--kept", "0"], "a share lies above 0"),
        (["--backend", "onnx", "--sparsity", "zipvl:tau=2"], "no share of the attention"),
        (["--backend", "onnx", "--sparsity", "zipvl:tau=most"], "zipvl:tau=0.96"),
        (["--backend", "onnx", "--sparsity", "fastv"], "zipvl:tau=0.96"),
    ],
)
def test_wrong_words_are_named(runner: CliRunner, checkpoint: Path, words: list[str], said: str) -> None:
    result = runner.invoke(app, ["plan", str(checkpoint), *words])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_without_a_checkpoint_there_is_calibration_and_the_list(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Device("this-desktop", 3e10, 4e11, 8_000_000_000, 0.85, "measured today")
    monkeypatch.setattr(_api, "calibrate", lambda: measured)
    assert "30.0 GB a second, 0.400 int8 TOPS" in runner.invoke(app, ["plan", "--calibrate"]).stdout
    assert json.loads(runner.invoke(app, ["plan", "--calibrate", "--json"]).stdout)["int8"] == 4e11
    assert "this-desktop" in runner.invoke(app, ["plan", "--device", "list"]).stdout
    assert "give a checkpoint" in runner.invoke(app, ["plan"]).stderr


def test_the_command_loads_no_torch_and_says_the_same(
    runner: CliRunner, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    families = ("bluelm_v", "gemma", "idefics3", "llama", "paligemma", "qwen2", "smolvlm")
    folders = [str(tiny_checkpoint(family, tmp_path / family, variant=1)) for family in families]
    code = (
        f"import sys; sys.path[:0] = {SOURCES!r}\n"
        "from handlens.cli import main\n"
        f"for folder in {folders!r}:\n"
        "    sys.argv[1:] = ['plan', folder, '--json', '--image', '36x36']\n"
        "    try: main()\n"
        "    except SystemExit as end: print([end.code, 'torch' in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["[0, False]"] * len(families)
    for folder, line in zip(folders, done.stdout.splitlines(), strict=True):
        assert line == runner.invoke(app, ["plan", folder, "--json", "--image", "36x36"]).stdout.strip()


@pytest.mark.parametrize(
    ("text", "count"),
    [("2.2GB", 2_200_000_000), ("900 mb", 900_000_000), ("2GiB", 2**31), ("1500", 1500), ("2 k", 2000), ("-1GB", None)],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int | None) -> None:
    assert bytes_of(text) == count
