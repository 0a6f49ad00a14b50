"""What a benchmark found: every sample is kept, in the order of the rounds. Knows nothing about how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev

from handlens_runtime.bench.workload import Trial


@dataclass(frozen=True)
class Samples:
    """One number, measured once a round."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the rounds."""
        return mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the rounds; 0 where there was one."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def to_json(self) -> dict[str, object]:
        """Mean, spread and samples."""
        return {"mean": self.mean, "spread": self.spread, "samples": list(self.values)}


@dataclass(frozen=True)
class Line:
    """One test of one runner."""

    test: Trial
    seconds: Samples
    step_bytes: float | None
    """Weights, scales, keys and values that one step reads; None for a prompt."""
    read_bandwidth: Samples | None
    """Bytes a second that the machine read in the same rounds; None for a prompt."""
    kept: float = 1.0
    """Share of the prompt's tokens, or of those before the first that is decoded, that the caches hold."""

    @property
    def rate(self) -> Samples:
        """Tokens a second."""
        return Samples(tuple(self.test.tokens / seconds for seconds in self.seconds.values))

    @property
    def share(self) -> Samples | None:
        """Bytes that steps read a second, over what the machine reads; None for a prompt."""
        if self.step_bytes is None or self.read_bandwidth is None:
            return None
        pairs = zip(self.rate.values, self.read_bandwidth.values, strict=True)
        return Samples(tuple(rate * self.step_bytes / bandwidth for rate, bandwidth in pairs))

    def to_json(self) -> dict[str, object]:
        """Everything by name."""
        share = self.share
        return {
            "test": self.test.name,
            **asdict(self.test),
            "tokens_per_second": self.rate.to_json(),
            "kept": self.kept,
            "step_bytes": self.step_bytes,
            "bandwidth_share": None if share is None else share.to_json(),
        }


@dataclass(frozen=True)
class Pictures:
    """Vision encoder and projector, in seconds."""

    tile: Samples
    size: tuple[int, int]
    """Width and height of the picture, in pixels."""
    tiles: int
    """That the picture was cut into."""
    image_decode: Samples
    encode: Samples
    """All tiles of the picture."""

    def to_json(self) -> dict[str, object]:
        """Everything by name."""
        return {
            "tile_s": self.tile.to_json(),
            "size": list(self.size),
            "tiles": self.tiles,
            "image_decode_s": self.image_decode.to_json(),
            "encode_s": self.encode.to_json(),
        }


@dataclass(frozen=True)
class Found:
    """All that was measured of one runner."""

    name: str
    """The backend, or the peer with its version."""
    file: str
    load: Samples
    """Seconds to the logits of a first prompt; new process, imports done, file cache warm."""
    load_from_start: Samples
    """The same from the start of the process, so that imports are in it."""
    lines: tuple[Line, ...]
    pictures: Pictures | None
    peak_memory: int
    """Most resident bytes after prompts and decoding."""
    peak_memory_pictures: int | None
    """The same after pictures too."""
    peak_memory_released: int | None
    """Most resident bytes at the deepest position tested, once the vision encoder's memory is given back."""
    kv_bytes: int
    """The key-value cache, as allocated."""
    weight_bytes: int
    """Packed weights and scales that one decode step reads."""

    def to_json(self) -> dict[str, object]:
        """Everything by name."""
        return {
            "name": self.name,
            "file": self.file,
            "load_s": self.load.to_json(),
            "load_from_start_s": self.load_from_start.to_json(),
            "tests": [line.to_json() for line in self.lines],
            "pictures": None if self.pictures is None else self.pictures.to_json(),
            "peak_memory_bytes": self.peak_memory,
            "peak_memory_pictures_bytes": self.peak_memory_pictures,
            "peak_memory_released_bytes": self.peak_memory_released,
            "kv_bytes": self.kv_bytes,
            "weight_bytes_per_step": self.weight_bytes,
        }


@dataclass(frozen=True)
class Benchmark:
    """One run: a bundle, and the peer that took turns with it."""

    model: str
    parameters: int
    bytes: int
    """Of the bundle's files that its backend needs."""
    threads: int
    repeat: int
    found: Found
    vs: Found | None
    notes: tuple[str, ...]
    """A sentence for each thing left out, and for what the peer ran on."""

    def ratios(self) -> Sequence[Samples]:
        """Tokens a second over the peer's, round by round, a line each; empty without a peer."""
        if self.vs is None:
            return ()
        pairs = zip(self.found.lines, self.vs.lines, strict=True)
        return [
            Samples(tuple(a / b for a, b in zip(ours.rate.values, theirs.rate.values, strict=True)))
            for ours, theirs in pairs
        ]

    def to_json(self) -> dict[str, object]:
        """Everything by name, samples included."""
        bandwidth = next((line.read_bandwidth for line in self.found.lines if line.read_bandwidth), None)
        return {
            "model": self.model,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "threads": self.threads,
            "repeat": self.repeat,
            "read_bandwidth": None if bandwidth is None else bandwidth.to_json(),
            **self.found.to_json(),
            "vs": None if self.vs is None else self.vs.to_json(),
            "ratios": {
                line.test.name: ratio.to_json()
                for line, ratio in zip(self.found.lines, self.ratios() or (), strict=False)
            },
            "notes": list(self.notes),
        }
