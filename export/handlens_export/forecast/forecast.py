"""A checkpoint's future from its headers: the export, the bundle, and the device that runs it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from handlens_export.describe import LEAST_TOKENS, Plan
from handlens_export.errors import UnsupportedError
from handlens_export.forecast.device import Device
from handlens_export.forecast.files import Shapes, bundle_files, weight_bytes
from handlens_export.forecast.headers import shapes_of
from handlens_export.forecast.host import Host, can_fork, cores, estimate_host
from handlens_export.forecast.speed import Passes, prefill_seconds, tokens_per_second, vision_seconds
from handlens_export.memory import estimate, kv_cache
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import Recipe
from handlens_runtime.images.expand import tile_count
from handlens_runtime.images.tiling import Grid, choose_grid
from handlens_runtime.manifest import BackendName, ImageRule, MemoryEstimate

SCREEN = (768, 1536)
"""BlueLM-V-3B's test picture, a phone's screen: nine tiles of 384."""


@dataclass(frozen=True)
class Prompt:
    """What the device is asked: one picture, where the network sees, and some text."""

    picture: tuple[int, int] = SCREEN
    """Width and height in pixels."""
    text: int = 64
    """Tokens of everything in the prompt that is not a picture."""
    kept: float = 0.5
    """Share of the prompt that each layer keeps, where the recipe lets layers choose: an assumption, that of
    LLaVA-NeXT-7B at a tau of 0.975 (arXiv 2410.08584, table 1). A sparse bundle's manifest names its own."""

    def __post_init__(self) -> None:
        if self.text < 1:
            raise UnsupportedError(f"--text is {self.text}, but a prompt has at least 1 token beside its picture.")
        if not 0 < self.kept <= 1:
            raise UnsupportedError(f"--kept is {self.kept:g}, but a share lies above 0, and is 1 at most.")
        if min(self.picture) < 1:
            raise UnsupportedError(
                f"A picture of {self.picture[0]} x {self.picture[1]} pixels has none; give 1 x 1 at least."
            )


@dataclass(frozen=True)
class Speed:
    """Predicted for one backend on one device."""

    vision_seconds: float
    prefill_seconds: float
    tokens_per_second: float
    """With the prompt and no answer in the cache."""
    tokens_per_second_full: float
    """With a full cache."""

    @property
    def first_token_seconds(self) -> float:
        """From the picture to the first token; loading the bundle is not in it."""
        return self.vision_seconds + self.prefill_seconds


@dataclass(frozen=True)
class Forecast:
    """Everything in bytes and seconds; predicted, not measured."""

    name: str
    recipe: Recipe
    context: int
    max_grid: Grid | None
    """Columns and rows that a picture may be cut into at most; None without pictures, or where no grid is named."""
    tiles: int
    """Of the prompt's picture, the thumbnail counted."""
    prompt_tokens: int
    kept: float | None
    """Share of the prompt that layers are assumed to keep; None where they keep all."""
    host: Host
    files: dict[str, dict[str, int]]
    """Backend or `shared` -> part -> bytes on disk."""
    memory: MemoryEstimate
    """As the manifest will say it."""
    device: Device | None
    speeds: dict[BackendName, Speed]
    """Empty without a device."""

    @property
    def bytes(self) -> int:
        """Of the whole bundle on disk."""
        return sum(size for parts in self.files.values() for size in parts.values())

    @property
    def fits(self) -> bool | None:
        """Whether some backend stays below the device's memory ceiling; None without a device."""
        if self.device is None:
            return None
        return min(needs.peak for needs in self.memory.backends.values()) <= self.device.memory

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        speeds = {
            backend: {**asdict(speed), "first_token_seconds": speed.first_token_seconds}
            for backend, speed in self.speeds.items()
        }
        return {
            "name": self.name,
            "recipe": asdict(self.recipe),
            "context": self.context,
            "max_grid": self.max_grid,
            "tiles": self.tiles,
            "prompt_tokens": self.prompt_tokens,
            "kept": self.kept,
            "host": asdict(self.host),
            "bytes": self.bytes,
            "files": self.files,
            "memory": self.memory.model_dump(mode="json"),
            "device": asdict(self.device) if self.device else None,
            "fits": self.fits,
            "speeds": speeds,
        }


def forecast(
    planned: Plan, recipe: Recipe, prompt: Prompt, device: Device | None, shapes: Shapes | None = None
) -> Forecast:
    """Predict export, bundle and device. `shapes`, as `shapes_of` gives them, spare reading the headers again.

    Raises CheckpointError where a tensor is missing, UnsupportedError where the context does not hold the prompt.
    """
    shapes = shapes_of(planned) if shapes is None else shapes
    tiles, tokens = prompt_size(planned, prompt)
    if tokens >= planned.context:
        raise UnsupportedError(
            f"A prompt of {tokens} tokens, {tokens - prompt.text} of them a picture of {prompt.picture[0]} x "
            f"{prompt.picture[1]} pixels, leaves no room for an answer in a context of {planned.context}; "
            "choose a larger --context or a smaller --image."
        )
    files = bundle_files(planned, recipe, shapes)
    memory = estimate(planned.config, recipe, planned.context, planned.max_chunk, weigh(shapes, recipe))
    kept = prompt.kept if recipe.leaves_out and tokens >= LEAST_TOKENS else None
    speeds = {
        backend: _speed(passes_of(planned, recipe, shapes, backend, kept), device, tiles, tokens, planned.context)
        for backend in (recipe.backends if device else ())
        if device
    }
    return Forecast(
        name=planned.checkpoint.path.name,
        recipe=recipe,
        context=planned.context,
        max_grid=_largest(planned.image),
        tiles=tiles,
        prompt_tokens=tokens,
        kept=kept,
        host=estimate_host(
            planned.config, recipe, shapes, files, memory, planned.context, cores() if can_fork() else 1
        ),
        files=files,
        memory=memory,
        device=device,
        speeds=speeds,
    )


def passes_of(planned: Plan, recipe: Recipe, shapes: Shapes, backend: BackendName, kept: float | None = None) -> Passes:
    """What a backend's programs read and multiply, where layers keep that share of a prompt."""
    weights = weight_bytes(shapes, recipe, backend)
    return Passes(
        config=planned.config,
        step_bytes=weights["decoder"] + weights["head"],
        vision_bytes=weights.get("vision", 0) + weights.get("projector", 0),
        row_bytes=kv_cache(planned.config, backend, recipe.kv, 1),
        chunk=min(recipe.chunk, planned.context),
        kept=kept,
    )


def with_grid(planned: Plan, grid: Grid) -> Plan:
    """The same checkpoint, its pictures cut into at most `grid` tiles."""
    assert planned.image is not None
    columns, rows = grid
    kept = tuple(each for each in planned.image.grids if each[0] <= columns and each[1] <= rows)
    return replace(planned, image=planned.image.model_copy(update={"grids": kept, "max_tiles": columns * rows}))


def prompt_size(planned: Plan, prompt: Prompt) -> tuple[int, int]:
    """Tiles and tokens. The few tokens between tiles are left out."""
    if planned.image is None:
        return 0, prompt.text
    tiles = tile_count(planned.image, *choose_grid(*prompt.picture, planned.image))
    return tiles, prompt.text + tiles * planned.config.tokens_per_tile


def _largest(rule: ImageRule | None) -> Grid | None:
    if rule is None or not rule.grids:
        return None
    return max(columns for columns, _ in rule.grids), max(rows for _, rows in rule.grids)


def _speed(passes: Passes, device: Device, tiles: int, tokens: int, context: int) -> Speed:
    return Speed(
        vision_seconds=vision_seconds(passes, device, tiles),
        prefill_seconds=prefill_seconds(passes, device, tokens),
        tokens_per_second=tokens_per_second(passes, device, tokens),
        tokens_per_second_full=tokens_per_second(passes, device, tokens, context - tokens),
    )
