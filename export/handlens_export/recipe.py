"""What the person asked for: one frozen dataclass, checked on its own, saved in the manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from handlens_export.errors import UnsupportedError
from handlens_runtime.manifest import BackendName, KVFormat

GROUPS = (32, 64, 128)
Method = Literal["round", "clip", "gptq", "rsq"]
"""
round  to the nearest grid point
clip   the same, on the grids of least squared error, an input's weights counted by its size
gptq   GPTQ: what rounding one weight does is made up for by those not rounded yet
rsq    GPTQ to tokens weighted by the attention that they get (RSQ, without its rotation)
"""
METHODS: tuple[Method, ...] = get_args(Method)
SEQUENCES, LENGTH = 64, 512
"""Of a calibration set of the user's own: prompts, and tokens of each, at most."""
BITS: dict[BackendName, tuple[int, ...]] = {"executorch": (3, 4, 8, 32), "onnx": (2, 3, 4, 8, 32)}
"""Weight bits that each backend's kernels take, three of them stored as four; 32 leaves weights in float."""
TAU = 0.975
"""ZipVL's own choice."""
PLACE = re.compile(r"decoder\.layers\.(0|[1-9]\d*)(\.attention(\.[qkvo]_proj)?|\.mlp(\.(gate|up|down)_proj)?)?")
"""A decoder layer, its attention or MLP, or one linear of these."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a bundle's bytes, the checkpoint aside."""

    backends: tuple[BackendName, ...] = ("executorch", "onnx")
    """Programs to make."""
    method: Method = "round"
    """How the decoder's linears are rounded."""
    smooth: bool = False
    """Whether activations' outliers are moved into the weights first (SmoothQuant+)."""
    rotate: bool = False
    """Whether the residual stream is rotated first, so that no channel has outliers."""
    bits: int = 4
    """Bits of the decoder's linears."""
    layer_bits: tuple[tuple[str, int], ...] = ()
    """Other bits of some decoder layers, of their attention or MLP, or of single linears, such as
    (("decoder.layers.0", 8), ("decoder.layers.3.mlp.down_proj", 8)); the longest name that fits a linear counts."""
    group: int = 32
    """Weights that share a scale, where bits is below 8."""
    head_bits: int = 8
    """Bits of the output head: at four, it alone costs three quarters of what all linears do (quantize/LOG.md)."""
    vision_bits: int = 8
    """Bits of the vision encoder's and the projector's linears, a scale per output row."""
    embedding_bits: int = 8
    """Bits of the token embedding table."""
    kv: KVFormat = "int8"
    """Format of the key-value cache."""
    context: int | None = None
    """Cache length in tokens; None is 2,048, or what the checkpoint was trained for where that is less."""
    chunk: int = 128
    """Prompt tokens per decoder pass."""
    tau: float | None = None
    """Share of the attention that the tokens hold which each layer keeps of a prompt (ZipVL); None keeps all."""
    max_portable: float = 0.5
    """Share of a program's nodes that may be left to portable kernels before the export fails."""

    def __post_init__(self) -> None:
        self._refuse_other_types()
        self._refuse_other_places()
        self._refuse_other_backends()
        for backend in self.backends:
            have = BITS[backend]
            for flag, bits in (
                ("--bits", self.bits),
                ("--head-bits", self.head_bits),
                ("--vision-bits", self.vision_bits),
                *((f"--layer-bits {place}={bits}:", bits) for place, bits in self.layer_bits),
            ):
                if bits not in have:
                    raise UnsupportedError(
                        f"{flag} {bits} is not a format of the {backend} backend, whose kernels take "
                        f"{', '.join(map(str, have))}; choose one of these or another --backend."
                    )
        for name in ("smooth", "rotate"):
            if not isinstance(getattr(self, name), bool):
                raise UnsupportedError(f"{name} is {getattr(self, name)!r}, but it is either True or False.")
        if self.bits == 32 and self.looks_at_activations:
            raise UnsupportedError("--bits 32 rounds nothing; leave out --method and --smooth, or choose fewer bits.")
        if self.method not in METHODS:
            raise UnsupportedError(f"--method {self.method!r} is not possible; choose one of {', '.join(METHODS)}.")
        if self.embedding_bits not in (8, 32):
            raise UnsupportedError(f"--embedding-bits {self.embedding_bits} is not possible; choose 8 or 32.")
        if self.group not in GROUPS:
            raise UnsupportedError(f"--group {self.group} is not possible; choose one of 32, 64, 128.")
        if self.kv not in get_args(KVFormat):
            raise UnsupportedError(f"--kv {self.kv!r} is not possible; choose one of {', '.join(get_args(KVFormat))}.")
        if self.chunk < 1:
            raise UnsupportedError(f"--chunk is {self.chunk}, but a pass takes at least 1 token.")
        if self.context is not None and self.context < 2:
            raise UnsupportedError(f"--context is {self.context}, but a prompt and an answer need at least 2 tokens.")
        if not 0 <= self.max_portable <= 1:
            raise UnsupportedError(f"--max-portable is {self.max_portable}, but a share lies between 0 and 1.")

    def _refuse_other_types(self) -> None:
        """What the command line's parser refuses, for a recipe made in Python: 4.0 equals 4, but is not saved as 4."""
        numbers = ("bits", "group", "head_bits", "vision_bits", "embedding_bits", "context", "chunk")
        for name in numbers:
            value = getattr(self, name)
            if type(value) is not int and not (name == "context" and value is None):
                flag, example = f"--{name.replace('_', '-')}", getattr(Recipe, name) or 2048
                raise UnsupportedError(
                    f"{flag} is {value!r}, but it must be a whole number; give one such as {example}."
                )
        if self.tau is not None and (isinstance(self.tau, bool) or not isinstance(self.tau, int | float)):
            raise UnsupportedError(f"tau is {self.tau!r}, but it must be a number, such as {TAU}.")
        if self.tau is not None and not 0 < self.tau <= 1:
            raise UnsupportedError(
                f"--sparsity zipvl:tau={self.tau:g} is no share of the attention; choose one above 0, 1 at most."
            )
        if isinstance(self.max_portable, bool) or not isinstance(self.max_portable, int | float):
            raise UnsupportedError(f"--max-portable is {self.max_portable!r}, but a share lies between 0 and 1.")

    def _refuse_other_places(self) -> None:
        places = [place for place, _ in self.layer_bits]
        for place, bits in self.layer_bits:
            if type(bits) is not int:
                raise UnsupportedError(
                    f"--layer-bits {place} is {bits!r}, but bits are a whole number; give one such as 8."
                )
            if PLACE.fullmatch(place) is None:
                raise UnsupportedError(
                    f"--layer-bits names {place!r}; give a decoder layer, its attention or mlp, or one of their "
                    "linears, such as decoder.layers.0.mlp.down_proj=8."
                )
            if places.count(place) > 1:
                raise UnsupportedError(f"--layer-bits names {place} twice; name each once.")

    def _refuse_other_backends(self) -> None:
        if isinstance(self.backends, str):
            raise UnsupportedError(
                f"backends is {self.backends!r}, but it must be a tuple of names, such as ({self.backends!r},)."
            )
        if not self.backends:
            raise UnsupportedError("No backend was asked for; name at least one of executorch, onnx with --backend.")
        for index, backend in enumerate(self.backends):
            if backend not in BITS:
                raise UnsupportedError(
                    f"--backend names {backend!r}, but the backends are {', '.join(BITS)}; choose among these."
                )
            if backend in self.backends[:index]:
                raise UnsupportedError(f"--backend names {backend} twice; name each once.")

    @property
    def leaves_out(self) -> bool:
        """Whether tokens of a prompt can be left out: a tau of 1 keeps all."""
        return self.tau is not None and self.tau < 1

    @property
    def looks_at_activations(self) -> bool:
        """Whether it needs a calibration set."""
        return self.method != "round" or self.smooth

    @property
    def float_roles(self) -> frozenset[str]:
        """Programs (`vision`, `decoder`) some of whose weights stay in float."""
        others = {bits for _, bits in self.layer_bits}
        decoder = {"decoder"} if 32 in {self.bits, self.head_bits, *others} else set()
        return frozenset(decoder | ({"vision"} if self.vision_bits == 32 else set()))
