"""What a sweep tries: `rotate+rsq` at 4 bits in groups of 32, and the like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from handlens_export.errors import UnsupportedError
from handlens_export.recipe import METHODS, Recipe

TRANSFORMS = ("rotate", "smooth")


@dataclass(frozen=True)
class Variant:
    """One recipe, and what the table calls it."""

    method: str
    """As it was asked for, transforms before it: `rotate+rsq`."""
    recipe: Recipe

    @property
    def group(self) -> int | None:
        """Weights that share a scale; None is one scale per output row."""
        return self.recipe.group if self.recipe.bits < 8 else None

    @property
    def name(self) -> str:
        """`rotate+rsq, 4 bits, groups of 32`."""
        scales = "a scale per row" if self.group is None else f"groups of {self.group}"
        return f"{self.method}, {self.recipe.bits} bits, {scales}"


def variants(
    methods: Sequence[str], bits: Sequence[int], groups: Sequence[int], base: Recipe | None = None
) -> tuple[Variant, ...]:
    """All combinations, each once. Raises UnsupportedError for what no export can do, and where there are none."""
    found: dict[str, Variant] = {}
    for count in bits:
        for group in groups:
            for method in methods:
                one = _variant(method, count, group, base or Recipe())
                found.setdefault(one.name, one)
    if not found:
        raise UnsupportedError("Nothing was given to try; name at least one method, one number of bits and one group.")
    return tuple(found.values())


def _variant(method: str, bits: int, group: int, base: Recipe) -> Variant:
    *transforms, last = method.split("+")
    known = next((name for name in METHODS if name == last), None)
    if known is None or not set(transforms) <= set(TRANSFORMS) or len(set(transforms)) < len(transforms):
        raise UnsupportedError(
            f"--methods names '{method}'; give {', '.join(METHODS)}, each with rotate+ or smooth+ before it if wanted."
        )
    rotate, smooth = ("rotate" in transforms, "smooth" in transforms)
    recipe = replace(base, method=known, bits=bits, group=group, rotate=rotate, smooth=smooth)
    return Variant(method, recipe)
