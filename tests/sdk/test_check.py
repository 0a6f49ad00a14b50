from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handlens.cli import app
from handlens_export import check as checks
from handlens_export.check import Distance, Finding, Report

DISTANCE = Distance("onnx", "coffee.jpg", cosine=0.97, kl=0.03, same_token=False)
GOOD = Finding("onnx", "prefill", "coffee.jpg", "cosine", 0.9999, 0.999, True)
WORST = Finding("onnx", "prefill", "rocket.jpg", "cosine", 0.5, 0.999, False)
LATER = Finding("onnx", "decode", "rocket.jpg", "cosine", 0.1, 0.999, False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the command line asks of the check, which answers with `report.findings`."""
    seen: list[tuple[object, ...]] = []
    findings = {"good": (GOOD,), "bad": (GOOD, WORST, LATER)}

    def check(bundle: Path, against: Path, images: list[Path], *, backend: str | None, progress: object) -> Report:
        seen.append((bundle, against, images, backend))
        return Report(findings[bundle.name], (DISTANCE,))

    monkeypatch.setattr(checks, "check", check)
    return seen


def test_a_bundle_that_answers_alike(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    words = ["check", "good", "--against", "ckpt", "--image", "a.jpg", "--image", "b.jpg", "--backend", "onnx"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert calls == [(Path("good"), Path("ckpt"), [Path("a.jpg"), Path("b.jpg")], "onnx")]
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


def test_json_is_the_report_and_keeps_the_exit_code(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    result = runner.invoke(app, ["check", "bad", "--against", "ckpt", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["departs"] == {"onnx": "prefill"}
