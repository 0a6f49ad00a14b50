"""The bytes of a bundle's files, from the shapes of its parameters: what `lower` will write, without lowering."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from handlens_export.describe import Plan
from handlens_export.memory import HEAD_DIM_MULTIPLE
from handlens_export.quantize.formats import FLOAT_BYTES, ONNX_BLOCK, Matrix, Part, Shape, matrix, part_of, stored_bits
from handlens_export.recipe import Recipe
from handlens_runtime.manifest import BackendName

Shapes = Mapping[str, Shape]

ONNX_PAGE = 4096
"""Tensors of the data file begin at multiples of this (lower.onnx_file)."""
ONNX_INLINE = 1024
"""Smaller tensors stay in the .onnx file."""
ONNX_GRAPH = {"vision": (3_500, 5_900), "decoder": (1_400, 5_700), "embedding": (600, 0)}
"""Bytes of a graph without tensors: fixed, and per layer. Measured on bluelm-v-nano and SmolLM2-135M."""
XNNPACK_SCALE_BYTES = 2
"""Scales of groups are stored in bfloat16; scales of rows in float32."""
PTE_GRAPH = (16_000, 12_500, 24_700)
"""Bytes of a program without tensors: fixed, per vision layer, per decoder layer. Measured likewise."""
TEXTS = 12_000
"""manifest.json with its seal and golden.json; a few thousand bytes more or less."""


def bundle_files(planned: Plan, recipe: Recipe, shapes: Shapes) -> dict[str, dict[str, int]]:
    """Backend (and `shared`) -> part -> bytes on disk. `graph` is what is not tensors, `tables` rotary positions."""
    sizes: dict[str, dict[str, int]] = {b: _backend(planned, recipe, shapes, b) for b in recipe.backends}
    shared = {"tokenizer": len(planned.checkpoint.tokenizer_json.encode()), "texts": TEXTS}
    if "onnx" in recipe.backends and recipe.kv == "int8":
        decoder = planned.config.decoder
        shared["kv_scales"] = 2 * decoder.layers * (decoder.kv_heads * decoder.head_dim * FLOAT_BYTES + 250)
    return {**sizes, "shared": shared}


def weight_bytes(shapes: Shapes, recipe: Recipe, backend: BackendName) -> dict[Part, int]:
    """Bytes of each part's tensors in a backend's own format, without padding: what a pass reads."""
    sizes: dict[Part, int] = {}
    for name, shape in shapes.items():
        tensors = _tensors(name, shape, recipe, backend)
        sizes[part_of(name)] = sizes.get(part_of(name), 0) + sum(tensors)
    return sizes


def _backend(planned: Plan, recipe: Recipe, shapes: Shapes, backend: BackendName) -> dict[str, int]:
    decoder, context = planned.config.decoder, planned.context
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        stored = sum(_stored(tensor, backend) for tensor in _tensors(name, shape, recipe, backend))
        sizes[part_of(name)] = sizes.get(part_of(name), 0) + stored
    sizes["tables"] = 2 * _stored(context * decoder.head_dim // 2 * FLOAT_BYTES, backend)
    vision_layers = planned.config.vision.layers if planned.config.vision else 0
    if backend == "executorch":
        sizes["tables"] += context * FLOAT_BYTES  # positions, for the causal mask
        fixed, of_vision, of_decoder = PTE_GRAPH
        sizes["graph"] = fixed + of_vision * vision_layers + of_decoder * decoder.layers
        return sizes
    graphs = {"vision": vision_layers, "decoder": decoder.layers, "embedding": 1}
    programs = {name: layers for name, layers in graphs.items() if layers}
    sizes["graph"] = sum(ONNX_GRAPH[name][0] + ONNX_GRAPH[name][1] * layers for name, layers in programs.items())
    sizes["graph"] -= len(programs) * ONNX_PAGE // 2  # each data file's last tensor is not padded
    if recipe.kv == "int8":
        scales = decoder.kv_heads * (decoder.head_dim + -decoder.head_dim % HEAD_DIM_MULTIPLE) * FLOAT_BYTES
        sizes["tables"] += 2 * decoder.layers * _stored(scales, backend)
    return sizes


def _stored(tensor: int, backend: BackendName) -> int:
    """A tensor's bytes in the file, padding included."""
    if backend == "executorch" or tensor < ONNX_INLINE:
        return tensor
    return tensor + -tensor % ONNX_PAGE


def _tensors(name: str, shape: Shape, recipe: Recipe, backend: BackendName) -> Iterator[int]:
    """Bytes of each tensor that a parameter becomes."""
    grid = matrix(name, shape, recipe)
    if grid is None:
        yield prod(shape) * FLOAT_BYTES
    elif backend == "executorch":
        yield from _xnnpack(grid)
    else:
        yield from _onnx(grid, part_of(name) == "embedding")


def _xnnpack(grid: Matrix) -> Iterator[int]:
    yield grid.rows * grid.columns * stored_bits(grid.bits) // 8
    yield grid.scales * (FLOAT_BYTES if grid.group == grid.columns else XNNPACK_SCALE_BYTES)


def _onnx(grid: Matrix, looked_up: bool) -> Iterator[int]:
    """Integers, scales and zero points; the embedding's lookup takes one scale a row, a product needs blocks."""
    block = grid.columns if looked_up and grid.group == grid.columns else grid.group
    if not looked_up and grid.group == grid.columns:
        block = ONNX_BLOCK
    blocks = -(-grid.columns // block)
    yield grid.rows * blocks * block * stored_bits(grid.bits) // 8
    yield grid.rows * blocks * FLOAT_BYTES
    if grid.bits == 2:
        yield grid.rows * -(-blocks * grid.bits // 8)
