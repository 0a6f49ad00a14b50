"""`handlens bench`: what it prints of a benchmark, words that it refuses, and a tiny bundle in real processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handlens import _api
from handlens.cli import app
from handlens.cli.bench import DEPTHS, PROMPTS
from handlens_export import pipeline
from handlens_export.recipe import Recipe
from handlens_runtime.bench import Benchmark, Workload, llama_cpp_runner
from handlens_runtime.bench.results import Found, Line, Pictures, Samples
from handlens_runtime.bench.workload import Trial
from handlens_runtime.manifest import Manifest

CONTEXT = 64


def found(name: str, pace: float, pictures: bool = False) -> Found:
    lines = (
        Line(Trial(512), Samples((512 * pace, 512 * pace)), None, None),
        Line(Trial(16, 512), Samples((16 * pace, 16 * pace)), 1e9, Samples((2e9, 2e9))),
    )
    return Found(
        name=name,
        file="f",
        load=Samples((0.25, 0.25)),
        load_from_start=Samples((12.5, 12.5)),
        lines=lines,
        pictures=Pictures(Samples((2.0,)), (768, 1536), 9, Samples((0.5,)), Samples((18.0,))) if pictures else None,
        peak_memory=2_200_000_000,
        peak_memory_pictures=2_400_000_000 if pictures else None,
        peak_memory_released=2_100_000_000 if pictures else None,
        kv_bytes=78_400_000,
        weight_bytes=1_500_000_000,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Instead of measuring; what was asked for."""
    asked: list[dict[str, object]] = []

    def bench(bundle: object, **options: object) -> Benchmark:
        asked.append(options)
        peer = found("llama.cpp (llama-cpp-python 9)", 1.0) if options["vs"] else None
        return Benchmark("tiny", 1_500_000, 940_000, 2, 2, found("onnx", 0.5, not peer), peer, ("A [note].",))

    monkeypatch.setattr(_api, "bench", bench)
    return asked


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_speeds_memory_and_pictures_are_in_the_tables(
    runner: CliRunner, bundle: Path, measured: list[dict[str, object]]
) -> None:
    result = runner.invoke(app, ["bench", str(bundle)])
    assert result.exit_code == 0, result.stderr
    shown = rows(result.stdout)
    assert ["tiny", "940", "kB", "1.5M", "onnx", "2", "2"] in shown
    assert ["pp512", "2.00", "±", "0.00"] in shown
    assert ["tg16", "@", "d512", "2.00", "±", "0.00", "100%", "±", "0%"] in shown
    for text in ("load and a first token, imports done 250 ± 0 ms", "this machine reads 2.00 ± 0.00 GB/s"):
        assert text.split() in shown
    for text in ("picture of 768x1536: 9 tiles 18 s", "peak memory, a picture too 2.4 GB", "key-value cache 78.4 MB"):
        assert text in " ".join(result.stdout.split())
    assert "Note: A [note]." in result.stdout
    assert measured[0]["workload"] == Workload()


def test_beside_a_peer_there_are_ratios(runner: CliRunner, bundle: Path, measured: list[dict[str, object]]) -> None:
    words = ["bench", str(bundle), "--vs", "llama.cpp", "--backend", "onnx", "--threads", "3"]
    result = runner.invoke(app, [*words, "--prompts", "512", "--depths", "0, 512", "--repeat", "2"])
    assert result.exit_code == 0, result.stderr
    assert ["pp512", "2.00", "±", "0.00", "1.00", "±", "0.00", "2.00", "±", "0.00"] in rows(result.stdout)
    asked = measured[0]
    assert (asked["vs"], asked["backend"], asked["threads"]) == ("llama.cpp", "onnx", 3)
    assert asked["workload"] == Workload((512,), (0, 512), 2)


def test_json_is_one_line(runner: CliRunner, bundle: Path, measured: list[dict[str, object]]) -> None:
    result = runner.invoke(app, ["bench", str(bundle), "--vs", "llama.cpp", "--json"])
    (line,) = result.stdout.splitlines()
    told = json.loads(line)
    assert (told["name"], told["vs"]["name"]) == ("onnx", "llama.cpp (llama-cpp-python 9)")
    assert told["ratios"]["tg16 @ d512"]["samples"] == [2.0, 2.0]
    assert told["tests"][1]["bandwidth_share"]["mean"] == 1.0


def test_the_defaults_shown_are_the_workloads() -> None:
    assert [",".join(map(str, lengths)) for lengths in (Workload.prompts, Workload.depths)] == [PROMPTS, DEPTHS]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--depths", "deep"], "--depths is 'deep'; give whole numbers"),
        (["--prompts", "1,,2"], "--prompts is '1,,2'"),
        (["--prompts", "0"], "--prompts holds 0"),
        (["--repeat", "0"], "--repeat"),
        (["--vs", "a-rival"], "llama.cpp"),
        (["--backend", "executorch"], "has no executorch program"),
        (["--prompts", "4000", "--depths", "4000"], "too few for any of pp4000"),
    ],
)
def test_wrong_words_are_one_sentence(runner: CliRunner, bundle: Path, words: list[str], said: str) -> None:
    result = runner.invoke(app, ["bench", str(bundle), *words])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_without_the_extra_the_sentence_names_it(
    runner: CliRunner, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp_runner, "PACKAGES", ("a_package_that_nobody_has",))
    result = runner.invoke(app, ["bench", str(bundle), "--vs", "llama.cpp", "--prompts", "8", "--depths", "16"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install -e '.[bench]'" in result.stderr and result.stderr.count("\n") == 1


def test_a_bundle_that_cannot_be_loaded_is_the_runners_sentence(runner: CliRunner, bundle: Path) -> None:
    # Whole and sealed, but its program is one word: the process that loads it says so, and we repeat it.
    result = runner.invoke(app, ["bench", str(bundle), "--prompts", "8", "--depths", "16", "--repeat", "1"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "handlens: " in result.stderr.splitlines()[-1] and str(bundle) in result.stderr.splitlines()[-1]


def test_a_bundle_is_measured_in_a_process_of_its_own(
    runner: CliRunner, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens_runtime.bench.run.READ_BYTES", 80_000)
    monkeypatch.setattr("handlens_runtime.bench.run.BANDWIDTH_S", 0.001)
    folder = tmp_path / "bundle"
    recipe = Recipe(backends=("onnx",), context=CONTEXT, chunk=16)
    made: Manifest = pipeline.export(tiny_checkpoint("bluelm_v", tmp_path / "checkpoint"), folder, recipe)
    words = ["bench", str(folder), "--prompts", "8,32,512", "--depths", "4", "--repeat", "1", "--json"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert [test["test"] for test in told["tests"]] == ["pp8", "pp32", "tg16 @ d4"]
    assert told["notes"][-1].startswith("pp512 left out: the context is 64; export with --context 512")
    assert told["kv_bytes"] == made.memory.backends["onnx"].kv_cache
    row = told["kv_bytes"] / CONTEXT
    assert told["tests"][-1]["step_bytes"] == told["weight_bytes_per_step"] + row * (4 + 8.5)
    assert told["peak_memory_pictures_bytes"] >= told["peak_memory_bytes"] > 10_000_000
    if sys.platform == "linux":
        assert 10_000_000 < told["peak_memory_released_bytes"] <= told["peak_memory_pictures_bytes"]
    assert told["pictures"]["tiles"] >= 1
    every = [told["load_s"], told["load_from_start_s"], *(test["tokens_per_second"] for test in told["tests"])]
    assert all(len(one["samples"]) == 1 and one["mean"] > 0 for one in every)
    assert told["load_from_start_s"]["mean"] > told["load_s"]["mean"]
