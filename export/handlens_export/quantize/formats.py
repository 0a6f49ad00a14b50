"""What becomes of each parameter, from its name and shape alone: the formats that the kernels really take, and the
bytes they come to. It knows nothing of torch, so that a plan is made before torch is loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal, cast

from handlens_export.recipe import Recipe
from handlens_runtime.manifest import PartQuantization

Part = Literal["vision", "projector", "embedding", "decoder", "head"]
PARTS: tuple[Part, ...] = ("vision", "projector", "embedding", "decoder", "head")
Bits = Literal[2, 3, 4, 8, 32]
Shape = tuple[int, ...]

GROUP_CHOICES = (128, 64, 32)
FLOAT_BYTES = 4
"""Of a scale, and of a weight that stays in float."""
ONNX_BLOCK = 128
"""Block that stands for one scale per row in an ONNX file, repeated: as fast as 256 (8 bits: 207 and 209 GFLOP/s on a
core at 729 x 1152 x 4304; 154 at 32), and its activations are rounded in finer groups."""


def stored_bits(bits: int) -> int:
    """Bits in which the kernels take weights of `bits`: three travel as four."""
    return 4 if bits == 3 else bits


@dataclass(frozen=True)
class Matrix:
    """A linear's weight, or the embedding table, on its grid."""

    rows: int
    columns: int
    bits: int
    group: int
    """Columns that share a scale; all of them where it is a scale per row."""

    @property
    def scales(self) -> int:
        """Scales of the whole matrix."""
        return self.rows * (self.columns // self.group)

    @property
    def nbytes(self) -> int:
        """Packed integers, float32 scales and, at two bits, packed zero points."""
        zeros = self.scales * self.bits // 8 if self.bits == 2 else 0
        return self.rows * self.columns * stored_bits(self.bits) // 8 + self.scales * FLOAT_BYTES + zeros


@dataclass
class _Tally:
    parameters: int = 0
    bytes: int = 0
    exceptions: Counter[str] = field(default_factory=Counter)


def choose_format(columns: int, bits: int, group: int) -> tuple[int, int]:
    """(bits, group) that a row of `columns` weights gets when `bits` in groups of `group` are wanted.

    Eight bits take one scale per row. Fewer bits take the largest of 128, 64, 32 that is at most `group` and divides
    the row (XNNPACK has no partial group; 576 at 128 gets 64). Where none divides (4,304): eight bits, a scale per row.
    """
    if bits == 8:
        return 8, columns
    for choice in GROUP_CHOICES:
        if choice <= group and columns % choice == 0:
            return bits, choice
    return 8, columns


def part_of(name: str) -> Part:
    """The part that a parameter or module of the network belongs to."""
    if name.startswith("vision"):
        return "vision"
    if name.startswith("projector"):
        return "projector"
    if name.startswith("decoder.embedding"):
        return "embedding"
    return "head" if name.startswith("decoder.head") else "decoder"


def bits_of(part: Part, recipe: Recipe) -> Bits:
    """Bits that a recipe asks for in a part's linears."""
    if part in ("vision", "projector"):
        return cast(Bits, recipe.vision_bits)
    if part == "embedding":
        return cast(Bits, recipe.embedding_bits)
    return cast(Bits, recipe.head_bits if part == "head" else recipe.bits)


def bits_for(name: str, recipe: Recipe) -> Bits:
    """Bits that a recipe asks for in one parameter."""
    places = [(len(place), bits) for place, bits in recipe.layer_bits if f"{name}.".startswith(f"{place}.")]
    return cast(Bits, max(places)[1]) if places else bits_of(part_of(name), recipe)


def is_product(name: str, shape: Shape) -> bool:
    """Whether a parameter is a linear's weight or the embedding table; norms, biases and convolutions are not."""
    return name.endswith(".weight") and len(shape) == 2


def matrix(name: str, shape: Shape, recipe: Recipe) -> Matrix | None:
    """The grid of a parameter; None where it stays in float."""
    bits = bits_for(name, recipe)
    if bits == 32 or not is_product(name, shape):
        return None
    rows, columns = shape
    return Matrix(rows, columns, *choose_format(columns, bits, recipe.group))


def weigh(shapes: Mapping[str, Shape], recipe: Recipe) -> dict[Part, PartQuantization]:
    """What each part comes to, in the order of the data's way; `shapes` by the network's parameter names."""
    tallies: dict[Part, _Tally] = {}
    for name, shape in shapes.items():
        part = part_of(name)
        tally = tallies.setdefault(part, _Tally())
        grid = matrix(name, shape, recipe)
        tally.parameters += prod(shape)
        tally.bytes += prod(shape) * FLOAT_BYTES if grid is None else grid.nbytes
        reason = _exception(name, shape, grid, recipe)
        if reason is not None:
            tally.exceptions[reason] += 1
    return {part: _summary(part, tallies[part], recipe) for part in PARTS if part in tallies}


def _exception(name: str, shape: Shape, grid: Matrix | None, recipe: Recipe) -> str | None:
    """Why a weight got another format than its part's; None where it did not."""
    path, _, kind = name.rpartition(".")
    sizes = "x".join(map(str, shape))
    bits, whole = bits_for(name, recipe), bits_of(part_of(name), recipe)
    asked = "by the recipe's layer_bits"
    if grid is None:
        if is_product(name, shape) and bits != whole:
            return f"{re.sub(r'[0-9]+', '*', path)} {sizes}: float, {asked}"
        convolution = len(shape) == 4 and kind == "weight" and bits < 32
        return f"{path.rpartition('.')[2]} {sizes}: float, a convolution" if convolution else None
    if bits != whole:
        return f"{re.sub(r'[0-9]+', '*', path)} {sizes}: {grid.bits} bits, {asked}"
    if bits == 8 or (grid.bits, grid.group) == (bits, recipe.group):
        return None
    form = f"groups of {grid.group}" if grid.bits < 8 else "8 bits, a scale per row"
    return f"{re.sub(r'[0-9]+', '*', path)} {sizes}: {form}, because {recipe.group} does not divide {shape[1]}"


def _summary(part: Part, tally: _Tally, recipe: Recipe) -> PartQuantization:
    bits = bits_of(part, recipe)
    return PartQuantization(
        bits=bits,
        stored_bits=4 if bits == 3 else None,
        group=recipe.group if bits < 8 else None,
        symmetric=bits != 2,
        parameters=tally.parameters,
        bytes=tally.bytes,
        exceptions=tuple(f"{count} x {what}" for what, count in sorted(tally.exceptions.items())),
    )
