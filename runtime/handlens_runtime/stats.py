"""The numbers of one generation, in ExecuTorch's runner's words. Knows nothing about how they come about."""

from __future__ import annotations

import resource
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Finish = Literal["stop", "stop_string", "length", "context", "cancelled"]
"""Why a generation ended: the model's own end token, a stop string, `max_tokens`, a full context, or `stop()`."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Stats:
    """Numbers of one `prefill`, `generate` or `score`; times in seconds, filled in while it runs."""

    image_decode_s: float = 0.0
    """Opening pictures and cutting them into tiles."""
    encode_s: float = 0.0
    """Vision encoder and projector."""
    tiles: int = 0
    """Tiles encoded; those found in the image-embedding cache are not."""
    image_tokens: int = 0
    """Prompt tokens that pictures fill."""
    prompt_tokens: int = 0
    """Prompt tokens, those of pictures counted."""
    reused_tokens: int = 0
    """Prompt tokens whose cache rows an earlier turn left."""
    sparse_tokens: int = 0
    """Prompt tokens of which each layer kept only what matters to it."""
    kept_tokens: list[int] = field(default_factory=list)
    """Of these, those that each layer kept."""
    prefill_s: float = 0.0
    """Decoder passes over the prompt."""
    time_to_first_token_s: float | None = None
    """From the call to the first token, pictures included; None where there was none."""
    generated_tokens: int = 0
    """The end token counted, as transformers does."""
    decode_s: float = 0.0
    """Decoder passes over generated tokens, and sampling; the caller's own time is not in it."""
    peak_memory_bytes: int = 0
    """Most memory that the process ever had resident, not this generation alone."""
    kv_bytes: int = 0
    """The key-value cache, as allocated."""
    finish: Finish | None = None
    """Why it ended; None while it runs, after an error, and where the caller left early."""

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens after the first, per second of decoding; None before the second token."""
        if self.generated_tokens < 2 or self.decode_s == 0:
            return None
        return (self.generated_tokens - 1) / self.decode_s

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Computed prompt tokens per second of prefill; None before any."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_s if self.prefill_s else None

    def as_dict(self) -> dict[str, float | int | str | list[int] | None]:
        """All numbers by name, the rates included: what `--json` prints."""
        rates = {
            "tokens_per_second": self.tokens_per_second,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
        }
        return asdict(self) | rates


def restart_peak_memory() -> bool:
    """Let `peak_memory_bytes` begin anew from what is resident now; False where the system cannot (macOS)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """Most resident memory of this process so far, file-backed pages included."""
    if _STATUS.exists():
        # VmHWM, for on Linux getrusage's peak begins with that of the process that started this one.
        (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes
