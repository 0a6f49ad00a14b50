"""golden.json: recorded by one backend, replayed by another."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from handlens_runtime import backends
from handlens_runtime.bundle import Bundle, seal
from handlens_runtime.chat import Message
from handlens_runtime.errors import BackendError, BundleError
from handlens_runtime.golden import GOLDEN, Golden, pattern, read, record, replay
from handlens_runtime.golden.asking import engine_for, first_scores
from handlens_runtime.golden.record import limit
from handlens_runtime.images.decode import digest


class Steady:
    """Logits that move smoothly with the rows, as a network's do: a millionth stays about a millionth."""

    name = "onnx"
    kv_bytes, warnings = 0, ()

    def __init__(self, bundle: Bundle) -> None:
        self.rule, self.sizes = bundle.manifest.image, bundle.manifest.sizes
        self.cache = np.zeros((self.sizes.context, self.sizes.width))
        self.shift = 0.0
        """Added to the logits of half of the vocabulary, which moves every log-probability."""
        self.favourite: int | None = None
        """An id that always leads by a hair."""

    def encode(self, tiles):  # (n, 3, t, t)
        features = tiles.reshape(len(tiles), self.rule.tokens_per_tile, -1)[:, :, : self.sizes.width]
        return features, features

    def embed(self, ids):
        return np.sin(ids[:, None] * np.arange(1, self.sizes.width + 1)).astype(np.float32)

    def decode(self, rows, position):
        end = position + len(rows)
        self.cache[position:end] = rows
        weights = np.sin(np.outer(np.arange(1, self.sizes.vocab_size + 1), np.arange(1, self.sizes.width + 1)))
        logits = 5 * weights @ self.cache[:end].mean(axis=0)  # (vocab_size,)
        logits[::2] += self.shift
        if self.favourite is not None:
            logits[self.favourite] = logits.max() + 0.01
        return logits.astype(np.float32)


def write(folder: Path, golden: str) -> Bundle:
    """The bundle of `folder` with this golden.json, sealed again."""
    (folder / GOLDEN).write_text(golden)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entry = {"size": len(golden.encode()), "sha256": hashlib.sha256(golden.encode()).hexdigest()}
    content = json.dumps({**manifest, "files": {**manifest["files"], GOLDEN: entry}}).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_bytes(seal(content))
    return Bundle.load(folder)


@pytest.fixture
def recorded(make_folder) -> Bundle:
    folder = make_folder()
    bundle = Bundle.load(folder)
    return write(folder, record(bundle, [Steady(bundle)]).model_dump_json())


def test_another_machine_that_computes_alike_passes(recorded: Bundle) -> None:
    found = replay(recorded, Steady(recorded))
    assert [(result.prompt, result.picture) for result in found.results] == [
        ("What is the capital of France?", None),
        ("Count from one to ten.", None),
        ("What is in this picture?", "pattern"),
    ]
    assert found.passed
    assert all(result.difference < 1e-3 and result.same_tokens == result.tokens for result in found.results)
    assert json.loads(json.dumps(found.to_json()))["passed"] is True


def test_shifted_logits_fail(recorded: Bundle) -> None:
    backend = Steady(recorded)
    backend.shift = 0.5
    found = replay(recorded, backend)
    assert not found.passed
    assert all(result.difference > result.limit for result in found.results)


def test_another_first_token_fails_only_where_it_is_no_near_tie(recorded: Bundle) -> None:
    case = read(recorded).cases[0]
    backend = Steady(recorded)
    scores = first_scores(engine_for(recorded, backend), case.prompt, None)
    order = np.argsort(-scores)
    leader, behind = int(order[0]), int(order[-1])
    backend.favourite = int(order[len(order) // 2])
    lead = float(scores[leader] - scores[behind])

    def verdict(limit: float) -> bool:
        best = tuple({"id": token, "logprob": float(scores[token])} for token in (leader, behind))
        raw = {"tokens": (leader,), "best": best, "limit": limit}
        golden = {"cases": [{"prompt": case.prompt, "answers": {"onnx": raw}}]}
        (result,) = replay(write(recorded.path, json.dumps(golden)), backend).results
        # Both log-probabilities are within the limit: only the rule of the first token decides.
        assert result.difference < limit and result.same_tokens == 0
        return result.passed

    assert lead > 2
    assert verdict(limit=lead / 2 + 0.01)
    assert not verdict(limit=lead / 2 - 0.01)


def test_a_recording_is_the_same_from_any_folder_and_on_any_day(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def dated(manifest: dict) -> None:
        manifest["chat"]["template"] = '{{ strftime_now("%d %B %Y") }}' + manifest["chat"]["template"]

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2031, 5, 17)

    texts = []
    for name in ("one", "two"):
        bundle = Bundle.load(make_folder(name=name, vision=False, change=dated))
        backend = Steady(bundle)
        texts.append(record(bundle, [backend]).model_dump_json())
        monkeypatch.setattr("handlens_runtime.chat.datetime", Tomorrow)
    assert texts[0] == texts[1]


def test_a_case_that_does_not_fit_is_left_out_with_its_reason(make_folder) -> None:
    def small(manifest: dict) -> None:
        manifest["sizes"]["context"] = 45

    bundle = Bundle.load(make_folder(change=small))
    golden = record(bundle, [Steady(bundle)])
    assert [case.prompt for case in golden.cases] == ["Count from one to ten."]
    assert len(golden.left_out) == 2
    assert all("context holds 45" in reason for reason in golden.left_out)


def test_the_limit_grows_with_the_programs_own_noise() -> None:
    still = np.log(np.array([0.5, 0.3, 0.2]))
    assert limit(still, [still + 0.01, still - 0.02], [0, 1]) == 0.1
    # The third is not among the best: its noise does not count.
    assert limit(still, [still + np.array([0.0, -0.2, 9.0])], [0, 1]) == pytest.approx(0.6)


def test_noise_of_the_program_itself_is_recorded(make_engine) -> None:
    # The common fake answers anything else as soon as a row moves by a millionth.
    engine = make_engine()
    bundle, chaotic = engine.bundle, engine.backend
    assert all(case.answers["onnx"].limit > 1 for case in record(bundle, [chaotic]).cases)
    assert all(case.answers["onnx"].limit == 0.1 for case in record(bundle, [Steady(bundle)]).cases)


def test_the_schema_goes_round_and_knows_its_keys(recorded: Bundle) -> None:
    golden = read(recorded)
    assert Golden.model_validate_json(golden.model_dump_json()) == golden
    raw = golden.model_dump(mode="json")
    for place in (
        raw,
        raw["cases"][0],
        raw["cases"][0]["answers"]["onnx"],
        raw["cases"][0]["answers"]["onnx"]["best"][0],
    ):
        place["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            Golden.model_validate_json(json.dumps(raw))
        del place["surprise"]


def test_the_picture_is_the_one_that_ports_draw() -> None:
    # Ports draw it by the formula: another pixel would make every phone fail.
    assert digest(pattern()) == "11187c9985e22f83a22d8e62aff15dab1532e860aa213aa35229c48d89dcd0cf"
    spots = [(0, 0), (299, 199), (200, 20), (109, 89), (110, 90), (150, 50), (224, 124)]
    assert [pattern().getpixel(spot) for spot in spots] == [
        (0, 0, 0),
        (255, 255, 255),
        (170, 25, 112),
        (220, 30, 30),
        (93, 115, 102),
        (250, 250, 250),
        (20, 20, 120),
    ]


def test_what_cannot_be_replayed_is_one_sentence(make_folder, recorded: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no golden\.json.*--against"):
        replay(Bundle.load(make_folder("older")))
    with pytest.raises(BundleError, match=r"golden\.json does not follow the schema at cases"):
        replay(write(recorded.path, '{"cases": 1}'))
    with pytest.raises(BundleError, match="nothing to replay: it was too long"):
        replay(write(recorded.path, '{"cases": [], "left_out": ["it was too long"]}'), Steady(recorded))


def test_a_golden_file_of_another_bundle_is_refused(recorded: Bundle) -> None:
    raw = read(recorded).model_dump(mode="json")
    raw["cases"][0]["answers"]["onnx"]["best"][0]["id"] = 99_999
    with pytest.raises(BundleError, match="a token beyond the bundle's"):
        read(write(recorded.path, json.dumps(raw)))
    raw["cases"][0]["answers"]["onnx"]["best"][0]["id"] = 0
    raw["cases"][2]["picture_sha256"] = "0" * 64
    with pytest.raises(BundleError, match="another picture"):
        read(write(recorded.path, json.dumps(raw)))


def test_backends_that_are_not_installed_are_named(recorded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = recorded.manifest.backends["onnx"]
    both = recorded.manifest.model_copy(update={"backends": {"executorch": graphs, "onnx": graphs}})
    bundle = Bundle(recorded.path, both)
    monkeypatch.setattr(backends, "_installed", lambda package: package == "onnxruntime")
    monkeypatch.setattr(backends, "load", lambda bundle, _name: Steady(bundle))
    found = replay(bundle)
    assert {result.backend for result in found.results} == {"onnx"}
    assert found.not_installed == ("executorch",)
    assert replay(bundle, "onnx").not_installed == ()


def test_a_bundle_with_nothing_installed_says_what_to_install(
    recorded: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_bundle, name):
        raise BackendError(f"The {name} backend needs a package.")

    monkeypatch.setattr(backends, "_installed", lambda _package: False)
    monkeypatch.setattr(backends, "load", refuse)
    with pytest.raises(BackendError, match="The onnx backend needs a package"):
        replay(recorded)


def test_next_logits_are_those_that_the_first_token_comes_from(make_engine) -> None:
    engine = make_engine()
    messages = [Message("user", "Hello", images=(pattern(),))]
    logits = engine.next_logits(messages)
    assert logits.shape == (engine.bundle.manifest.sizes.vocab_size,)
    assert int(logits.argmax()) == next(engine.generate(messages)).id


def test_replaying_imports_no_torch() -> None:
    code = "import sys, handlens_runtime.golden; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "runtime"}).returncode == 0
