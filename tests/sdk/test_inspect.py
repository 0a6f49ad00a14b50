from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from handlens.cli import app
from handlens_runtime.bundle import seal
from handlens_runtime.manifest import Manifest


def test_json_is_the_manifest_and_the_sum_of_its_files(runner: CliRunner, bundle: Path, manifest: Manifest) -> None:
    result = runner.invoke(app, ["inspect", str(bundle), "--json"])
    shown = json.loads(result.stdout)
    assert Manifest.model_validate_json(json.dumps(shown["manifest"])) == manifest
    assert shown["bytes"] == len(b"{}") + len(b"program")


def test_tables_name_bits_exceptions_leftovers_and_files(runner: CliRunner, bundle: Path) -> None:
    result = runner.invoke(app, ["inspect", str(bundle)])
    assert result.exit_code == 0, result.stderr
    for text in (
        "2 layers, width 64",
        "head 576: group 64, odd row",
        "37 of 40",
        "2 Add, 1 Gather",
        "onnx/decoder.onnx",
        "1.5M",
        "940 kB",
        "key-value cache, onnx",
        "65.5 kB",
        "peak, onnx",
    ):
        assert text in result.stdout


def test_a_gate_that_was_passed_is_shown(runner: CliRunner, bundle: Path, manifest: Manifest) -> None:
    assert "Gate" not in runner.invoke(app, ["inspect", str(bundle)]).stdout
    scores = {"onnx": {"exact_match": 0.9615, "character_accuracy": 0.9921}}
    found = {"set_sha256": "9" * 64, "questions": 26, "accuracy": 0.9, "backends": scores}
    content = Manifest.model_validate({**manifest.model_dump(), "gate": found}).model_dump_json().encode()
    (bundle / "manifest.json").write_bytes(content)
    (bundle / "manifest.sha256").write_bytes(seal(content))
    shown = [line.split() for line in runner.invoke(app, ["inspect", str(bundle)]).stdout.splitlines()]
    assert ["onnx", "26", "96.2%", "90.0%", "99.2%", "999999999999…"] in shown


def test_what_a_choice_of_tokens_does_is_shown(runner: CliRunner, bundle: Path, manifest: Manifest) -> None:
    effect = {"backend": "onnx", "prompt_tokens": 400, "image_tokens": 300, "kept": (100, 300), "divergence": 0.25}
    sparsity = {"tau": 0.9, "least_tokens": 256, "effect": effect}
    content = Manifest.model_validate({**manifest.model_dump(), "sparsity": sparsity}).model_dump_json().encode()
    (bundle / "manifest.json").write_bytes(content)
    (bundle / "manifest.sha256").write_bytes(seal(content))
    said = " ".join(runner.invoke(app, ["inspect", str(bundle)]).stdout.split())
    assert "tau 0.9: a prompt of 256 tokens or more" in said
    assert "50% (25% to 75% by layer) of a prompt of 400 tokens kept, 0.250 nats from keeping all" in said


def test_a_damaged_file_is_named(runner: CliRunner, bundle: Path) -> None:
    (bundle / "onnx/decoder.onnx").write_bytes(b"Program")
    result = runner.invoke(app, ["inspect", str(bundle)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "onnx/decoder.onnx is damaged" in result.stderr
