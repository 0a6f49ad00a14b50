"""Work that ExecuTorch does for every partition, done once: a layer's differ from the next layer's in weights only.

XNNPACK's passes trace a partition anew a dozen times, whatever its weights are. After cutting out a partition, the
whole graph is copied to sort it, and its Python code is made anew, which nobody runs: both grow with the square of the
layers. And each later pass over the program runs every partition on tensors without content, to learn shapes that it
says itself.
"""

from __future__ import annotations

import importlib
import operator
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.utils._pytree as pytree
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.exir import lowered_backend_module
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import GraphModule, Node

# Imported by name: the package has an operator of the module's name.
delegate_calls: Any = importlib.import_module("torch._higher_order_ops.executorch_call_delegate")

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
def sorted_in_place() -> Iterator[None]:
    """While the block runs, cutting out a partition moves the graph's nodes into order, and makes no code for it; what
    runs a graph next interprets its nodes, and what changes it makes the code anew.
    """
    legalize = lowered_backend_module.legalize_graph
    lowered_backend_module.legalize_graph = _sort
    try:
        yield
    finally:
        lowered_backend_module.legalize_graph = legalize


FIRST = {
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod),
    *(operator.le, operator.lt, operator.ge, operator.gt, operator.eq, operator.ne),
    *(torch.ops.aten.sym_constrain_range.default, torch.ops.aten.sym_constrain_range_for_size.default),
    *(torch.ops.aten._assert_async.msg, torch.ops.aten._assert_scalar.default, torch.ops.aten.scalar_tensor.default),
}
"""What checks sizes that are known only while running comes before what uses them, as in torch's `legalize_graph`."""


def _sort(module: GraphModule) -> GraphModule:
    """Put nodes behind what they depend on, by the rule of torch's `legalize_graph`. RuntimeError at a cycle."""
    nodes = list(module.graph.nodes)
    waiting = {node: len(node.all_input_nodes) for node in nodes}
    ready = deque(node for node in nodes if waiting[node] == 0)
    order: list[Node] = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for user in node.users:
            waiting[user] -= 1
            if waiting[user] == 0 and user.op == "call_function" and user.target in FIRST:
                ready.appendleft(user)
            elif waiting[user] == 0:
                ready.append(user)
    if len(order) < len(nodes):
        raise RuntimeError(f"the graph has a cycle through {sum(count > 0 for count in waiting.values())} nodes")
    if order and order[0] is not nodes[0]:
        nodes[0].prepend(order[0])
    for before, after in pairwise(order):
        if before.next is not after:
            before.append(after)
    return module


@contextmanager
def shapes_known() -> Iterator[None]:
    """While the block runs, a partition called with the shapes that it was cut out with answers from its own graph."""
    run = delegate_calls.call_delegate_cpu

    def known(partition: lowered_backend_module.LoweredBackendModule, *inputs: Any) -> Any:
        outputs = _outputs(partition.original_module, inputs)
        return run(partition, *inputs) if outputs is None else outputs

    delegate_calls.call_delegate_cpu = known
    try:
        yield
    finally:
        delegate_calls.call_delegate_cpu = run


def _outputs(program: ExportedProgram, inputs: tuple[Any, ...]) -> Any:
    """A partition's outputs without content; None where only running it can tell."""
    signature = program.graph_signature
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    expected = [values.get(str(name)) for name in signature.user_inputs]
    fakes = [value for value in (*inputs, *expected) if isinstance(value, Tensor)]
    modes = {value.fake_mode if isinstance(value, FakeTensor) else None for value in fakes}
    # Symbols of another trace may be called alike.
    if len({id(mode and mode.shape_env) for mode in modes}) != 1 or None in modes:
        return None
    if [_shapes(value) for value in inputs] != [_shapes(value) for value in expected]:
        return None
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        return None
    made = [values.get(str(name)) for name in signature.user_outputs]
    told = [value for value in made if isinstance(value, FakeTensor)]
    if len(told) < len(made):
        return None
    mode = next(value.fake_mode for value in inputs if isinstance(value, FakeTensor))
    with mode:
        fresh = [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device) for v in told]
    return pytree.tree_unflatten(fresh, program.call_spec.out_spec)


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
