"""Which stacks are traced as three layers, and that ExecuTorch's exporter is itself again afterwards.

That unrolled programs answer as they should is test_lower_executorch.py's: its network has four layers in each stack.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import lowered_backend_module, to_edge_transform_and_lower
from tiny_networks import network_of, quantize_all
from torch.export import Dim
from torch.fx.passes.tools_common import legalize_graph

from handlens_export.lower.executorch_layers import shorten
from handlens_export.lower.executorch_leaves import swap
from handlens_export.lower.executorch_partitions import delegate_calls, passes_remembered, shapes_known, sorted_in_place
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
    def theirs() -> tuple[object, ...]:
        return XNNPACKPassManager.transform, lowered_backend_module.legalize_graph, delegate_calls.call_delegate_cpu

    before = theirs()
    with passes_remembered(), sorted_in_place(), shapes_known():
        assert not any(one is other for one, other in zip(theirs(), before, strict=True))
    with pytest.raises(KeyError), passes_remembered(), sorted_in_place(), shapes_known():
        raise KeyError
    assert all(one is other for one, other in zip(theirs(), before, strict=True))


class Forked(torch.nn.Module):
    """A size that is known only while running, and checked."""

    def forward(self, x, start):
        begin = start[0].item()
        torch._check(begin >= 0)
        torch._check(begin + 2 <= 6)
        part = x.narrow(0, begin, 2)
        return (part * 2 + x.sum()).relu(), x.cos() + part.sum()


def test_a_graph_is_sorted_as_torch_sorts_it():
    def shuffled() -> torch.fx.GraphModule:
        module = torch.export.export(Forked(), (torch.zeros(6), torch.zeros(1, dtype=torch.int64))).graph_module
        nodes = list(module.graph.nodes)
        work = [node for node in nodes if node.op == "call_function"]
        for before, after in pairwise([nodes[1], *random.Random(0).sample(work, len(work))]):
            before.append(after)
        return module

    def names(module: torch.fx.GraphModule) -> list[str]:
        return [node.name for node in module.graph.nodes]

    ours, theirs = shuffled(), shuffled()
    assert names(legalize_graph(theirs)) != names(ours)
    with sorted_in_place():
        lowered_backend_module.legalize_graph(ours)
    assert names(ours) == names(theirs)
    ours.graph.lint()


def test_a_circle_is_refused():
    module = torch.fx.symbolic_trace(lambda x: x.relu().cos())
    relu, cos = [node for node in module.graph.nodes if node.op == "call_method"]
    relu.replace_input_with(relu.args[0], cos)
    with sorted_in_place(), pytest.raises(RuntimeError, match="has a cycle through 3 nodes"):
        lowered_backend_module.legalize_graph(module)


def test_partitions_are_not_run_to_learn_their_shapes(monkeypatch):
    """And the program is the plain exporter's."""
    rows = Dim("rows", min=1, max=8)

    def lowered() -> bytes:
        torch.manual_seed(0)
        stack = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 8))
        exported = torch.export.export(stack, (torch.zeros(2, 16),), dynamic_shapes=({0: rows},))
        return to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer

    ran: list[object] = []
    run = delegate_calls.call_delegate_cpu
    monkeypatch.setattr(delegate_calls, "call_delegate_cpu", lambda *call: ran.append(call) or run(*call))
    plain = lowered()
    assert ran
    ran.clear()
    with shapes_known():
        assert lowered() == plain
    assert not ran
