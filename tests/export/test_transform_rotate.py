"""A rotated network is the same network, for every family; and what it is for: outliers spread over all channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.quantize.formats import weigh
from handlens_export.quantize.rounding import quantize
from handlens_export.recipe import Recipe
from handlens_export.transform.rotate import Rotated, rotation

FAMILIES = ("bluelm_v", "llama", "qwen2", "gemma", "idefics3", "smolvlm", "paligemma")


def network_of(parameters: Parameters, config, kind: torch.dtype) -> Network:
    network = Network(config, 64).to(kind)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            turned = isinstance(parameters, Rotated)
            parameter.copy_(parameters.turned(name, kind) if turned else parameters.read(name))
    return network.eval()


@pytest.mark.parametrize("width", [64, 576, 96, 20])
def test_a_rotation_is_orthogonal_and_mixes_all_channels(width):
    turn = rotation(width, 0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(width).double(), rtol=0, atol=1e-12)
    assert float(turn.abs().max()) < 0.9
    assert torch.equal(turn, rotation(width, 0)) and not torch.equal(turn, rotation(width, 1))


@pytest.mark.parametrize(("kind", "most"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rotated_network_computes_the_same(family, variant, kind, most, tiny_checkpoint, tmp_path):
    planned = plan(read(tiny_checkpoint(family, tmp_path, variant)), Recipe())
    plain = Parameters(planned.checkpoint, planned.family, planned.config)
    turned = Rotated(plain)
    assert turned.shapes == plain.shapes
    before, after = (network_of(parameters, planned.config, kind) for parameters in (plain, turned))
    ids = torch.randint(planned.config.decoder.vocab_size, (1, 20))
    with torch.no_grad():
        rows = [network.decoder.embedding(ids) for network in (before, after)]
        if planned.config.vision is not None:
            side = planned.config.vision.image_size
            tile = torch.randn(1, 3, side, side, dtype=kind)
            rows = [
                torch.cat((network.encode(tile)[0], own), dim=1)
                for network, own in zip((before, after), rows, strict=True)
            ]
        out = [logits(network, own) for network, own in zip((before, after), rows, strict=True)]
    torch.testing.assert_close(out[1], out[0], rtol=0, atol=most * float(out[0].abs().max()))
    assert not torch.allclose(rows[0], rows[1], atol=1e-2)


def logits(network: Network, rows: Tensor) -> Tensor:
    return network.decoder.head(network.decoder(rows, network.decoder.eager_step(rows.shape[1], 0)))


def test_a_tied_head_is_a_matrix_of_its_own_once_rotated(tiny_checkpoint, tmp_path):
    planned = plan(read(tiny_checkpoint("gemma", tmp_path)), Recipe())
    assert planned.config.decoder.tied_head
    shapes = Parameters(planned.checkpoint, planned.family, planned.config).shapes
    plain, turned = (
        describe(planned, recipe, weigh(shapes, recipe)).sizes.parameters for recipe in (Recipe(), Recipe(rotate=True))
    )
    assert turned - plain == planned.config.decoder.vocab_size * planned.config.decoder.width


def test_outliers_planted_in_a_channel_cost_less_once_rotated():
    """Large models have a few channels many times the others' size."""
    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    weight[:, 5] *= 40
    turn = rotation(128, 0).float()

    def apart(matrix: Tensor) -> float:
        return float((quantize(matrix, 4, 32).dequantize() - matrix).square().mean())

    assert apart(weight @ turn) < 0.5 * apart(weight)


def test_a_rotation_is_in_the_key_of_every_stage(tiny_checkpoint, tmp_path):
    planned = plan(read(tiny_checkpoint("llama", tmp_path)), Recipe())
    plain = Parameters(planned.checkpoint, planned.family, planned.config)
    turned, other = Rotated(plain), Rotated(plain, seed=1)
    assert len({plain.settings, turned.settings, other.settings}) == 3
    name = "decoder.layers.0.attention.q_proj.weight"
    assert turned.digest(name) != plain.digest(name)  # it takes in the norm's weight
