"""ExecuTorch's exporter packs weights from where they are, and is itself again afterwards."""

from __future__ import annotations

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.backend.canonical_partitioners import group_partitioner
from executorch.exir.backend.canonical_partitioners.group_partitioner import GroupBasedPartitioner
from torch.fx.passes.infra import partitioner
from torch.fx.passes.operator_support import create_op_support

from handlens_export.lower.executorch_memory import Dependencies, dependencies_as_bits, weights_shared


def program(seed: int = 0) -> torch.export.ExportedProgram:
    torch.manual_seed(seed)
    return torch.export.export(torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU()), (torch.zeros(1, 16),))


def lowered(exported: torch.export.ExportedProgram) -> bytes:
    buffer: bytes = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    return buffer


def test_a_partition_gets_a_graph_of_its_own_around_the_same_tensors(tmp_path):
    exported = program()
    with weights_shared(tmp_path):
        copied = XnnpackBackend.copy_exported_program_for_preprocess(exported, [])
    assert copied.graph_module is not exported.graph_module and copied.state_dict is not exported.state_dict
    for name, tensor in exported.state_dict.items():
        assert copied.state_dict[name].data_ptr() == tensor.data_ptr()


def test_weights_are_not_copied_and_the_program_is_the_plain_exporters(monkeypatch, tmp_path):
    """The hook is one of ExecuTorch's own, which another version may not call."""
    copied, gone = [], []
    copy = torch.nn.Parameter.__deepcopy__
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(1) or copy(self, memo))
    monkeypatch.setattr("handlens_export.lower.executorch_memory.let_go", lambda: gone.append(1))
    plain = lowered(program())
    assert copied and not gone
    copied.clear()
    with weights_shared(tmp_path):
        assert lowered(program()) == plain
    assert not copied and gone


def test_the_exporter_is_itself_again_also_after_a_failure(tmp_path):
    preprocess, copied = XnnpackBackend.preprocess, XnnpackBackend.copy_exported_program_for_preprocess.__func__
    with pytest.raises(KeyError), weights_shared(tmp_path):
        raise KeyError
    assert XnnpackBackend.preprocess is preprocess
    assert XnnpackBackend.copy_exported_program_for_preprocess.__func__ is copied


def test_large_packed_weights_wait_on_disk(tmp_path):
    """And the program that is written is the same to the byte."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128)
    exported = torch.export.export(layer, (torch.zeros(1, 256),))
    plain = lowered(exported)
    with weights_shared(tmp_path):
        assert lowered(torch.export.export(layer, (torch.zeros(1, 256),))) == plain
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 256 * 128 * 4


def test_dependencies_are_those_of_torchs_own_partitioner():
    """And its partitioner is itself again, also after a failure."""
    own = partitioner._DependencyViewer

    class Forked(torch.nn.Module):
        def forward(self, x):
            a, b = x.split(2)
            return (a + b).relu() + a, b * 2

    module = torch.export.export(Forked(), (torch.zeros(4),)).graph_module
    ours, theirs = Dependencies(module), own(module)
    for node in module.graph.nodes:
        assert set(ours.downstreams_of(node)) == theirs.downstreams_of(node)
        assert [one in ours.downstreams_of(node) for one in module.graph.nodes] == [
            one in theirs.downstreams_of(node) for one in module.graph.nodes
        ]
        assert len(ours.downstreams_of(node)) == len(theirs.downstreams_of(node))
    with dependencies_as_bits():
        assert partitioner._DependencyViewer is group_partitioner._DependencyViewer is Dependencies
    with pytest.raises(KeyError), dependencies_as_bits():
        raise KeyError
    assert partitioner._DependencyViewer is own


def test_partitions_merge_where_executorchs_own_partitioner_merges_them(monkeypatch):
    """Some pairs may, some would close a circle; what was merged before counts."""

    class Woven(torch.nn.Module):
        def forward(self, x):
            kept = [x]
            for index in range(8):  # an addition may be delegated, a sine may not
                kept.append((kept[-1] + kept[index // 2]).sin() if index % 3 else kept[-1] + kept[index // 3])
            return tuple(kept)

    def partitions() -> tuple[list[set[str]], list[bool]]:
        module = torch.export.export(Woven(), (torch.zeros(4),)).run_decompositions({}).graph_module
        support = create_op_support(lambda _, node: node.target is torch.ops.aten.add.Tensor)
        nodes = [[node] for node in module.graph.nodes if node.target is torch.ops.aten.add.Tensor]
        owner = GroupBasedPartitioner(module, support, allows_single_node_partition=True, node_groups=nodes)
        decided: list[bool] = []
        asked = owner._can_merge_partitions
        monkeypatch.setattr(owner, "_can_merge_partitions", lambda *pair: decided.append(asked(*pair)) or decided[-1])
        return [{node.name for node in found.nodes} for found in owner.propose_partitions()], decided

    theirs, their_decisions = partitions()
    with dependencies_as_bits():
        ours, our_decisions = partitions()
    assert (ours, our_decisions) == (theirs, their_decisions)
    assert len(ours) > 1 and set(our_decisions) == {True, False}
