"""What the person asked for: one frozen dataclass, checked on its own, saved in the manifest."""

from __future__ import annotations

from dataclasses import dataclass

from handlens_export.errors import UnsupportedError
from handlens_runtime.manifest import BackendName, KVFormat

GROUPS = (32, 64, 128)
BITS: dict[BackendName, tuple[int, ...]] = {"executorch": (4, 8, 32), "onnx": (2, 4, 8, 32)}
"""Weight bits that each backend's kernels really take; 32 leaves weights in float."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a bundle's bytes, the checkpoint aside."""

    backends: tuple[BackendName, ...] = ("executorch", "onnx")
    """Programs to make."""
    bits: int = 4
    """Bits of the decoder's linears."""
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
    max_portable: float = 0.5
    """Share of a program's nodes that may be left to portable kernels before the export fails."""

    def __post_init__(self) -> None:
        if not self.backends:
            raise UnsupportedError("No backend was asked for; name at least one of executorch, onnx with --backend.")
        for backend in self.backends:
            have = BITS[backend]
            for flag, bits in (
                ("--bits", self.bits),
                ("--head-bits", self.head_bits),
                ("--vision-bits", self.vision_bits),
            ):
                if bits not in have:
                    raise UnsupportedError(
                        f"{flag} {bits} is not a format of the {backend} backend, whose kernels take "
                        f"{', '.join(map(str, have))}; choose one of these or another --backend."
                    )
        if self.embedding_bits not in (8, 32):
            raise UnsupportedError(f"--embedding-bits {self.embedding_bits} is not possible; choose 8 or 32.")
        if self.group not in GROUPS:
            raise UnsupportedError(f"--group {self.group} is not possible; choose one of 32, 64, 128.")
        if self.chunk < 1:
            raise UnsupportedError(f"--chunk is {self.chunk}, but a pass takes at least 1 token.")
        if self.context is not None and self.context < 2:
            raise UnsupportedError(f"--context is {self.context}, but a prompt and an answer need at least 2 tokens.")
        if not 0 <= self.max_portable <= 1:
            raise UnsupportedError(f"--max-portable is {self.max_portable}, but a share lies between 0 and 1.")

    @property
    def float_roles(self) -> frozenset[str]:
        """Programs (`vision`, `decoder`) some of whose weights stay in float."""
        decoder = {"decoder"} if 32 in (self.bits, self.head_bits) else set()
        return frozenset(decoder | ({"vision"} if self.vision_bits == 32 else set()))
