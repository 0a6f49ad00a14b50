"""A float network whose matrices stay in the checkpoint computes what one that holds them computes."""

from __future__ import annotations

import pytest
import torch

from handlens_export.checkpoint.read import read
from handlens_export.network.families import find
from handlens_export.network.load import Parameters, load
from handlens_export.network.mapped import MappedEmbedding, MappedLinear, float_network
from handlens_export.network.network import Network


@pytest.mark.parametrize("family", ["bluelm_v", "gemma", "qwen2", "paligemma"])
def test_held_and_mapped_are_the_same_network(tiny_checkpoint, tmp_path, family):
    checkpoint = read(tiny_checkpoint(family, tmp_path))
    parameters = Parameters(checkpoint, find(family), find(family).config(checkpoint.config))
    config = find(family).config(checkpoint.config)
    expected = Network(config, 40).eval()
    load(expected, checkpoint, find(family))
    held, mapped = (float_network(parameters, config, 40, most) for most in (10**9, 0))
    ids = torch.randint(0, config.decoder.vocab_size, (1, 9), generator=torch.Generator().manual_seed(0))
    for network in (held, mapped):
        assert torch.equal(network(ids), expected(ids))
        if config.vision is not None:
            size = config.vision.image_size
            tiles = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                assert torch.equal(network.encode(tiles)[0], expected.encode(tiles)[0])
    assert not any(isinstance(module, MappedLinear | MappedEmbedding) for module in held.modules())


def test_a_mapped_network_holds_no_matrix_but_the_convolution(tiny_checkpoint, tmp_path):
    checkpoint = read(tiny_checkpoint("bluelm_v", tmp_path))
    config = find("bluelm_v").config(checkpoint.config)
    network = float_network(Parameters(checkpoint, find("bluelm_v"), config), config, 40, held=0)
    held = {name for name, parameter in network.named_parameters() if parameter.dim() > 1}
    assert held == {"vision.patch_embedding.weight", "vision.position_embedding"}
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
