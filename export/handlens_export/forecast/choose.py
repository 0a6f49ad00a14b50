"""Given limits, the largest grid, the finest cache and the longest context that keep them; or why none does.

Memory falls with the context and the cache's bits, time to the first token with the tiles of a picture. So pictures
are kept as large as the time allows, and then the context as long as the memory allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.describe import Plan, longest_pass, plan
from handlens_export.errors import UnsupportedError
from handlens_export.forecast.device import Device
from handlens_export.forecast.forecast import Forecast, Prompt, forecast, prompt_size, with_grid
from handlens_export.forecast.headers import shapes_of
from handlens_export.recipe import Recipe
from handlens_runtime.images.tiling import Grid, choose_grid

SHORTEST = 256
"""Tokens of the shortest context that is still tried; each is half of the one before."""
DECIMALS = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """What must not be exceeded; None is no limit."""

    memory: int | None = None
    """Bytes at the device's peak."""
    first_token: float | None = None
    """Seconds from the picture to the first token."""

    def __post_init__(self) -> None:
        for flag, value in (("--ram", self.memory), ("--ttft", self.first_token)):
            if value is not None and not value > 0:
                raise UnsupportedError(f"{flag} is {value}, but a limit is more than 0.")

    def kept(self, found: Forecast) -> bool:
        """Whether at least one backend keeps every limit."""
        return any(self._kept_on(found, needs, first) for needs, first in _needs(found))

    def _kept_on(self, found: Forecast, peak: int, first: float | None) -> bool:
        memory = self.memory is None or peak <= self.memory
        return memory and (self.first_token is None or (first is not None and first <= self.first_token))


def choose(checkpoint: Checkpoint, recipe: Recipe, prompt: Prompt, device: Device | None, limits: Limits) -> Forecast:
    """The first forecast, from the largest choices down, that keeps the limits.

    Without limits, the recipe's own. Raises UnsupportedError, in one sentence that says what would fit.
    """
    if limits.first_token is not None and device is None:
        raise UnsupportedError("--ttft needs a device to predict a time on; name one with --device.")
    full = plan(checkpoint, recipe)
    if limits == Limits():
        return forecast(full, recipe, prompt, device)
    tried: list[Forecast] = []
    for found in _candidates(full, recipe, prompt, device):
        if limits.kept(found):
            return found
        tried.append(found)
    raise _refusal(tried, prompt, limits)


def _candidates(full: Plan, recipe: Recipe, prompt: Prompt, device: Device | None) -> Iterator[Forecast]:
    shapes = shapes_of(full)
    caches = (recipe,) if recipe.kv == "int8" else (recipe, replace(recipe, kv="int8"))
    for grid in _grids(full, prompt):
        seen = full if grid is None else with_grid(full, grid)
        for context in _contexts(full.context):
            for each in caches:
                shorter = replace(seen, context=context, max_chunk=longest_pass(full.config, each, context))
                if prompt_size(shorter, prompt)[1] < context:  # else a smaller grid may fit
                    yield forecast(shorter, replace(each, context=context), prompt, device, shapes)


def _grids(full: Plan, prompt: Prompt) -> list[Grid | None]:
    """The checkpoint's own grid, then the tightest limits that give this picture fewer and fewer tiles.

    Tightest, so that no picture of another shape takes longer.
    """
    if full.image is None or not full.image.grids:
        return [None]
    fewest: dict[int, Grid] = {}
    for grid in sorted(full.image.grids, key=lambda grid: grid[0] * grid[1]):
        columns, rows = choose_grid(*prompt.picture, with_grid(full, grid).image)  # type: ignore[arg-type]
        fewest.setdefault(columns * rows, grid)
    return [None, *(fewest[tiles] for tiles in sorted(fewest, reverse=True))]


def _contexts(longest: int) -> Iterator[int]:
    context = longest
    yield context
    while context // 2 >= SHORTEST:
        context //= 2
        yield context


def _needs(found: Forecast) -> list[tuple[int, float | None]]:
    """Peak and time to the first token of each backend."""
    return [
        (needs.peak, found.speeds[backend].first_token_seconds if backend in found.speeds else None)
        for backend, needs in found.memory.backends.items()
    ]


def _refusal(tried: list[Forecast], prompt: Prompt, limits: Limits) -> UnsupportedError:
    if not tried:
        return UnsupportedError(
            f"No grid and context of this checkpoint hold a prompt of {prompt.text} tokens beside its picture; "
            "choose a larger --context or a shorter prompt."
        )
    within_time = [f for f in tried if Limits(first_token=limits.first_token).kept(f)]
    least = min(within_time or tried, key=lambda f: min(peak for peak, _ in _needs(f)))
    needs = [f"--ram {_gigabytes(min(peak for peak, _ in _needs(least)))}"] if limits.memory is not None else []
    asked = [f"--ram {_gigabytes(limits.memory)}"] if limits.memory is not None else []
    if limits.first_token is not None:
        first = min(first for _, first in _needs(least) if first is not None)
        if not within_time:
            needs.append(f"--ttft {first + 0.005:.2f}")
        asked.append(f"--ttft {limits.first_token:g}")
    grid = f"tiles of at most {least.max_grid[0]}x{least.max_grid[1]}, " if least.max_grid else ""
    return UnsupportedError(
        f"{least.name} does not fit {' and '.join(asked)}; with {grid}an {least.recipe.kv} cache and a context of "
        f"{least.context} it would fit {' and '.join(needs)}."
    )


def _gigabytes(count: int) -> str:
    """Rounded up, so that what is named really fits."""
    return f"{-(-count * 1000 // DECIMALS) / 1000:g}GB" if count >= 10_000_000 else f"{-(-count // 1000)}kB"
