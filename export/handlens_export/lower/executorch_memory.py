"""Hold ExecuTorch's lowering to one copy of the weights, the packed one, and its partitioner to little beside them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir.backend.canonical_partitioners import group_partitioner
from executorch.exir.backend.canonical_partitioners.group_partitioner import GroupBasedPartitioner
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.infra import partitioner
from torch.fx.passes.infra.partitioner import Partition
from torch.fx.passes.utils.fuser_utils import validate_partition

from handlens_export.lower.executorch_program import on_disk
from handlens_export.stage_cache.tensor_file import let_go


@contextmanager
def weights_shared(folder: Path) -> Iterator[None]:
    """While the block runs, XNNPACK's exporter packs weights from where they are, and what it packed goes to `folder`.

    Before it packs, ExecuTorch copies every partition, all of them at once, in case a backend changes a graph; its own
    hook for that is given a copy of the graph around the same tensors, as ExecuTorch's CUDA backend does. Pages of
    mapped weights go after each partition. In bytes at the peak, with weights unpacked to a byte: from packed + weights
    twice to one partition.
    """
    preprocess = XnnpackBackend.preprocess

    def copied(_cls: type, program: ExportedProgram, _specs: list[Any]) -> ExportedProgram:
        shared = (*program.state_dict.values(), *program.constants.values())
        return copy.deepcopy(program, {id(tensor): tensor for tensor in shared})

    def packed(program: ExportedProgram, specs: list[Any]) -> Any:
        result = preprocess(program, specs)
        if result.data_store_output is not None:
            on_disk(result.data_store_output, folder)
        let_go()
        return result

    XnnpackBackend.copy_exported_program_for_preprocess = classmethod(copied)
    XnnpackBackend.preprocess = staticmethod(packed)
    try:
        yield
    finally:
        del XnnpackBackend.copy_exported_program_for_preprocess  # its base class's again
        XnnpackBackend.preprocess = staticmethod(preprocess)


@contextmanager
def dependencies_as_bits() -> Iterator[None]:
    """While the block runs, partitioners keep what depends on a node as a bit for each node of the graph.

    Torch's and ExecuTorch's keep sets of nodes for every node: of 36 layers, 5,000 nodes, 2.2 GB each. Whether two
    partitions may become one is asked of every pair, a third of the time of such an export when asked node by node.
    """
    modules: tuple[Any, ...] = (partitioner, group_partitioner)
    viewers = {module: module._DependencyViewer for module in modules}
    mergeable = GroupBasedPartitioner._can_merge_partitions
    for module in viewers:
        module._DependencyViewer = Dependencies
    GroupBasedPartitioner._can_merge_partitions = _can_merge_partitions
    try:
        yield
    finally:
        for module, viewer in viewers.items():
            module._DependencyViewer = viewer
        GroupBasedPartitioner._can_merge_partitions = mergeable


def _can_merge_partitions(
    owner: GroupBasedPartitioner, first: int, second: int, partitions: Mapping[int, Partition]
) -> bool:
    """Whether no path leaves the two partitions and comes back."""
    dependencies: Dependencies = owner.dependency_viewer
    one, other = (dependencies.partition(key, partitions[key].nodes) for key in (first, second))
    both = one.nodes | other.nodes
    for place in _places((one.users | other.users) & ~both):
        if dependencies.bits[place] & both:
            return False
    together = [*partitions[first].nodes, *partitions[second].nodes]
    return bool(validate_partition(together))


@dataclass(frozen=True)
class _Partition:
    """A bit for each node of it, and for each node that uses one of them."""

    nodes: int
    users: int


class Dependencies:
    """What `torch.fx.passes.infra.partitioner` and ExecuTorch's `group_partitioner` ask of their own."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.nodes = list(graph_module.graph.nodes)
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.bits = [0] * len(self.nodes)
        self._partitions: dict[int, tuple[int, _Partition]] = {}
        """By number, with how many nodes it had: partitions only grow while they are merged."""
        for place in reversed(range(len(self.nodes))):
            for user in self.nodes[place].users:
                self.bits[place] |= self.bits[self.places[user]] | 1 << self.places[user]

    def downstreams_of(self, node: Node) -> Set[Node]:
        """All that depends on a node, the first in the graph first."""
        return _Nodes(self, self.bits[self.places[node]])

    def partition(self, number: int, nodes: Collection[Node]) -> _Partition:
        """The bits of one of the partitioner's partitions."""
        size, found = self._partitions.get(number, (0, None))
        if found is None or size != len(nodes):
            own = users = 0
            for node in nodes:
                own |= 1 << self.places[node]
                for user in node.users:
                    users |= 1 << self.places[user]
            found = _Partition(own, users)
            self._partitions[number] = len(nodes), found
        return found


class _Nodes(Set[Node]):
    def __init__(self, of: Dependencies, bits: int) -> None:
        self._of, self._bits = of, bits

    def __contains__(self, node: object) -> bool:
        place = self._of.places.get(node)
        return place is not None and bool(self._bits >> place & 1)

    def __iter__(self) -> Iterator[Node]:
        for place in _places(self._bits):
            yield self._of.nodes[place]

    def __len__(self) -> int:
        return self._bits.bit_count()


def _places(bits: int) -> Iterator[int]:
    """Of the bits that are set, the lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
