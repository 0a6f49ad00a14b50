"""A network read and rounded matrix by matrix, and the account given of every part."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from handlens_export.checkpoint.read import read
from handlens_export.errors import CheckpointError
from handlens_export.network.families import find
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.quantize.formats import choose_format
from handlens_export.quantize.network import quantize_network
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear
from handlens_export.recipe import Recipe


def parameters_of(folder) -> Parameters:
    checkpoint = read(folder)
    family = find(checkpoint.config["model_type"])
    return Parameters(checkpoint, family, family.config(checkpoint.config))


def quantized(folder, recipe, progress=lambda share: None):
    parameters = parameters_of(folder)
    config = find(read(folder).config["model_type"]).config(read(folder).config)
    return *quantize_network(parameters, config, recipe, 32, progress), parameters


@pytest.fixture(scope="module")
def folders(tiny_checkpoint, tmp_path_factory):
    made = {}

    def folder(family, variant=0):
        key = (family, variant)
        if key not in made:
            made[key] = tiny_checkpoint(family, tmp_path_factory.mktemp(family), variant)
        return made[key]

    return folder


def test_every_matrix_is_rounded_in_its_parts_format(folders):
    network, parts, parameters = quantized(folders("bluelm_v"), Recipe(bits=4, group=64, vision_bits=8))
    assert set(parts) == {"vision", "projector", "decoder", "embedding", "head"}
    for path, module in network.named_modules():
        assert not isinstance(module, nn.Linear | nn.Embedding), f"{path} was left in float"
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            weight = parameters.read(f"{path}.weight")
            bits = 4 if path.startswith("decoder.layers") else 8
            expected = quantize(weight, *choose_format(weight.shape[1], bits, 64))
            assert torch.equal(module.quantized.values, expected.values), path
            assert torch.equal(module.quantized.scales, expected.scales), path
        if isinstance(module, QuantizedLinear) and module.bias is not None:
            assert torch.equal(module.bias, parameters.read(f"{path}.bias")), path


def test_what_is_no_matrix_stays_as_it_was(folders):
    network, _, parameters = quantized(folders("bluelm_v"), Recipe())
    for name, tensor in network.named_parameters():
        assert torch.equal(tensor, parameters.read(name)), name
        assert not tensor.is_meta


def test_thirty_two_bits_leave_the_whole_network_in_float(folders):
    recipe = Recipe(bits=32, head_bits=32, vision_bits=32, embedding_bits=32)
    network, parts, parameters = quantized(folders("bluelm_v"), recipe)
    assert {name for name, _ in network.named_parameters()} == set(parameters.shapes)
    assert all((part.bits, part.group, part.exceptions) == (32, None, ()) for part in parts.values())
    assert all(part.bytes == 4 * part.parameters for part in parts.values())


@pytest.mark.parametrize(("family", "variant"), [("llama", 0), ("qwen2", 0), ("gemma", 0), ("bluelm_v", 1)])
def test_parameters_are_those_of_the_network(folders, family, variant):
    _, parts, parameters = quantized(folders(family, variant), Recipe())
    total = sum(torch.Size(shape).numel() for shape in parameters.shapes.values())
    assert sum(part.parameters for part in parts.values()) == total


def test_bytes_are_those_of_the_leaves(folders):
    network, parts, _ = quantized(folders("bluelm_v", 1), Recipe(bits=2, backends=("onnx",), vision_bits=4))
    leaves = [m for m in network.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)]
    grids = sum(leaf.quantized.nbytes for leaf in leaves)
    biases = sum(leaf.bias.nbytes for leaf in leaves if isinstance(leaf, QuantizedLinear) and leaf.bias is not None)
    floats = sum(parameter.nbytes for parameter in network.parameters())
    assert sum(part.bytes for part in parts.values()) == grids + biases + floats


def test_rows_that_the_group_does_not_divide_are_listed(folders):
    _, parts, _ = quantized(folders("llama", 1), Recipe(group=64))
    listed = parts["decoder"].exceptions
    assert "2 x decoder.layers.*.mlp.down_proj 48x88: 8 bits, a scale per row, because 64 does not divide 88" in listed
    assert any("q_proj" in line and "48: 8 bits" in line for line in listed)
    assert parts["decoder"].group == 64 and parts["decoder"].bits == 4


def test_rows_that_take_smaller_groups_are_listed(folders):
    _, parts, _ = quantized(folders("llama", 0), Recipe(group=128))
    assert all("groups of 64, because 128 does not divide 64" in line for line in parts["decoder"].exceptions[:1])
    # 128 divides the feed-forward's row, so it is no exception.
    assert not any("down_proj" in line for line in parts["decoder"].exceptions)


def test_the_convolution_left_in_float_is_listed(folders):
    _, parts, _ = quantized(folders("bluelm_v"), Recipe())
    assert parts["vision"].exceptions == ("1 x patch_embedding 64x3x4x4: float, a convolution",)


def test_two_bits_are_said_to_be_asymmetric(folders):
    _, parts, _ = quantized(folders("llama"), Recipe(bits=2, backends=("onnx",)))
    assert not parts["decoder"].symmetric and parts["embedding"].symmetric


def test_a_tied_head_is_its_own_copy_and_counted(folders):
    network, parts, _ = quantized(folders("gemma"), Recipe(head_bits=4))
    head, table = network.decoder.head.quantized, network.decoder.embedding.table.quantized
    assert (head.bits, table.bits) == (4, 8)
    assert parts["head"].parameters == parts["embedding"].parameters > 0


def test_rotary_tables_reach_the_context(folders):
    network, _, _ = quantized(folders("llama"), Recipe())
    reference = Network(network.config, 32)
    torch.testing.assert_close(network.decoder.cos, reference.decoder.cos)
    torch.testing.assert_close(network.decoder.sin, reference.decoder.sin)


def test_progress_grows_to_the_whole(folders):
    shares = []
    quantized(folders("llama"), Recipe(), shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(tiny_checkpoint, tmp_path, value):
    folder = tiny_checkpoint("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .*not finite"):
        quantized(folder, Recipe())
