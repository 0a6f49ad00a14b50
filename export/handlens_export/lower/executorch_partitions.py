"""Work that ExecuTorch does for every partition, done once: a layer's differ from the next layer's in weights only.

XNNPACK's passes trace a partition anew a dozen times, whatever its weights are: a third of an export. After cutting out
a partition, the whole graph's Python code is made anew, which nobody runs: it grows with the square of the layers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.exir import lowered_backend_module
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

FEW = 8
"""Elements up to which a constant counts by its values: passes look into scalars, never into weights."""


@dataclass(frozen=True)
class _Kept:
    """What the passes made of a partition, and which of the partition's inputs each tensor was."""

    program: ExportedProgram
    places: dict[str, int]

    def around(self, other: ExportedProgram) -> ExportedProgram:
        """The same of a partition of the same form, around its tensors."""
        held = [_tensor(other, spec.target) for spec in other.graph_signature.input_specs]
        tensors: dict[str, Any] = {name: held[place] for name, place in self.places.items()}
        made = self.program
        return ExportedProgram(
            root=made.graph_module,
            graph=made.graph,
            graph_signature=made.graph_signature,
            state_dict={name: tensors.get(name, tensor) for name, tensor in made.state_dict.items()},
            range_constraints=made.range_constraints,
            module_call_graph=made.module_call_graph,
            example_inputs=made.example_inputs,
            constants={name: tensors.get(name, value) for name, value in made.constants.items()},
            verifiers=made.verifiers,
        )


@contextmanager
def passes_remembered() -> Iterator[None]:
    """While the block runs, XNNPACK's exporter sends one partition of each form through its passes."""
    transform = XNNPACKPassManager.transform
    kept: dict[Hashable, _Kept | None] = {}

    def remembered(manager: XNNPACKPassManager) -> ExportedProgram:
        before = manager.exported_program
        form = _form(before)
        known = kept.get(form)
        if known is not None:
            return known.around(before)
        inputs = [(spec.target, _tensor(before, spec.target)) for spec in before.graph_signature.input_specs]
        after: ExportedProgram = transform(manager)
        if form not in kept:
            kept[form] = _keep(after, inputs)
        return after

    XNNPACKPassManager.transform = remembered
    try:
        yield
    finally:
        XNNPACKPassManager.transform = transform


@contextmanager
def code_deferred() -> Iterator[None]:
    """While the block runs, cutting out a partition sorts the graph but makes no code for it; what runs a graph next
    interprets its nodes, and what changes it makes the code anew.
    """
    legalize = lowered_backend_module.legalize_graph

    def sorted_only(module: GraphModule) -> GraphModule:
        own: Any = type(module)  # each graph module has a class of its own
        own.recompile = lambda _module: None
        try:
            legalize(module)
            return module
        finally:
            del own.recompile

    lowered_backend_module.legalize_graph = sorted_only
    try:
        yield
    finally:
        lowered_backend_module.legalize_graph = legalize


def _keep(after: ExportedProgram, inputs: list[tuple[str | None, Tensor | None]]) -> _Kept | None:
    """None where a pass made a tensor of its own, which may have come from weights."""
    places: dict[str, int] = {}
    for spec in after.graph_signature.input_specs:
        if spec.target is None:
            continue
        tensor = _tensor(after, spec.target)
        found = [place for place, (name, one) in enumerate(inputs) if name == spec.target and one is tensor]
        if not found:
            return None
        places[spec.target] = found[0]
    # The tensors of this partition are not to outlive it.
    stripped = _Kept(after, places).around(after)
    return _Kept(stripped, places)


def _tensor(program: ExportedProgram, target: str | None) -> Tensor | None:
    if target is None:
        return None
    value: Tensor | None = program.state_dict.get(target)
    if value is None:
        value = program.constants.get(target)
    return value


def _form(program: ExportedProgram) -> Hashable:
    """All of a program but its names and weights."""
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    nodes = tuple(
        (
            node.op,
            "" if node.op == "placeholder" else str(node.target),
            str(_numbered(node.args, order)),
            str(_numbered(node.kwargs, order)),
            str(_shapes(node.meta.get("val"))),
        )
        for node in program.graph.nodes
    )
    inputs: list[Hashable] = []
    for spec in program.graph_signature.input_specs:
        tensor = _tensor(program, spec.target)
        if isinstance(tensor, Tensor):
            values = tuple(tensor.flatten().tolist()) if tensor.numel() <= FEW else ()
            inputs.append((spec.kind.name, tuple(tensor.shape), tensor.dtype, values))
        else:
            inputs.append((spec.kind.name, (), None, ()))
    outputs = tuple((spec.kind.name, spec.target is None) for spec in program.graph_signature.output_specs)
    return nodes, tuple(inputs), outputs


def _numbered(value: Any, order: dict[Node, int]) -> Any:
    return torch.fx.map_arg(value, lambda node: f"%{order[node]}")


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(str(size) for size in value.shape), value.dtype, tuple(str(step) for step in value.stride())
    if isinstance(value, list | tuple):
        return tuple(_shapes(one) for one in value)
    return str(value)
