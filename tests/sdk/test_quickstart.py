"""The README's Quickstart, run for real on the nano preset: nothing here is a stand-in."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from handlens.cli import app

ROOT = Path(__file__).resolve().parents[2]


def test_quickstart_makes_a_bundle_and_an_answer(runner: CliRunner, tmp_path: Path) -> None:
    checkpoint, bundle = str(tmp_path / "ckpt"), str(tmp_path / "bundle")
    photograph = str(ROOT / "assets/photographs/coffee.jpg")
    commands = (
        ["init", "bluelm-v-nano", "-o", checkpoint],
        ["export", checkpoint, "-o", bundle, "--backend", "onnx", "--context", "256"],
        ["run", bundle, "Describe a lens.", "--temperature", "0.7", "--seed", "1", "--max-tokens", "8"],
        ["run", bundle, "--image", photograph, "What is this?", "--max-tokens", "8"],
        ["inspect", bundle],
        ["inspect", bundle, "--json"],
    )
    for command in commands:
        result = runner.invoke(app, command)
        assert result.exit_code == 0, (command, result.stderr)
        assert result.stdout.strip(), command
