"""A stack of like layers, traced as three and unrolled: ExecuTorch's passes take half a minute a layer (LOG.md).

    layers 0 … n-1 ─shorten─▶ 0, 1, n-1 ─trace, decompose, to edge─▶ program of three ─Unroll─▶ layers 0 … n-1

Every node belongs to the last layer that it depends on. Those of the middle layer are copied for each layer left out,
around that layer's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain

from executorch.exir.pass_base import ExportedProgramPassBase, ExportedProgramPassResult
from torch import Tensor, nn
from torch._functorch._aot_autograd.subclass_parametrization import unwrap_tensor_subclass_parameters
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputSpec, OutputSpec, TensorArgument
from torch.fx import Node, map_arg

TRACED = 3
"""The first layer, the one that is copied, the last."""
NONE = -1
"""The layer of what belongs to none."""
Twins = dict[Node, Node]
"""From the nodes of the traced layer, and what it takes from the one before, to those of a copy."""


def shorten(owner: nn.Module, path: str) -> list[ExportedProgramPassBase]:
    """Leave three of `owner.layers` where all but the first are alike, and give the passes that bring the others back.

    `path`: the stack's name in the program, such as "decoder.layers". Layers that differ are all left.
    """
    layers = owner.layers
    assert isinstance(layers, nn.ModuleList)
    if len(layers) <= TRACED or any(_form(layer) != _form(layers[1]) for layer in layers[2:]):
        return []
    owner.layers = nn.ModuleList([layers[0], layers[1], layers[-1]])
    return [Unroll(path, list(layers))]


class Unroll(ExportedProgramPassBase):  # type: ignore[misc]
    """From a program of three layers to one of all: 1 is copied, what was traced as 2 becomes the last."""

    def __init__(self, path: str, layers: list[nn.Module]) -> None:
        self.path, self.layers = path, layers

    def call(self, exported_program: ExportedProgram) -> ExportedProgramPassResult:
        """Changes the graph in place. Raises ValueError where the layers do not follow one another."""
        return ExportedProgramPassResult(_Unrolling(exported_program, self.path, self.layers).program(), True)


class _Unrolling:
    """One program on its way. Inputs stay in the order of layers, as do outputs."""

    def __init__(self, source: ExportedProgram, path: str, layers: list[nn.Module]) -> None:
        self.source, self.path, self.layers, self.last = source, path, layers, len(layers) - 1
        self.graph = source.graph_module.graph
        signature = source.graph_signature
        self.targets = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target}
        level = _levels(self.graph.nodes, {name: self._layer(target) for name, target in self.targets.items()})
        self.inputs, self.body, self.after = (
            [node for node in self.graph.nodes if level.get(node) == layer and node.op == kind]
            for layer, kind in ((1, "placeholder"), (1, "call_function"), (2, "call_function"))
        )
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        if not self.body or not self.after or order[self.body[-1]] > order[self.after[0]]:
            raise ValueError(f"{path}.2 begins before {path}.1 ends")
        self.specs = {spec.arg.name: spec for spec in signature.input_specs}
        self.ends = list(signature.output_specs)
        self.results = list(self.graph.output_node().args[0])
        self.state, self.constants = dict(source.state_dict), dict(source.constants)

    def program(self) -> ExportedProgram:
        """The program of all layers."""
        carried = _carried(self.body, self.after)
        self._rename_last()
        twins: Twins = {node: node for node in (*self.inputs, *self.body)}
        for index in range(2, self.last):
            before, twins = twins, {node: twins[twin] for node, twin in carried.items()}
            self._copy_inputs(index, before, twins)
            self._copy_body(before, twins)
            self._copy_results(index, before, twins)
        for node in self.after:
            node.args = map_arg(node.args, lambda old: twins.get(old, old))
            node.kwargs = map_arg(node.kwargs, lambda old: twins.get(old, old))
        self.graph.output_node().args = (tuple(self.results),)
        self.graph.lint()
        self.source.graph_module.recompile()
        ordered = [self.specs[node.name] for node in self.graph.nodes if node.op == "placeholder"]
        return ExportedProgram(
            root=self.source.graph_module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(ordered, self.ends),
            state_dict=self.state,
            range_constraints=self.source.range_constraints,
            module_call_graph=self.source.module_call_graph,
            example_inputs=self.source.example_inputs,
            constants=self.constants,
            verifiers=self.source.verifiers,
        )

    def _rename_last(self) -> None:
        for store in (self.state, self.constants):
            for name in [name for name in store if self._layer(name) == 2]:
                store[self._moved(name, self.last)] = store.pop(name)
        for node in self.graph.nodes:
            target = self.targets.get(node.name)
            if target is not None and self._layer(target) == 2:
                spec = self.specs.pop(node.name)
                _name(node, node.name, self.last)
                self.specs[node.name] = _spec(node, spec, self._moved(target, self.last))
        for place, end in enumerate(self.ends):
            if self._layer(end.target) == 2:
                self.ends[place] = OutputSpec(end.kind, end.arg, self._moved(end.target, self.last))

    def _copy_inputs(self, index: int, before: Twins, twins: Twins) -> None:
        """A layer's own weights and buffers; constants that only a layer uses are the same tensors under a new name."""
        tensors, at = _tensors(self.layers[index]), before[self.inputs[-1]]
        for node in self.inputs:
            target = self.targets[node.name]
            own = self._layer(target) == 1
            moved = self._moved(target, index) if own else f"{target}_{index}"
            store = self.state if target in self.state else self.constants
            store[moved] = tensors[moved.removeprefix(f"{self.path}.{index}.")] if own else store[target]
            with self.graph.inserting_after(at):
                at = self.graph.node_copy(node)
            _name(at, node.name if own else at.name, index if own else None)
            self.specs[at.name] = _spec(at, self.specs[node.name], moved)
            twins[node] = at

    def _copy_body(self, before: Twins, twins: Twins) -> None:
        at = before[self.body[-1]]
        for node in self.body:
            with self.graph.inserting_after(at):
                at = self.graph.node_copy(node, lambda old: twins.get(old, old))
            twins[node] = at

    def _copy_results(self, index: int, before: Twins, twins: Twins) -> None:
        """Buffers that a layer changes are outputs of the program."""
        changed = [(end, node) for end, node in zip(self.ends, self.results, strict=True) if node in self.body]
        if not changed:
            return
        place = 1 + self.results.index(before[changed[-1][1]])
        self.results[place:place] = [twins[node] for _, node in changed]
        self.ends[place:place] = [
            OutputSpec(end.kind, TensorArgument(twins[node].name), self._moved(end.target, index))
            for end, node in changed
        ]

    def _layer(self, target: str | None) -> int:
        """Of a tensor's name."""
        found = re.match(re.escape(self.path) + r"\.(\d+)\.", target or "")
        return int(found[1]) if found else NONE

    def _moved(self, target: str | None, layer: int) -> str:
        """A layer's tensor's name in another layer."""
        assert target is not None
        return f"{self.path}.{layer}." + target.removeprefix(f"{self.path}.").split(".", 1)[1]


def _form(layer: nn.Module) -> list[object]:
    """All of a layer that a trace can depend on: modules and their settings, shapes and types of tensors."""
    found: list[object] = []
    for name, module in layer.named_modules():
        settings = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        found.append((name, type(module), {k: v for k, v in settings.items() if not isinstance(v, Tensor)}))
    for name, tensor in chain(layer.named_parameters(), layer.named_buffers()):
        found.append((name, type(tensor), tensor.shape, tensor.dtype))
        if hasattr(tensor, "__tensor_flatten__"):  # a packed weight
            parts, about = tensor.__tensor_flatten__()
            found.append((about, [(getattr(tensor, part).shape, getattr(tensor, part).dtype) for part in parts]))
    return found


def _levels(nodes: Iterable[Node], of_tensor: Mapping[str, int]) -> dict[Node, int]:
    """The last layer that each node depends on; of what depends on none, the one layer that uses it, if it is one."""
    level: dict[Node, int] = {}
    for node in nodes:
        if node.op == "placeholder":
            level[node] = of_tensor.get(node.name, NONE)
        elif node.op != "output":
            level[node] = max((level[one] for one in node.all_input_nodes), default=NONE)
    for node in reversed(list(level)):
        users = {level.get(user, NONE) for user in node.users}
        if level[node] == NONE and len(users) == 1 and (node.op != "placeholder" or node.name in of_tensor):
            level[node] = users.pop()
    return level


def _carried(body: list[Node], after: list[Node]) -> Twins:
    """For each node of the layer before that the body uses, the body's own that the next layer uses in its place."""
    inside, carried = set(body), {}
    for node, next_one in zip(body, after, strict=False):
        if node.target != next_one.target:
            break  # the last layer may end otherwise
        for old, new in zip(node.all_input_nodes, next_one.all_input_nodes, strict=True):
            if new in inside and old not in inside:
                carried[old] = new
    return carried


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """By name, as torch.export names them: a packed weight is its parts."""
    unwrap_tensor_subclass_parameters(layer)
    return dict(chain(layer.named_parameters(), layer.named_buffers()))


def _name(placeholder: Node, like: str, layer: int | None) -> None:
    """Name an input, and the argument that it is in the graph's code: as another layer's where a layer is given."""
    placeholder._rename(like if layer is None else re.sub(r"_layers_\d+_", f"_layers_{layer}_", like, count=1))
    placeholder.target = placeholder.name


def _spec(node: Node, like: InputSpec, target: str) -> InputSpec:
    return InputSpec(like.kind, TensorArgument(node.name), target, like.persistent)
