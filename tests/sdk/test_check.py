from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handlens import _api
from handlens.cli import app
from handlens_export import check as checks
from handlens_export.check import Distance, Finding, Report
from handlens_export.quantize.sensitivity import Sensitivity
from handlens_runtime import golden
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import OptionError
from handlens_runtime.golden import Replay, Result

DISTANCE = Distance("onnx", "coffee.jpg", cosine=0.97, kl=0.03, same_token=False)
GOOD = Finding("onnx", "prefill", "coffee.jpg", "cosine", 0.9999, 0.999, True)
WORST = Finding("onnx", "prefill", "rocket.jpg", "cosine", 0.5, 0.999, False)
NOISY = Finding("onnx", "prefill", "cat.jpg", "cosine", 0.4, 0.3, True)
LATER = Finding("onnx", "decode", "rocket.jpg", "cosine", 0.1, 0.999, False)

COSTS = (
    Sensitivity("decoder.layers.0.attention", 0.03, 900),
    Sensitivity("decoder.layers.0.mlp", 0.05, 900),
    Sensitivity("decoder.layers.1.attention", 0.01, 900),
    Sensitivity("decoder.layers.1.mlp", 0.01, 900),
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the command line asks of the check, which answers with `report.findings`."""
    seen: list[tuple[object, ...]] = []
    findings = {"good": (GOOD,), "bad": (GOOD, WORST, NOISY, LATER)}

    def check(
        bundle: Path,
        against: Path,
        images: list[Path],
        *,
        lora: Path | None,
        backend: str | None,
        sensitivity: bool,
        progress: object,
    ) -> Report:
        seen.append((bundle, against, images, lora, backend))
        return Report(findings[bundle.name], (DISTANCE,), COSTS if sensitivity else ())

    monkeypatch.setattr(checks, "check", check)
    return seen


def test_what_was_left_out_of_a_prompt_is_not_put_down_to_rounding(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sparse, said in ((False, "What rounding costs: "), (True, "What rounding and leaving tokens out cost: ")):
        found = Report((GOOD,), (replace(DISTANCE, sparse=sparse),))
        monkeypatch.setattr(checks, "check", lambda *_, found=found, **__: found)
        assert said in runner.invoke(app, ["check", "good", "--against", "ckpt"]).stdout


def test_a_bundle_that_answers_alike(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    words = ["check", "good", "--against", "ckpt", "--image", "a.jpg", "--image", "b.jpg", "--backend", "onnx"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert calls == [(Path("good"), Path("ckpt"), [Path("a.jpg"), Path("b.jpg")], None, "onnx")]
    assert "onnx: answers like the checkpoint." in result.stdout
    assert "0.03 nats" in result.stdout


def test_a_departure_names_its_first_stage_and_leaves_with_1(
    runner: CliRunner, calls: list[tuple[object, ...]]
) -> None:
    result = runner.invoke(app, ["check", "bad", "--against", "ckpt"])
    assert result.exit_code == 1
    assert result.stdout.rstrip().endswith("onnx: departs at prefill.")
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("prefill")]
    assert row.split() == ["prefill", "cosine", "0.5", "0.999", "rocket.jpg", "DEPARTS"]


def test_what_each_layer_costs_is_a_row_a_layer(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    result = runner.invoke(app, ["check", "good", "--against", "ckpt", "--sensitivity"])
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("decoder.layers.")]
    assert rows == [["decoder.layers.0", "0.03", "0.05", "80.0%"], ["decoder.layers.1", "0.01", "0.01", "20.0%"]]
    without = runner.invoke(app, ["check", "good", "--against", "ckpt"])
    assert "decoder.layers" not in without.stdout
    alone = runner.invoke(app, ["check", "good", "--sensitivity"])
    assert alone.exit_code == 2 and "give --against too" in alone.stderr


def test_json_is_the_report_and_keeps_the_exit_code(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    result = runner.invoke(app, ["check", "bad", "--against", "ckpt", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["departs"] == {"onnx": "prefill"}


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The backends that the command line asks to replay; executorch is the one that departs."""
    asked: list[str | None] = []
    results = (
        Result("onnx", "Who [bold]?", None, difference=0.01, limit=0.1, same_tokens=16, tokens=16, passed=True),
        Result("executorch", "What?", "pattern", difference=0.7, limit=0.25, same_tokens=0, tokens=16, passed=False),
    )

    def replay(bundle: Bundle, backend: str | None, progress: object) -> Replay:
        asked.append(backend)
        if backend is None:
            return Replay(results, left_out=("A picture: does not fit.",))
        return Replay(results[:1], not_installed=("executorch",))

    monkeypatch.setattr(golden, "replay", replay)
    return asked


def test_without_a_checkpoint_the_recorded_answers_are_replayed(
    runner: CliRunner, bundle: Path, replayed: list[str | None]
) -> None:
    result = runner.invoke(app, ["check", str(bundle), "--backend", "onnx"])
    assert (result.exit_code, replayed) == (0, ["onnx"]), result.stderr
    (row,) = [line for line in result.stdout.splitlines() if "Who" in line]
    assert row.split() == ["onnx", "Who", "[bold]?", "0.0100", "nats", "0.1", "16", "of", "16", "ok"]
    assert "executorch: not installed here, not asked." in result.stdout
    assert result.stdout.rstrip().endswith("onnx: answers as where the bundle was made.")


def test_an_answer_that_departs_leaves_with_1(runner: CliRunner, bundle: Path, replayed: list[str | None]) -> None:
    result = runner.invoke(app, ["check", str(bundle)])
    assert result.exit_code == 1
    (row,) = [line for line in result.stdout.splitlines() if "pattern" in line]
    assert row.endswith("DEPARTS")
    assert "left out at export: A picture: does not fit." in result.stdout
    assert result.stdout.rstrip().endswith("executorch: answers otherwise than where the bundle was made.")
    as_json = runner.invoke(app, ["check", str(bundle), "--json"])
    assert as_json.exit_code == 1
    found = json.loads(as_json.stdout)
    assert [one["passed"] for one in (found, *found["results"])] == [False, True, False]


def test_a_replay_needs_no_workstation(
    runner: CliRunner, bundle: Path, replayed: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_api, "WORKSTATION", ("a_package_that_nobody_has",))
    assert runner.invoke(app, ["check", str(bundle), "--backend", "onnx"]).exit_code == 0
    refused = runner.invoke(app, ["check", str(bundle), "--against", "ckpt"])
    assert refused.exit_code == 2
    assert "a_package_that_nobody_has" in refused.stderr


def test_the_lora_of_the_export_reaches_the_check(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    result = runner.invoke(app, ["check", "good", "--against", "ckpt", "--lora", "adapter"])
    assert result.exit_code == 0, result.stderr
    assert calls == [(Path("good"), Path("ckpt"), [], Path("adapter"), None)]


@pytest.mark.parametrize(("option", "name"), [("--image", "images"), ("--lora", "lora")])
def test_photographs_and_a_lora_are_for_the_checkpoint(runner: CliRunner, bundle: Path, option: str, name: str) -> None:
    result = runner.invoke(app, ["check", str(bundle), option, "a"])
    assert result.exit_code == 2
    assert option in result.stderr and "--against" in result.stderr
    with pytest.raises(OptionError, match=f"{name} needs .*against"):
        _api.check(bundle, **{name: ["a"]})  # type: ignore[call-overload]


def test_a_bundle_without_recorded_answers_says_what_to_do(runner: CliRunner, bundle: Path) -> None:
    result = runner.invoke(app, ["check", str(bundle)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "golden.json" in result.stderr and "--against" in result.stderr
