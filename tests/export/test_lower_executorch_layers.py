"""Which stacks are traced as three layers, and that ExecuTorch's exporter is itself again afterwards.

That unrolled programs answer as they should is test_lower_executorch.py's: its network has four layers in each stack.
"""

from __future__ import annotations

import pytest
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.exir import lowered_backend_module
from tiny_networks import network_of, quantize_all

from handlens_export.lower.executorch_layers import shorten
from handlens_export.lower.executorch_leaves import swap
from handlens_export.lower.executorch_partitions import code_deferred, passes_remembered
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedLinear

LAYERS = 5


def test_layers_that_differ_are_all_traced():
    """Here one matrix of one layer has 8 bits; a stack of three has nothing to leave out."""
    network = network_of(layers=LAYERS)
    mixed = network.decoder.layers[3].mlp
    eight = QuantizedLinear(quantize(mixed.up_proj.weight, 8, 32), None)
    quantize_all(network, 4, 32, 8)
    mixed.up_proj = eight
    swap(network, network.decoder.config, 64, True)
    assert shorten(network.decoder, "decoder.layers") == [] and len(network.decoder.layers) == LAYERS
    del network.decoder.layers[3]
    assert len(shorten(network.decoder, "decoder.layers")) == 1 and len(network.decoder.layers) == 3
    assert shorten(network.decoder, "decoder.layers") == []


def test_the_exporter_is_itself_again_also_after_a_failure():
    transform, legalize = XNNPACKPassManager.transform, lowered_backend_module.legalize_graph
    with passes_remembered(), code_deferred():
        assert XNNPACKPassManager.transform is not transform and lowered_backend_module.legalize_graph is not legalize
    with pytest.raises(KeyError), passes_remembered(), code_deferred():
        raise KeyError
    assert XNNPACKPassManager.transform is transform and lowered_backend_module.legalize_graph is legalize
