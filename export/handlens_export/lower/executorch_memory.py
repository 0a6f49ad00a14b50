"""Hold ExecuTorch's lowering to one copy of the weights, the packed one, and its partitioner to little beside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.infra import partitioner

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
    """While the block runs, torch's partitioner keeps what depends on a node as a bit for each node of the graph.

    It keeps a set of nodes for every node: of 36 layers, 5,000 nodes, 2.2 GB.
    """
    viewer = partitioner._DependencyViewer
    partitioner._DependencyViewer = Dependencies  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        partitioner._DependencyViewer = viewer  # type: ignore[misc]


class Dependencies:
    """What `torch.fx.passes.infra.partitioner` asks of its own."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.nodes = list(graph_module.graph.nodes)
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.bits = [0] * len(self.nodes)
        for place in reversed(range(len(self.nodes))):
            for user in self.nodes[place].users:
                self.bits[place] |= self.bits[self.places[user]] | 1 << self.places[user]

    def downstreams_of(self, node: Node) -> Set[Node]:
        """All that depends on a node, the first in the graph first."""
        return _Nodes(self, self.bits[self.places[node]])


class _Nodes(Set[Node]):
    def __init__(self, of: Dependencies, bits: int) -> None:
        self._of, self._bits = of, bits

    def __contains__(self, node: object) -> bool:
        place = self._of.places.get(node)
        return place is not None and bool(self._bits >> place & 1)

    def __iter__(self) -> Iterator[Node]:
        left = self._bits
        while left:
            lowest = left & -left
            yield self._of.nodes[lowest.bit_length() - 1]
            left ^= lowest

    def __len__(self) -> int:
        return self._bits.bit_count()
