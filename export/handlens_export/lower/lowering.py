"""What every lowering is given and gives, and how one is found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from handlens_export.errors import UnsupportedError
from handlens_export.network.network import Network
from handlens_export.network.zipvl import ZipVL
from handlens_export.quantize.weight import shallow_copy
from handlens_runtime.manifest import BackendGraphs, BackendName, KVFormat


@dataclass(frozen=True)
class LoweringSpec:
    """Shapes and formats that the programs are built for."""

    context: int
    """Cache length in tokens."""
    max_chunk: int
    """Most tokens in one decoder pass: max(chunk, tokens of one encoder output), or the context where a prompt is
    one pass: not causal, or with tokens chosen."""
    kv: KVFormat
    bos_id: int | None
    eos_ids: tuple[int, ...]
    tile_batch: int = 4
    """Most tiles in one encoder pass (BlueLM-V-3B, section 3.3: 4 is best on its phone)."""
    kv_scales: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...] | None = None
    """Static int8 scales per layer, keys then values, each (kv_heads, head_dim); for backends that need them."""
    sparsity: ZipVL | None = None
    """Where a prompt's tokens are chosen inside the decoder."""


Progress = Callable[[float], None]
"""Called with the share of the lowering done, 0 to 1."""


class Lowering(Protocol):
    """A module `handlens_export.lower.<name>` has these."""

    def parts(self, network: Network) -> tuple[str, ...]:
        """What can be lowered apart, the longest first."""

    def lower_part(self, part: str, network: Network, spec: LoweringSpec, folder: Path, progress: Progress) -> Any:
        """Lower one part into folder/<backend name>/; what it returns is for `join`, and can be pickled.

        `network` holds `QuantizedLinear` and `QuantizedEmbedding` leaves (or plain float ones); it is changed in place,
        so it cannot be lowered twice.
        """

    def join(self, made: Sequence[Any], folder: Path) -> BackendGraphs:
        """The backend's programs, of all that `lower_part` returned, in order; paths in the result are relative."""

    def reference(self, network: Network, spec: LoweringSpec) -> Network:
        """The network with this backend's leaves, whose eager forward rounds weights, activations and cache alike.

        What the programs are compared with; swaps leaves in place.
        """


def find(name: BackendName) -> Lowering:
    """The lowering of a backend, by file name."""
    return cast(Lowering, importlib.import_module(f"handlens_export.lower.{name}"))


def lower(name: BackendName, network: Network, spec: LoweringSpec, folder: Path, progress: Progress) -> BackendGraphs:
    """All parts of one backend, in this process; the network itself is left as it is."""
    backend, made = find(name), []
    names = backend.parts(network)
    for index, part in enumerate(names):
        within = partial(_within, progress, index, len(names))
        made.append(backend.lower_part(part, shallow_copy(network), spec, folder, within))
    return backend.join(made, folder)


def _within(progress: Progress, index: int, count: int, share: float) -> None:
    progress((index + share) / count)


PRODUCTS = ("linear", "addmm", "mm.default", "bmm", "conv", "MatMul", "Gemm", "Conv")
"""Parts of the names of operators that do a network's arithmetic: one left to a portable kernel is too slow to ship."""


def check_delegation(
    backend: BackendName, graphs: BackendGraphs, most: float, float_parts: frozenset[str] = frozenset()
) -> None:
    """Refuse programs whose fast kernels took too little. Raises UnsupportedError naming what was left.

    `most`: share of a program's nodes that may be left. A product left in float where its weights are on a grid is
    refused whatever the share (`float_parts`: the roles whose weights were asked to stay in float).
    """
    for role, graph in (("vision", graphs.vision), ("decoder", graphs.decoder)):
        if graph is None:
            continue
        if backend == "onnx" and role in float_parts:
            continue  # ONNX Runtime's own float products are what was asked for
        left = sum(graph.not_delegated.values())
        products = {name: n for name, n in graph.not_delegated.items() if any(part in name for part in PRODUCTS)}
        if not products and left <= most * graph.nodes:
            continue
        worst = sorted((products or graph.not_delegated).items(), key=lambda item: -item[1])[:5]
        named, program = ", ".join(f"{count} {name}" for name, count in worst), graph.method or role
        if products:
            raise UnsupportedError(
                f"The {backend} program {program} leaves products of matrices to kernels that are too slow ({named}); "
                "choose other --bits or another --backend."
            )
        raise UnsupportedError(
            f"The {backend} program {program} leaves {left} of {graph.nodes} nodes to portable kernels ({named}), more "
            f"than the {most:.0%} allowed; raise --max-portable or choose another --backend."
        )
