"""What a check found: stage by stage, and how far rounding itself moved the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from handlens_export.quantize.sensitivity import Sensitivity
from handlens_runtime.manifest import BackendName

Stage = Literal["preprocessing", "vision encoder", "projector", "embedding", "prefill", "decode"]
STAGES: tuple[Stage, ...] = ("preprocessing", "vision encoder", "projector", "embedding", "prefill", "decode")


@dataclass(frozen=True)
class Finding:
    """One stage of one backend on one prompt."""

    backend: BackendName
    stage: Stage
    prompt: str
    """The photograph's name, or the beginning of the text."""
    measure: Literal["cosine", "grey levels"]
    value: float
    """The worst row's cosine, or the largest difference."""
    limit: float
    """0.999, or lower where the reference itself is noisier than that (`comparison.NOISE_FACTOR`)."""
    passed: bool


@dataclass(frozen=True)
class Distance:
    """How far rounding, and what was left out of the prompt, moved the next token's logits from the float checkpoint's,
    which saw all of it: no verdict, for information."""

    backend: BackendName
    prompt: str
    cosine: float
    kl: float
    """Kullback-Leibler divergence from the float distribution, in nats; not a number where the logits are none."""
    same_token: bool
    sparse: bool = False
    """The prompt's tokens were chosen from, so that some may have been left out."""


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    findings: tuple[Finding, ...]
    distances: tuple[Distance, ...]
    sensitivities: tuple[Sensitivity, ...] = ()
    """What each layer's attention and MLP cost, alone rounded as in the bundle; empty where not asked for."""

    @property
    def passed(self) -> bool:
        """No stage departs."""
        return all(finding.passed for finding in self.findings)

    def departs(self, backend: BackendName) -> Stage | None:
        """The first stage of a backend's program that departs from its reference; None where none does."""
        failed = {f.stage for f in self.findings if f.backend == backend and not f.passed}
        return next((stage for stage in STAGES if stage in failed), None)

    def to_json(self) -> dict[str, Any]:
        """For scripts; JSON has null for what is not a number."""
        names = dict.fromkeys(finding.backend for finding in self.findings)
        return {
            "passed": self.passed,
            "departs": {name: self.departs(name) for name in names},
            "findings": [asdict(finding) for finding in self.findings],
            "distances": [{**asdict(one), "kl": one.kl if isfinite(one.kl) else None} for one in self.distances],
            "sensitivities": [
                {**asdict(one), "kl": one.kl if isfinite(one.kl) else None} for one in self.sensitivities
            ],
        }
