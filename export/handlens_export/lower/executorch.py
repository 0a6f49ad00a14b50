"""From the network to `model.pte`: the methods ExecuTorch's own runners load, delegated to XNNPACK."""

from __future__ import annotations

import operator
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.lowered_backend_module import LoweredBackendModule
from executorch.exir.passes import MemoryPlanningPass
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from handlens_export.lower.executorch_attention import FloatCache, causal_mask, lengths_delegated
from handlens_export.lower.executorch_layers import shorten
from handlens_export.lower.executorch_leaves import swap
from handlens_export.lower.executorch_memory import dependencies_as_bits, weights_shared
from handlens_export.lower.executorch_partitions import passes_remembered, shapes_known, sorted_in_place
from handlens_export.lower.executorch_program import Part
from handlens_export.lower.executorch_program import part as program_part
from handlens_export.lower.executorch_program import write as write_program
from handlens_export.lower.executorch_zipvl import Choosing, SparseCache
from handlens_export.lower.lowering import LoweringSpec, Progress
from handlens_export.network.attention import Step
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.network import Network
from handlens_runtime.manifest import BackendGraphs, Graph
from handlens_runtime.manifest import Tensor as TensorSpec

FILE = "executorch/model.pte"
PACKED = "executorch/packed"
DECODER, VISION = "decoder", "vision"
CONFIG = ExecutorchBackendConfig(
    extract_delegate_segments=True,
    # The runner binds its own input and output buffers: planning them inside would copy twice.
    memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=True),
)


class VisionMethod(nn.Module):
    """`vision_encoder`: tiles -> rows for the decoder, and the features before the projector (for `check`)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        # Not the network: what a method holds and does not use is written into the program too.
        self.vision, self.projector = network.vision, network.projector
        self.encode = network.encode

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, s, s) -> (n, tokens, width), (n, patches, vision width)."""
        return self.encode(tiles)


class DecoderMethod(nn.Module):
    """`text_decoder`: rows at a start position -> logits of the last row, (1, vocab_size).

    `forward` of a text-only program (`embeds`): token ids in place of rows.
    """

    positions: Tensor

    def __init__(self, network: Network, context: int, embeds: bool) -> None:
        super().__init__()
        self.decoder = network.decoder
        self.context, self.embeds = context, embeds
        self.register_buffer("positions", torch.arange(context, dtype=torch.float32), persistent=False)

    def forward(self, rows: Tensor, start: Tensor) -> Tensor:
        """(1, t, width), or (1, t) int64, and (1,) int64 -> (1, vocab_size)."""
        step = self._step(rows, start)
        config = self.decoder.config
        group, t = config.heads // config.kv_heads, rows.shape[1]
        mask = causal_mask(self.positions, step.position, t, group) if config.causal else None
        return self._logits(rows, replace(step, extra=mask))

    def _step(self, rows: Tensor, start: Tensor) -> Step:
        t, position = rows.shape[1], cast(int, start[0].item())
        torch._check(position >= 0)  # type: ignore[no-untyped-call]
        torch._check(position + t <= self.context)  # type: ignore[no-untyped-call]
        torch._check(position < self.context)  # type: ignore[no-untyped-call]
        return Step(position, self.decoder.cos.narrow(0, position, t), self.decoder.sin.narrow(0, position, t))

    def _logits(self, rows: Tensor, step: Step) -> Tensor:
        hidden = self.decoder(self.decoder.embedding(rows) if self.embeds else rows, step)
        logits: Tensor = self.decoder.head(hidden[:, -1])
        return logits


class SparseDecoderMethod(DecoderMethod):
    """The same with tokens chosen: also float32 (layers, t), 1 for the rows that each layer kept."""

    def forward(  # type: ignore[override]
        self, rows: Tensor, start: Tensor, tau: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`tau`, `lengths`: as in `Choosing`."""
        choosing = Choosing(tau, lengths, self.positions, torch.zeros(self.decoder.config.layers, rows.shape[1]))
        return self._logits(rows, replace(self._step(rows, start), extra=choosing)), choosing.kept


def parts(network: Network) -> tuple[str, ...]:
    """See `Lowering.parts`: the decoder first, which takes longest."""
    return (DECODER,) if network.vision is None else (DECODER, VISION)


def lower_part(part: str, network: Network, spec: LoweringSpec, folder: Path, progress: Progress) -> Part:
    """See `Lowering.lower_part`: its methods, packed weights in files below `folder` until `join`."""
    if part == DECODER and network.vision is not None:
        # The table is another method's: held here as well, it would be written twice.
        network.decoder.embedding = None  # type: ignore[assignment]
    network = reference(network, spec)
    passes: dict[str, list[Any]] = {}
    if part == DECODER:
        passes["forward" if network.vision is None else "text_decoder"] = shorten(network.decoder, "decoder.layers")
    elif network.vision is not None:
        passes["vision_encoder"] = shorten(network.vision, "vision.layers")
    programs = _trace(part, network, spec)
    progress(0.2)
    packed = folder / PACKED / part
    packed.mkdir(parents=True)
    thrifty = weights_shared(packed), dependencies_as_bits(), passes_remembered(), sorted_in_place(), shapes_known()
    with ExitStack() as work:
        for each in (*thrifty, lengths_delegated()):
            work.enter_context(each)
        edge = to_edge_transform_and_lower(
            programs,
            transform_passes={name: passes.get(name, []) for name in programs},
            partitioner={name: [XnnpackPartitioner()] for name in programs},
            compile_config=EdgeCompileConfig(
                _check_ir_validity=False, _core_aten_ops_exception_list=[torch.ops.aten.masked_select.default]
            ),
            constant_methods=_metadata(network, spec) if part == DECODER else None,
        )
    progress(0.9)
    graphs = {name: _graph(name, edge.exported_program(name)) for name in programs}
    with shapes_known():
        made = program_part(graphs, edge.to_executorch(CONFIG))
    progress(1.0)
    return made


def join(made: Sequence[Part], folder: Path) -> BackendGraphs:
    """See `Lowering.join`: folder/executorch/model.pte."""
    with (folder / FILE).open("wb") as file:
        write_program(made, CONFIG, file)
    shutil.rmtree(folder / PACKED)
    graphs = {name: graph for part in made for name, graph in part.graphs.items()}
    decoder = graphs.get("text_decoder") or graphs["forward"]
    return BackendGraphs(
        vision=graphs.get("vision_encoder"), embedding=graphs.get("token_embedding"), decoder=decoder, files=(FILE,)
    )


def reference(network: Network, spec: LoweringSpec) -> Network:
    """See `Lowering.reference`."""
    config = network.config.decoder
    swap(network, config, spec.context, spec.kv == "int8")
    if spec.sparsity is not None:
        for index, layer in enumerate(network.decoder.layers):
            attention = cast(DecoderLayer, layer).attention
            dense = cast(FloatCache, attention.cached)
            attention.cached = SparseCache(config, dense, spec.context, index, spec.sparsity)
    return network.eval()


def _trace(part: str, network: Network, spec: LoweringSpec) -> dict[str, ExportedProgram]:
    """One exported program per method of a part, with a dynamic token count."""
    tokens = Dim("tokens", min=1, max=spec.max_chunk)
    start, ids = torch.zeros(1, dtype=torch.int64), torch.zeros((1, 2), dtype=torch.int64)
    if network.vision is None or part == DECODER:
        text = network.vision is None
        name, rows = ("forward", ids) if text else ("text_decoder", torch.zeros(1, 2, network.config.decoder.width))
        module, inputs = DecoderMethod(network, spec.context, text), [rows, start]
        if spec.sparsity is not None:
            module = SparseDecoderMethod(network, spec.context, text)
            inputs += [torch.ones(1), torch.zeros(network.config.decoder.layers, dtype=torch.int64)]
        return {name: _export(module, tuple(inputs), ({1: tokens}, *(None for _ in inputs[1:])))}
    size = network.vision.config.image_size
    # One tile per call: XNNPACK plans activations for the largest batch, and on a CPU a batch of tiles gains nothing.
    return {
        "vision_encoder": _export(VisionMethod(network), (torch.zeros(1, 3, size, size),), None),
        "token_embedding": _export(network.decoder.embedding, (ids,), ({1: tokens},)),
    }


def _export(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic, strict=False)


def _metadata(network: Network, spec: LoweringSpec) -> dict[str, Any]:
    """The constant methods that ExecuTorch's runners ask for."""
    return {
        "get_bos_id": spec.bos_id if spec.bos_id is not None else -1,
        "get_eos_ids": list(spec.eos_ids),
        "get_max_seq_len": spec.max_chunk,
        "get_max_context_len": spec.context,
        "get_vocab_size": network.config.decoder.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def _graph(name: str, program: ExportedProgram) -> Graph:
    """What went to XNNPACK and what stayed on portable kernels."""
    delegated, portable = 0, Counter[str]()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            lowered = getattr(program.graph_module, node.target)
            if isinstance(lowered, LoweredBackendModule):
                delegated += sum(n.op == "call_function" for n in lowered.original_module.graph.nodes)
        elif node.op == "call_function" and _is_kernel(node):
            target = node.args[0] if "auto_functionalized" in str(node.target) else node.target
            portable[getattr(target, "__name__", str(target))] += 1
    return Graph(
        file=FILE,
        method=name,
        inputs=_specs(program, "input"),
        outputs=_specs(program, "output"),
        nodes=delegated + portable.total(),
        delegated=delegated,
        not_delegated=dict(sorted(portable.items())),
    )


def _is_kernel(node: torch.fx.Node) -> bool:
    """Whether a node is work for a portable kernel: a tensor comes out, and it is no delegate and no bookkeeping."""
    if "executorch_call_delegate" in str(node.target) or node.target is operator.getitem:
        return False
    return isinstance(node.meta.get("val"), (Tensor, tuple, list))


def _specs(program: ExportedProgram, side: str) -> tuple[TensorSpec, ...]:
    """Names, dtypes and shapes of a program's user inputs or outputs."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    names = program.graph_signature.user_inputs if side == "input" else program.graph_signature.user_outputs
    specs = []
    for name in names:
        value = values[str(name)]
        shape = tuple(d if isinstance(d, int) else "tokens" for d in value.shape)
        specs.append(TensorSpec(name=str(name), dtype=str(value.dtype).removeprefix("torch."), shape=shape))
    return tuple(specs)
