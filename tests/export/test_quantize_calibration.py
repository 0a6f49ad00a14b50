"""The prompts that static scales come from: of several kinds, with pictures, and no longer than the context."""

from __future__ import annotations

import pytest
import torch

from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.quantize.calibration import PICTURES, TEXTS, calibration_rows
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
