"""One backend's program beside its reference, on one prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from handlens_export.check.report import Distance, Finding, Stage
from handlens_export.describe import Plan
from handlens_export.network.network import Network
from handlens_export.prompt_rows import PreparedPrompt, embed
from handlens_runtime.backends.base import Array, Backend
from handlens_runtime.bundle import Bundle
from handlens_runtime.images.decode import open_image
from handlens_runtime.images.preprocess import prepare
from handlens_runtime.manifest import BackendName

MIN_COSINE = 0.999
"""Least cosine between a program's and the reference's row: kernels sum in another order and round a few apart."""
GREY_LEVEL = 1.0
"""Most difference of a tile's pixel, in grey levels of 255."""
DECODE_STEPS = 8


@dataclass(frozen=True)
class Case:
    """One prompt, as the runtime makes it, and the next token's logits of the float checkpoint."""

    name: str
    picture: Path | None
    prepared: PreparedPrompt
    float_logits: NDArray[np.float32]


class Comparison:
    """One backend on one prompt."""

    def __init__(
        self, bundle: Bundle, planned: Plan, name: BackendName, backend: Backend, network: Network, case: Case
    ) -> None:
        self._name = name
        self._bundle, self._planned, self._backend, self._network, self._case = bundle, planned, backend, network, case
        self._rows = embed(network, case.prepared)
        self.distance: Distance

    def findings(self) -> list[Finding]:
        """All stages of this prompt."""
        found: list[Finding] = []
        if self._case.picture is not None:
            found += self._pictures(self._case.picture)
        found += self._embedding()
        found += self._decoder()
        return found

    def _pictures(self, path: Path) -> Iterator[Finding]:
        """Preprocessing by the bundle's rule against the checkpoint's; encoder and projector on the latter's tiles."""
        ours, theirs = self._bundle.manifest.image, self._planned.image
        assert ours is not None and theirs is not None
        found = prepare(open_image(path, ours.max_pixels, ours.background), ours).pixels
        expected = prepare(open_image(path, theirs.max_pixels, theirs.background), theirs).pixels
        if found.shape == expected.shape:
            grey = np.abs(found - expected).max(axis=(0, 2, 3)) * np.array(theirs.std) / theirs.rescale
            yield self._finding("preprocessing", "grey levels", float(grey.max()))
        else:
            yield self._finding("preprocessing", "grey levels", float("inf"))
        worst_features, worst_rows = 1.0, 1.0
        for tile in expected:  # one at a time, for the reference's memory
            rows, features = self._backend.encode(tile[None])
            with torch.no_grad():
                reference = self._network.encode(torch.from_numpy(tile[None]))[1].numpy()
                # The projector is judged on the program's own features, so that the encoder's fault is not its own.
                projector = self._network.projector
                assert projector is not None
                projected = projector(torch.from_numpy(features)).numpy()
            worst_features = min(worst_features, _cosine(features, reference))
            worst_rows = min(worst_rows, _cosine(rows, projected))
        yield self._finding("vision encoder", "cosine", worst_features)
        yield self._finding("projector", "cosine", worst_rows)

    def _embedding(self) -> Iterator[Finding]:
        keys = self._case.prepared.prompt.keys
        text = [index for index, key in enumerate(keys) if not isinstance(key, tuple)]
        ids = np.array([keys[index] for index in text], np.int64)
        rows = self._backend.embed(ids)
        if rows.ndim == 2:  # a text program embeds inside: prefill judges it
            yield self._finding("embedding", "cosine", _cosine(rows, self._rows[0, text].numpy()))

    def _decoder(self) -> Iterator[Finding]:
        """Prefill by the engine's chunks, then steps of one token along the reference's own answer."""
        sizes, rows = self._bundle.manifest.sizes, self._rows
        count = rows.shape[1]
        chunk = sizes.chunk if self._bundle.manifest.causal else count
        worst = 1.0
        for begin in range(0, count, chunk):
            end = min(begin + chunk, count)
            found, expected = self._both(rows[:, begin:end], self._ids(begin, end), begin)
            worst = min(worst, _cosine(found, expected))
        self.distance = self._distance(found)
        yield self._finding("prefill", "cosine", worst)
        worst = 1.0
        for position in range(count, min(count + DECODE_STEPS, sizes.context)):
            token = np.array([int(expected.argmax())], np.int64)
            with torch.no_grad():
                row = self._network.decoder.embedding(torch.from_numpy(token)[None])
            found, expected = self._both(row, token, position)
            worst = min(worst, _cosine(found, expected))
        yield self._finding("decode", "cosine", worst)

    def _ids(self, begin: int, end: int) -> NDArray[np.int64]:
        keys = self._case.prepared.prompt.keys[begin:end]
        return np.array([0 if isinstance(key, tuple) else key for key in keys], np.int64)

    def _both(self, rows: torch.Tensor, ids: NDArray[np.int64], position: int) -> tuple[Array, Array]:
        """Logits of the last row: the program's and the reference's, on the same rows."""
        with torch.no_grad():
            expected = self._network.logits(rows, position)[0, -1].numpy()
        inside = self._backend.embed(ids[:1]).ndim == 1
        return self._backend.decode(ids if inside else rows[0].numpy(), position), expected

    def _distance(self, found: Array) -> Distance:
        expected = self._case.float_logits
        p, q = (torch.from_numpy(np.asarray(x)).double().log_softmax(-1) for x in (expected, found))
        return Distance(
            backend=self._name,
            prompt=self._case.name,
            cosine=_cosine(found, expected),
            kl=float((p.exp() * (p - q)).sum()),
            same_token=int(found.argmax()) == int(expected.argmax()),
        )

    def _finding(self, stage: Stage, measure: Literal["cosine", "grey levels"], value: float) -> Finding:
        limit = MIN_COSINE if measure == "cosine" else GREY_LEVEL
        passed = value >= limit if measure == "cosine" else value <= limit
        return Finding(self._name, stage, self._case.name, measure, value, limit, passed)


def _cosine(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The least cosine between rows (…, width); 0 where the program's are not numbers or have another shape."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return 0.0
    a = np.asarray(found, np.float64).reshape(-1, found.shape[-1])
    b = np.asarray(expected, np.float64).reshape(-1, found.shape[-1])
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).max(axis=1) == 0) & (np.abs(b).max(axis=1) == 0)
    return float(np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30)).min())
