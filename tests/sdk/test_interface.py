"""`import handlens`: its names, and that they are the ones the packages define."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer.main

import handlens
from handlens import _api
from handlens.cli import app, choices
from handlens.cli.recipes import backends
from handlens_export import errors as export_errors
from handlens_export.gate import Gate
from handlens_export.recipe import METHODS, Recipe
from handlens_runtime import errors as runtime_errors
from handlens_runtime import manifest
from handlens_runtime.bench.run import Peer
from handlens_runtime.errors import HandLensError
from handlens_runtime.options import Options


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert handlens.__all__ == sorted(handlens.__all__)
    assert dir(handlens) == handlens.__all__
    for name in handlens.__all__:
        assert getattr(handlens, name) is not None


def test_all_is_complete() -> None:
    # What is reachable without an underscore, modules and annotations apart, is public or not there at all.
    reachable = {
        name
        for name, value in vars(handlens).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name not in {"annotations", "TYPE_CHECKING"}
    }
    assert reachable <= set(handlens.__all__)
    assert set(handlens._HOME) <= set(handlens.__all__)


@pytest.mark.parametrize("module", [runtime_errors, export_errors])
def test_every_error_of_the_packages_is_public(module: object) -> None:
    errors = {name for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert errors <= set(handlens.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'handlens' has no attribute 'Modell'"):
        _ = handlens.Modell


def test_choices_are_the_schemas() -> None:
    assert get_args(choices.BackendChoice) == get_args(manifest.BackendName)
    assert get_args(choices.KVChoice) == get_args(manifest.KVFormat)
    assert get_args(choices.MethodChoice) == METHODS
    assert get_args(choices.PeerChoice) == get_args(Peer)


def shown_defaults(verb: str) -> dict[str, object]:
    command = typer.main.get_command(app).commands[verb]
    return {parameter.name: parameter.show_default for parameter in command.params}


PLANNED = ("backend", "bits", "group", "head_bits", "vision_bits", "embedding_bits", "kv", "context", "chunk")


def test_help_shows_the_recipes_defaults() -> None:
    shown, recipe = shown_defaults("export"), Recipe()
    assert (recipe.context, shown["context"]) == (None, "2048, or less if trained for less")
    assert shown["backend"] == ",".join(recipe.backends)
    for name in ("method", "bits", "group", "vision_bits", "embedding_bits", "kv", "chunk", "max_portable"):
        assert shown[name] == str(getattr(recipe, name))
    assert {name: shown_defaults("plan")[name] for name in PLANNED} == {name: shown[name] for name in PLANNED}
    assert shown["gate_accuracy"] == str(Gate.accuracy)
    assert inspect.signature(handlens.export).parameters["gate_accuracy"].default == Gate.accuracy


def test_help_shows_the_options_default() -> None:
    command = typer.main.get_command(app).commands["run"]
    (default,) = [parameter.default for parameter in command.params if parameter.name == "max_tokens"]
    assert default == Options().max_tokens


def test_backends_are_names_in_order_each_once() -> None:
    assert backends("onnx, executorch,onnx") == ("onnx", "executorch")
    for wrong in ("", "onnx,", "qnn", "onnx executorch"):
        with pytest.raises(typer.BadParameter, match="executorch, onnx"):
            backends(wrong)


def test_without_the_workstation_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_api, "WORKSTATION", ("a_package_that_nobody_has",))
    for call in (
        lambda: handlens.export(tmp_path, tmp_path / "bundle"),
        lambda: handlens.check(tmp_path, tmp_path),
        lambda: handlens.init("bluelm-v-nano", tmp_path),
        lambda: handlens.plan(tmp_path),
        lambda: handlens.calibrate(),
    ):
        with pytest.raises(HandLensError, match=r"a_package_that_nobody_has.*pip install 'handlens\[export\]'"):
            call()


def test_public_functions_are_typed() -> None:
    for name in ("bench", "calibrate", "check", "evaluate", "export", "init", "load", "perplexity", "plan"):
        function = getattr(handlens, name)
        assert set(inspect.signature(function).parameters) | {"return"} == set(function.__annotations__)
    assert get_type_hints(Options)["max_tokens"] is int
