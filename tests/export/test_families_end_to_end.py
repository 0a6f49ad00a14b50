"""Every family's tiny checkpoint, exported to both backends: loaded, checked on photographs, asked a question."""

from __future__ import annotations

import getpass
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handlens_export.check import STAGES, check
from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import embed, prepare_prompt
from handlens_export.reference import recipe_of, reference
from handlens_runtime import backends
from handlens_runtime.bundle import TOKENIZER, Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.options import Options
from handlens_runtime.tokenizer import Tokenizer

TEXT = ("llama", "qwen2", "gemma")
SEEING = ("bluelm_v", "smolvlm", "idefics3", "paligemma")
ALWAYS = ("bluelm_v", "paligemma", "llama")
"""A causal one with pictures, one that is not causal, one without pictures; `make verify` runs all seven."""
FAMILIES = [pytest.param(f, marks=[] if f in ALWAYS else [pytest.mark.long]) for f in (*SEEING, *TEXT)]
BACKENDS = ("executorch", "onnx")
TOKENS = 16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_answers_like_its_checkpoint_on_every_photograph(exported, family):
    made = exported(family)
    report = check(made.bundle, made.checkpoint)
    assert report.passed, [finding for finding in report.findings if not finding.passed]
    for backend in BACKENDS:
        assert report.departs(backend) is None
        findings = [finding for finding in report.findings if finding.backend == backend]
        stages = set(STAGES) if family in SEEING else {"embedding", "prefill", "decode"}
        if family in TEXT and backend == "executorch":
            stages.remove("embedding")  # inside the program
        assert {finding.stage for finding in findings} == stages
        if family in SEEING:
            asked = {finding.prompt for finding in findings if finding.stage == "vision encoder"}
            assert asked == {path.name for path in photographs()} and len(asked) >= 5
        assert {d.prompt for d in report.distances if d.backend == backend} == {f.prompt for f in findings}


class Recording:
    """A backend that keeps the logits of every pass, by the position after its last row."""

    def __init__(self, inner):
        self.name, self.kv_bytes, self.encode, self.embed = inner.name, inner.kv_bytes, inner.encode, inner.embed
        self.warnings = inner.warnings
        self._inner = inner
        self.logits = {}

    def decode(self, rows, position):
        self.logits[position + len(rows)] = logits = self._inner.decode(rows, position)
        return logits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_says_what_the_reference_would(exported, family, backend):
    """Greedy tokens equal, or the first departure lies within noise: near ties are decided by the last bits."""
    made = exported(family)
    bundle = Bundle.load(made.bundle)
    running = Recording(backends.load(bundle, backend))
    pictures = (photographs()[1],) if family in SEEING else ()
    messages = [Message("user", "What is this?", images=pictures)]
    options = Options(max_tokens=TOKENS, temperature=0.0, repetition_penalty=1.0)
    answer = [token.id for token in Engine(bundle, running).generate(messages, options)]

    planned = plan(read(made.checkpoint), recipe_of(bundle.manifest))
    network = reference(bundle, planned, backend)
    prepared = prepare_prompt(bundle.manifest, Tokenizer(bundle.file(TOKENIZER)), messages)
    rows = embed(network, prepared)
    position = 0
    assert len(answer) == TOKENS or answer[-1] in bundle.manifest.chat.stop_ids
    for token in answer:
        with torch.no_grad():
            expected = network.logits(rows, position)[0, -1].numpy()
        position += rows.shape[1]
        found = running.logits[position]
        # Without this bar the margin rule below would excuse any answer: an argmax follows its own logits.
        assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) >= 0.999
        if token != int(expected.argmax()):
            second, best = np.sort(expected)[-2:]
            assert best - second <= 2 * np.abs(found - expected).max()
            break
        rows = network.decoder.embedding(torch.tensor([[token]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_tells_nothing_of_the_machine_that_made_it(exported, family):
    made = exported(family)
    bundle = Bundle.load(made.bundle)
    assert bundle.warnings == ()
    telling = {str(made.checkpoint), str(made.bundle.parent), str(Path.home()), str(Path.cwd()), "site-packages"}
    telling |= {"/tmp/", "/home/", "/Users/", f"/{getpass.getuser()}/", "pytest-"}
    for path in sorted(made.bundle.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        assert [word for word in sorted(telling) if word.encode() in content] == [], path


def test_an_answer_takes_the_picture_into_account(exported):
    """Two photographs, two next-token distributions: rows of pictures reach the decoder on both backends."""
    bundle = Bundle.load(exported("bluelm_v").bundle)
    for backend in BACKENDS:
        running = Recording(backends.load(bundle, backend))
        engine = Engine(bundle, running)
        question = Message("user", "What is this?")
        firsts = []
        for picture in photographs()[:2]:
            engine.reset()
            running.logits.clear()
            list(engine.generate([replace(question, images=(picture,))], Options(max_tokens=1)))
            firsts.append(running.logits[max(running.logits)])
        assert not np.allclose(firsts[0], firsts[1], atol=1e-2)
