"""The schema of `golden.json`, and nothing about how it is made or used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import BundleError
from handlens_runtime.golden.pattern import pattern
from handlens_runtime.images.decode import digest
from handlens_runtime.manifest import BackendName

GOLDEN = "golden.json"

PictureName = Literal["pattern"]
Id = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidate(_Strict):
    """One possible next token."""

    id: Id
    logprob: Annotated[float, Field(le=0)]
    """Natural logarithm of its probability under the model itself, before any sampling option."""


class Answer(_Strict):
    """What one backend answered."""

    tokens: Annotated[tuple[Id, ...], Field(min_length=1)]
    """Greedy, without repetition penalty, from an empty cache; up to 16, fewer where the model ended its answer."""
    best: Annotated[tuple[Candidate, ...], Field(min_length=1)]
    """The five most probable first tokens, most probable first."""
    limit: Annotated[float, Field(gt=0)]
    """Most that a log-probability may differ elsewhere, in nats: 0.1, or more where this program's own rounding noise
    is larger (`record.limit`)."""


class Case(_Strict):
    """One conversation: a single user message."""

    prompt: str
    """The message's text, before the chat template."""
    picture: PictureName | None = None
    """The picture shown with it: `pattern()`."""
    picture_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 over the ASCII text "RGB 300 200 " and the pixels by rows, three bytes each (`images.decode.digest`)."""
    answers: dict[BackendName, Answer]


class Golden(_Strict):
    """`golden.json`."""

    cases: tuple[Case, ...]
    left_out: tuple[str, ...] = ()
    """Why a case is not here, in the engine's own sentence: with a small context a picture may not fit."""


def read(bundle: Bundle) -> Golden:
    """The bundle's golden.json. Raises BundleError where it has none, or one that is not for this bundle."""
    if GOLDEN not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} has no {GOLDEN}, so there is nothing to replay; export it again, or compare it with its "
            "checkpoint (--against CKPT)."
        )
    path = bundle.file(GOLDEN)
    try:
        golden = Golden.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top level"
        raise BundleError(
            f"{path} does not follow the schema at {place} ({first['msg']}); export the bundle again."
        ) from error
    vocabulary = bundle.manifest.sizes.vocab_size
    answers = [answer for case in golden.cases for answer in case.answers.values()]
    if any(candidate.id >= vocabulary for answer in answers for candidate in answer.best):
        raise BundleError(f"{path} names a token beyond the bundle's {vocabulary}; export the bundle again.")
    if any(case.picture and case.picture_sha256 != digest(pattern()) for case in golden.cases):
        raise BundleError(
            f"{path} was recorded with another picture than this HandLens draws; install the one that made the bundle, "
            "or export the bundle again."
        )
    return golden
