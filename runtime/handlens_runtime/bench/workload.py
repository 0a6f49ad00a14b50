"""What is measured: prompt lengths and cache depths, named as llama-bench names them."""

from __future__ import annotations

from dataclasses import dataclass

from handlens_runtime.errors import OptionError
from handlens_runtime.manifest import Manifest

PROMPTS = (128, 512, 2048)
DEPTHS = (16, 512, 2048)
STEPS = 16
"""Tokens decoded at a depth."""


@dataclass(frozen=True)
class Workload:
    """What to measure; lengths in tokens."""

    prompts: tuple[int, ...] = PROMPTS
    depths: tuple[int, ...] = DEPTHS
    repeat: int = 3
    """Times that each test is measured, in turns with the others'."""

    def __post_init__(self) -> None:
        """Raise OptionError for lengths and counts that measure nothing."""
        if self.repeat < 1:
            raise OptionError(f"--repeat is {self.repeat}; choose at least 1.")
        for name, lengths, least in (("--prompts", self.prompts, 1), ("--depths", self.depths, 0)):
            wrong = [length for length in lengths if length < least]
            if wrong:
                raise OptionError(f"{name} holds {wrong[0]}; choose numbers of at least {least}.")


@dataclass(frozen=True)
class Trial:
    """One line of the table."""

    tokens: int
    """Of the prompt, or decoded."""
    depth: int | None = None
    """Tokens in the cache before the first is decoded; None for a prompt."""

    @property
    def name(self) -> str:
        """`pp512`, or `tg16 @ d512`."""
        return f"pp{self.tokens}" if self.depth is None else f"tg{self.tokens} @ d{self.depth}"

    @property
    def end(self) -> int:
        """Tokens in the cache afterwards."""
        return self.tokens + (self.depth or 0)


def fitting(workload: Workload, manifest: Manifest) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """The tests that the bundle's context holds, and a sentence for those that it does not.

    Raises OptionError where it holds none.
    """
    asked = [Trial(tokens) for tokens in sorted(set(workload.prompts))]
    asked += [Trial(STEPS, depth) for depth in sorted(set(workload.depths))]
    sizes = manifest.sizes
    # A prompt whose tokens see all of it is prefilled in one pass.
    longest = sizes.context if manifest.causal else min(sizes.context, sizes.max_chunk)
    fits = {test: test.end <= sizes.context and (test.depth or test.tokens) <= longest for test in asked}
    kept, left = ([test for test in asked if fits[test] is wanted] for wanted in (True, False))
    if not kept:
        raise OptionError(
            f"{manifest.name} holds {longest} tokens, too few for any of {', '.join(test.name for test in left)}; "
            "name shorter ones with --prompts and --depths."
        )
    if not left:
        return tuple(kept), ()
    names = ", ".join(test.name for test in left)
    return tuple(kept), (
        f"{names} left out: the context is {longest}; export with --context {max(test.end for test in left)} or more.",
    )
