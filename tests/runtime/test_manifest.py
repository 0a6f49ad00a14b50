"""The golden manifest, which the Python and the Android readers share."""

import json
from pathlib import Path
from typing import get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from handlens_runtime.manifest import Manifest, Sparsity

GOLDEN = Path(__file__).parents[1] / "golden" / "manifest.json"


def models_in(annotation):
    """The schema's models that an annotation mentions."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def objects_with_models(value, model):
    """Every JSON object of the golden file, with the model that reads it."""
    yield value, model
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            found = value[name]
            several = found if isinstance(found, list) else [found]
            if isinstance(found, dict) and get_origin(field.annotation) is dict:
                several = list(found.values())
            for item in several:
                yield from objects_with_models(item, inner)


def test_golden_survives_a_round_trip():
    golden = json.loads(GOLDEN.read_text())
    parsed = Manifest.model_validate_json(GOLDEN.read_bytes())
    assert json.loads(parsed.model_dump_json()) == golden


def test_golden_writes_out_every_field_of_the_schema():
    checked = set()
    for value, model in objects_with_models(json.loads(GOLDEN.read_text()), Manifest):
        assert set(value) == set(model.model_fields), model.__name__
        checked.add(model.__name__)
    assert {"Manifest", "ImageRule", "Chat", "Graph", "Tensor", "FileEntry", "PartQuantization"} <= checked


def test_golden_shows_no_optional_field_as_absent_but_those_with_two_faces():
    golden = json.loads(GOLDEN.read_text())
    assert None not in {**golden, **golden["image"], **golden["chat"], **golden["sizes"]}.values()
    decoders = [backend["decoder"]["method"] for backend in golden["backends"].values()]
    assert None in decoders and "text_decoder" in decoders


def test_unknown_key_is_rejected_at_every_depth():
    for index, _ in enumerate(objects_with_models(json.loads(GOLDEN.read_text()), Manifest)):
        golden = json.loads(GOLDEN.read_text())
        value, model = list(objects_with_models(golden, Manifest))[index]
        value["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            Manifest.model_validate_json(json.dumps(golden))
        assert model  # the walk itself found something to damage


def test_unknown_format_version_is_rejected():
    golden = json.loads(GOLDEN.read_text())
    golden["format_version"] = 2
    with pytest.raises(ValidationError, match="format_version"):
        Manifest.model_validate(golden)


@pytest.mark.parametrize(("tau", "out"), [(0.975, True), (0.9999999, True), (0.99999999, False), (1.0, False)])
def test_a_tau_that_float32_makes_one_of_leaves_nothing_out(tau: float, out: bool) -> None:
    assert Sparsity(tau=tau, least_tokens=256).leaves_out is out
    assert bool(np.float32(tau) < 1) is out
