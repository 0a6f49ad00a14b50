"""golden.json beside what this machine answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from handlens_runtime import backends
from handlens_runtime.backends.base import Backend
from handlens_runtime.bundle import Bundle
from handlens_runtime.engine import Engine
from handlens_runtime.errors import BundleError
from handlens_runtime.golden.asking import engine_for, first_scores, greedy
from handlens_runtime.golden.schema import GOLDEN, Case, PictureName, read
from handlens_runtime.manifest import BackendName

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole done, 0 to 1."""


@dataclass(frozen=True)
class Result:
    """One backend's answer here, beside the recorded one."""

    backend: BackendName
    prompt: str
    picture: PictureName | None
    difference: float
    """Largest difference of the five log-probabilities, in nats."""
    limit: float
    same_tokens: int
    """Tokens before the first departure: no verdict, for one near tie turns all that follows."""
    tokens: int
    """Tokens recorded."""
    passed: bool


@dataclass(frozen=True)
class Replay:
    """What `replay` found."""

    results: tuple[Result, ...]
    not_installed: tuple[BackendName, ...] = ()
    """Backends of the bundle that were left out, for this machine has nothing to run them with."""
    left_out: tuple[str, ...] = ()
    """Cases that were not recorded, and why."""

    @property
    def passed(self) -> bool:
        """Every case passed."""
        return all(result.passed for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"passed": self.passed, **asdict(self)}


def replay(bundle: Bundle, backend: BackendName | Backend | None = None, progress: Progress | None = None) -> Replay:
    """Ask the bundle's programs what golden.json asks, and compare.

    A case passes if each of the five log-probabilities is within the recorded limit, and the first token is the
    recorded one, unless that led the second by no more than two limits: then either may come first. `backend`: one of
    them, or an instance; all that are installed where left out.
    Raises BundleError where there is nothing to replay, BackendError where a program cannot run.
    """
    golden = read(bundle)
    report = progress or (lambda _stage, _share: None)
    installed = backends.installed(bundle)
    # Where nothing is installed, loading the first gives the sentence.
    usable: Sequence[BackendName] = installed or tuple(bundle.manifest.backends)[:1]
    chosen: Sequence[BackendName | Backend] = usable if backend is None else (backend,)
    results: list[Result] = []
    for index, one in enumerate(chosen):
        name: BackendName = "executorch" if (one if isinstance(one, str) else one.name) == "executorch" else "onnx"
        report(f"load {name}", index / len(chosen))
        engine = engine_for(bundle, one)
        for done, case in enumerate(golden.cases):
            report(f"replay {name}", (index + done / len(golden.cases)) / len(chosen))
            if name in case.answers:
                results.append(_compare(case, name, engine))
        del engine
    if not results:
        reason = " ".join(golden.left_out) or "its cases are for other backends."
        raise BundleError(f"{bundle.file(GOLDEN)} has nothing to replay: {reason}")
    report("replay", 1.0)
    missing = () if backend is not None else tuple(name for name in bundle.manifest.backends if name not in usable)
    return Replay(tuple(results), missing, golden.left_out)


def _compare(case: Case, name: BackendName, engine: Engine) -> Result:
    expected = case.answers[name]
    scores = first_scores(engine, case.prompt, case.picture)
    tokens = greedy(engine, case.prompt, case.picture, len(expected.tokens))
    difference = max(abs(float(scores[one.id]) - one.logprob) for one in expected.best)
    # Each of the two may move by the limit, towards the other.
    near_tie = len(expected.best) > 1 and expected.best[0].logprob - expected.best[1].logprob <= 2 * expected.limit
    return Result(
        backend=name,
        prompt=case.prompt,
        picture=case.picture,
        difference=difference,
        limit=expected.limit,
        same_tokens=_same(tokens, expected.tokens),
        tokens=len(expected.tokens),
        passed=difference <= expected.limit and (tokens[:1] == expected.tokens[:1] or near_tie),
    )


def _same(found: Iterable[int], expected: Iterable[int]) -> int:
    """How many tokens are equal before the first that differs."""
    count = 0
    for ours, theirs in zip(found, expected, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
