"""The prompts that static scales come from: of several kinds, with pictures, and no longer than the context."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.photographs import photographs
from handlens_export.quantize.calibration import OWN, PICTURES, ROWS, TEXTS, calibration_rows, scale_rows
from handlens_export.quantize.network import quantize_network
from handlens_export.recipe import Recipe
from handlens_runtime.tokenizer import Tokenizer


@pytest.fixture
def prompts(tiny_checkpoint, tmp_path):
    """Rows of each prompt of the set, for a family at a context, and the network that embedded them."""

    def of(family, context):
        folder, recipe = tiny_checkpoint(family, tmp_path / family), Recipe(context=context)
        planned = plan(read(folder), recipe)
        parameters = Parameters(planned.checkpoint, planned.family, planned.config)
        network, parts = quantize_network(parameters, planned.config, recipe, context, lambda share: None)
        tokenizer = Tokenizer(folder / "tokenizer.json")
        return list(calibration_rows(network, describe(planned, recipe, parts), tokenizer)), network

    return of


def test_a_network_that_sees_is_calibrated_on_pictures_too(prompts):
    rows, network = prompts("bluelm_v", 512)
    assert len(rows) == len(TEXTS) + PICTURES
    assert all(r.shape[0] == 1 and r.shape[2] == network.config.decoder.width for r in rows)
    # The same question, alone and with a picture: the picture's rows come on top, and two pictures differ.
    tokens = network.config.tokens_per_tile
    assert all(r.shape[1] >= rows[0].shape[1] + tokens for r in rows[-PICTURES:])
    a, b = (r[:, : rows[0].shape[1] + tokens] for r in rows[-2:])
    assert not torch.equal(a, b)


def test_the_caches_scales_are_measured_on_the_users_set_too(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint("bluelm_v", tmp_path / "tiny")
    planned = plan(read(folder), Recipe())
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    network, parts = quantize_network(parameters, planned.config, Recipe(), planned.context, lambda share: None)
    manifest, tokenizer = describe(planned, Recipe(), parts), Tokenizer(folder / "tokenizer.json")
    text, questions = tmp_path / "own.txt", tmp_path / "own.jsonl"
    text.write_text("One whale after another. " * 4000)
    shutil.copy(photographs()[0], tmp_path / "own.jpg")
    picture = {"image": "own.jpg", "question": "What?", "answer": "A cup", "kind": "word"}
    questions.write_text("\n".join(json.dumps(picture | {"question": f"What {n}?"}) for n in range(12)))
    built_in = list(scale_rows(None, network, manifest, tokenizer, planned.bos_id))
    for own in (text, questions):
        rows = list(scale_rows(own, network, manifest, tokenizer, planned.bos_id))
        assert len(rows) == len(built_in) + OWN
        assert all(torch.equal(a, b) for a, b in zip(rows, built_in, strict=False))
        assert all(1 < one.shape[1] <= ROWS for one in rows[-OWN:])
        assert not torch.equal(rows[-1][:, :40], rows[-2][:, :40]) or own == questions  # alike but for a word


def test_prompts_are_cut_to_the_context(prompts):
    rows, _ = prompts("llama", 40)
    assert len(rows) == len(TEXTS)
    assert max(r.shape[1] for r in rows) == 40


def test_no_more_tiles_are_encoded_than_the_rows_kept_need(prompts, monkeypatch):
    """Photographs have many tiles, and the encoder is what calibration would spend its time in."""
    encoded = []
    encode = Network.encode
    monkeypatch.setattr(Network, "encode", lambda self, tiles: encoded.append(len(tiles)) or encode(self, tiles))
    whole, network = prompts("bluelm_v", 512)
    per_tile = network.config.tokens_per_tile
    before = sum(encoded)
    monkeypatch.setattr("handlens_export.quantize.calibration.ROWS", per_tile + 4)
    encoded.clear()
    cut, _ = prompts("bluelm_v", 512)
    assert PICTURES <= sum(encoded) <= 2 * PICTURES < before
    for one, other in zip(cut, whole, strict=True):
        assert one.shape[1] == min(per_tile + 4, other.shape[1])
        torch.testing.assert_close(one, other[:, : one.shape[1]], rtol=0, atol=0)
