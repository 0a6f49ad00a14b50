"""A randomized Hadamard rotation of the residual stream, folded into the weights (QuaRot, arXiv 2404.00456, section 3,
and the first step of RSQ): outliers of single channels are spread over all, and the network computes what it did.

Every norm's weight moves into the linears behind it, since only then does the norm commute with a rotation; a head that
was tied to the embedding table is then another matrix. What leaves the residual stream is turned back (W diag(g) R),
what enters it is turned (R^T W): the embedding table, the projector's last linear, and the outputs of attention and
feed-forward. Nothing is left to do while the network runs.

RSQ turns the inputs of `o_proj` and `down_proj` too, while the network runs. That is left out: neither backend has an
operator for it; as products with a fixed matrix for each 128 channels it would add 1.6 % to the operations of
bluelm-v-3b's layers, in float between products in int8. The outliers that it would spread stay with clipping and GPTQ.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handlens_export.network.load import Parameters
from handlens_export.quantize.rounding import row_blocks

SEED = 0
NORMS = {
    r"(decoder\.layers\.\d+)\.attention\.[qkv]_proj\.weight": r"\1.attention_norm.weight",
    r"(decoder\.layers\.\d+)\.mlp\.(gate|up)_proj\.weight": r"\1.mlp_norm.weight",
    r"decoder\.head\.weight": "decoder.norm.weight",
}
"""Linears that read the residual stream, and the norm before each."""
WRITES = re.compile(
    r"(decoder\.layers\.\d+\.(attention\.o|mlp\.down)_proj|projector\.(fc2|proj|linear))\.(weight|bias)"
)
"""Linears whose outputs enter it."""


class Rotated(Parameters):
    """Parameters of the rotated network: read, each turned as it is read, like those of the checkpoint."""

    def __init__(self, plain: Parameters, seed: int = SEED) -> None:
        """`plain` stays as it is; the same seed gives the same rotation."""
        self.__dict__.update(plain.__dict__)
        self._plain = plain
        self.settings = f"{plain.settings} rotated {seed}"
        self._turn = rotation(plain.shapes["decoder.embedding.table.weight"][1], seed)

    def stored(self, name: str) -> Tensor:
        """One parameter of the rotated network; turned in float64, it is in float32."""
        return self.turned(name, torch.float32)

    def rows(self, name: str, chosen: Tensor) -> Tensor:
        """Some rows of a matrix, in float32: of the embedding table without turning the others."""
        if name != "decoder.embedding.table.weight":
            return super().rows(name, chosen)
        return (self._plain.rows(name, chosen).double() @ self._turn).float()

    def turned(self, name: str, kind: torch.dtype) -> Tensor:
        """The same, what was turned in any type of floats."""
        weight = self._plain.stored(name)
        if name == "decoder.embedding.table.weight":
            return _times(weight, self._turn, kind)
        if norm := norm_before(name):
            return _times(weight, self._plain.read(norm).double()[:, None] * self._turn, kind)
        if WRITES.fullmatch(name):
            return (self._turn.T @ weight.double()).to(kind)
        return torch.ones_like(weight, dtype=kind) if name in self._norms else weight

    @property
    def _norms(self) -> set[str]:
        return {norm for name in self.shapes if (norm := norm_before(name))}

    def digest(self, name: str) -> str:
        """sha256 of all that a parameter is made of, the rotation aside, which is in `settings`."""
        norm = norm_before(name)
        own = self._plain.digest(name)
        return own if norm is None else hashlib.sha256(f"{own} {self._plain.digest(norm)}".encode()).hexdigest()


def norm_before(name: str) -> str | None:
    """The norm whose weight a linear takes in; None where it does not read the residual stream."""
    for linear, norm in NORMS.items():
        if match := re.fullmatch(linear, name):
            return match.expand(norm)
    return None


def _times(weight: Tensor, right: Tensor, kind: torch.dtype) -> Tensor:
    """A product in float64, some rows at a time: a whole embedding table in float64 would fill gigabytes."""
    out = torch.empty(len(weight), right.shape[1], dtype=kind)
    end = 0
    for block in row_blocks(weight):
        out[end : end + len(block)] = block.double() @ right
        end += len(block)
    return out


def rotation(width: int, seed: int) -> Tensor:
    """An orthogonal matrix (width, width), float64: random signs, then Hadamard's matrix of the largest power of two
    that divides the width, times, where something is left, a random rotation of that size (576 = 64 x 9).
    """
    random = np.random.default_rng(seed)
    power = width & -width
    rest, triangle = np.linalg.qr(random.standard_normal((width // power, width // power)))
    rest *= np.sign(np.diag(triangle))
    hadamard: NDArray[np.float64] = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.asarray(np.kron(np.array(((1, 1), (1, -1))) / 2**0.5, hadamard), np.float64)
    whole = np.kron(hadamard, rest) * random.choice((-1.0, 1.0), width)[:, None]
    return torch.from_numpy(whole)
