"""Lowering to ONNX Runtime: vision.onnx, embedding.onnx and decoder.onnx, each with its memory-mapped data.

    tiles (n, 3, s, s)  ─▶ vision    ─▶ embeddings (n, tokens, width), features (n, patches, vision width)
    ids (1, t)          ─▶ embedding ─▶ rows (1, t, width)
    rows (1, t, width), position (1,), past_key_i, past_value_i
                        ─▶ decoder   ─▶ logits (1, vocabulary) of the last row, present_key_i, present_value_i

Past and present are whole buffers of `context` rows: bind the same memory to both and the program updates in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from handlens_export.errors import UnsupportedError
from handlens_export.lower.lowering import LoweringSpec, Progress
from handlens_export.lower.onnx_attention import Cache, GroupQueryAttention
from handlens_export.lower.onnx_file import contrib_nodes, float_linears, trace, write
from handlens_export.lower.onnx_leaves import swap_leaves
from handlens_export.network.attention import Step
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.network import Network
from handlens_runtime.manifest import BackendGraphs, Graph
from handlens_runtime.manifest import Tensor as Port

FOLDER = "onnx"


class EmbeddingProgram(nn.Module):
    """ids (1, t) -> rows (1, t, width)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.embedding = network.decoder.embedding

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        rows: Tensor = self.embedding(ids)
        return rows


class VisionProgram(nn.Module):
    """tiles (n, 3, s, s) -> embeddings (n, tokens, width), features (n, patches, vision width)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.vision, self.projector = network.vision, network.projector
        self.encode = network.encode

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.encode(tiles)


class DecoderProgram(nn.Module):
    """rows (1, t, width) from `position` on, and past buffers -> logits of the last row, and present buffers."""

    cos: Tensor
    sin: Tensor

    def __init__(self, network: Network, context: int) -> None:
        super().__init__()
        decoder = network.decoder
        self.layers, self.norm, self.head = decoder.layers, decoder.norm, decoder.head
        self.register_buffer("cos", decoder.cos[:context].clone())
        self.register_buffer("sin", decoder.sin[:context].clone())

    def leaves(self) -> list[GroupQueryAttention]:
        """The attention leaves, layer by layer."""
        return [cast(GroupQueryAttention, cast(DecoderLayer, layer).attention.cached) for layer in self.layers]

    def forward(self, rows: Tensor, position: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """`position` int32 (1,): of the first row. `past`: keys and values by turns, layer by layer."""
        t = rows.shape[1]
        total = position + t
        pairs = list(zip(past[::2], past[1::2], strict=True))
        cache = Cache(pairs, last=total - 1, total=total[0], cos=self.cos, sin=self.sin)
        at = torch.arange(t) + position
        step = Step(position, self.cos[at], self.sin[at], extra=cache)
        for layer in self.layers:
            rows = layer(rows, step)
        logits: Tensor = self.head(self.norm(rows[:, -1]))
        return (logits, *(buffer for pair in cache.present for buffer in pair))


class SparseDecoderProgram(DecoderProgram):
    """The same with tokens chosen: `tau` float32 (1,) and `lengths` int32 (layers,), rows in each layer's cache, come
    in; bool (layers, t) goes out, true for the rows that each layer kept.
    """

    def forward(  # type: ignore[override]
        self, rows: Tensor, position: Tensor, tau: Tensor, lengths: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """As `DecoderProgram.forward`; positions are those of the conversation, whatever was kept of it."""
        pairs = list(zip(past[::2], past[1::2], strict=True))
        at = torch.arange(rows.shape[1]) + position
        cache = Cache(pairs, position, position, self.cos, self.sin, at[None], tau, lengths)
        step = Step(position, self.cos[at], self.sin[at], extra=cache)
        for layer in self.layers:
            rows = layer(rows, step)
        logits: Tensor = self.head(self.norm(rows[:, -1]))
        return (logits, torch.stack(cache.kept), *(buffer for pair in cache.present for buffer in pair))


@dataclass(frozen=True)
class Program:
    """A program to trace: its module, its inputs with what varies in them, and its names."""

    name: str
    module: nn.Module
    example: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A program on disk."""

    name: str
    graph: Graph
    files: tuple[str, ...]
    """Relative to the bundle's folder."""


def embedding_program(network: Network, spec: LoweringSpec) -> Program:
    """The token embedding, for any number of ids up to the context."""
    tokens = Dim("tokens", min=1, max=spec.context)
    example = (torch.zeros(1, min(2, spec.context), dtype=torch.int64),)
    return Program("embedding", EmbeddingProgram(network), example, ({1: tokens},), ("ids",), ("rows",))


def vision_program(network: Network, spec: LoweringSpec) -> Program:
    """Encoder and projector, for 1 to `tile_batch` tiles."""
    assert network.config.vision is not None
    size = network.config.vision.image_size
    batch = {0: Dim("tiles", min=1, max=spec.tile_batch)} if spec.tile_batch > 1 else {}
    example = (torch.zeros(min(2, spec.tile_batch), 3, size, size),)
    return Program("vision", VisionProgram(network), example, (batch,), ("tiles",), ("embeddings", "features"))


def decoder_program(network: Network, spec: LoweringSpec) -> Program:
    """Layers, norm and head, for 1 to `max_chunk` rows at any position."""
    sparse = spec.sparsity is not None
    module = (SparseDecoderProgram if sparse else DecoderProgram)(network, spec.context)
    leaves = module.leaves()
    past = [torch.zeros(leaf.cache_shape, dtype=leaf.cache_dtype) for leaf in leaves for _ in "kv"]
    rows = torch.zeros(1, min(2, spec.max_chunk), network.config.decoder.width)
    varying = {1: Dim("tokens", min=1, max=spec.max_chunk)} if spec.max_chunk > 1 else {}
    names = [f"{part}_{i}" for i in range(len(leaves)) for part in ("key", "value")]
    chosen = (torch.ones(1), torch.zeros(len(leaves), dtype=torch.int32)) if sparse else ()
    return Program(
        "decoder",
        module,
        (rows, torch.zeros(1, dtype=torch.int32), *chosen, past),
        (varying, {}, *({} for _ in chosen), [{} for _ in past]),
        ("rows", "position", *(("tau", "lengths") if sparse else ()), *(f"past_{name}" for name in names)),
        ("logits", *(("kept",) if sparse else ()), *(f"present_{name}" for name in names)),
    )


def reference(network: Network, spec: LoweringSpec) -> Network:
    """The network with ONNX Runtime's leaves; its eager forward rounds weights, activations and cache as the CPU does.

    Swaps leaves in place. Raises UnsupportedError for a group the kernels do not take, or int8 KV without scales.
    """
    if spec.kv == "int8" and (spec.kv_scales is None or len(spec.kv_scales) != network.config.decoder.layers):
        raise UnsupportedError(
            "The onnx backend keeps an int8 cache with static scales, one pair a layer, and was given "
            f"{len(spec.kv_scales or ())}; calibrate them (quantize.kv_scales) or export with --kv float."
        )
    if len(network.decoder.cos) < spec.context:
        raise UnsupportedError(
            f"--context {spec.context} is more than the {len(network.decoder.cos)} positions that the checkpoint was "
            "trained for; choose a smaller one."
        )
    swap_leaves(network)
    for index, layer in enumerate(network.decoder.layers):
        attention = cast(DecoderLayer, layer).attention
        scales = spec.kv_scales[index] if spec.kv == "int8" and spec.kv_scales is not None else None
        attention.cached = GroupQueryAttention(attention, index, spec.context, scales, spec.sparsity)
    return network


def parts(network: Network) -> tuple[str, ...]:
    """See `Lowering.parts`."""
    return ("decoder", "embedding") if network.vision is None else ("decoder", "vision", "embedding")


def lower_part(part: str, network: Network, spec: LoweringSpec, folder: Path, progress: Progress) -> Written:
    """See `Lowering.lower_part`: folder/onnx/<part>.onnx and its data."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    makers = {"decoder": decoder_program, "vision": vision_program, "embedding": embedding_program}
    _keep(part, network)
    if part != "decoder":
        spec = replace(spec, kv="float")  # the others hold no cache, and are given no scales for one
    made = _write(makers[part](reference(network, spec), spec), folder)
    progress(1.0)
    return made


def _keep(part: str, network: Network) -> None:
    """Drop what other parts are made of, in place: what is left is packed."""
    owners = {"vision": ("vision", "projector"), "decoder": ("decoder.layers", "decoder.norm", "decoder.head")}
    owners["embedding"] = ("decoder.embedding",)
    for path in (path for owner, paths in owners.items() if owner != part for path in paths):
        parent, _, name = path.rpartition(".")
        # A list stays one, for what goes through the layers.
        setattr(network.get_submodule(parent), name, nn.ModuleList() if name == "layers" else None)


def join(made: Sequence[Written], folder: Path) -> BackendGraphs:
    """See `Lowering.join`."""
    graphs = {one.name: one.graph for one in made}
    files = tuple(sorted(file for one in made for file in one.files))
    return BackendGraphs(
        vision=graphs.get("vision"), embedding=graphs["embedding"], decoder=graphs["decoder"], files=files
    )


def _write(program: Program, folder: Path) -> Written:
    model = trace(program.module, program.example, program.dynamic_shapes, program.inputs, program.outputs)
    files = [p.relative_to(folder).as_posix() for p in write(model, folder / FOLDER / f"{program.name}.onnx")]
    graph = Graph(
        file=files[0],
        inputs=tuple(_port(v) for v in model.graph.inputs),
        outputs=tuple(_port(v) for v in model.graph.outputs),
        nodes=len(model.graph),
        delegated=contrib_nodes(model),
        not_delegated=float_linears(model),
    )
    return Written(program.name, graph, tuple(files))


def _port(value: ir.Value) -> Port:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
    return Port(name=value.name, dtype=value.dtype.numpy().name, shape=shape)
