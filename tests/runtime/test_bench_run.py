"""The benchmark's turns, bytes and sentences, with runners that measure nothing: no number here is a time."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from handlens_runtime.bench import Workload, bench
from handlens_runtime.bench.bandwidth import Bandwidth
from handlens_runtime.bench.bundle_runner import BundleRunner
from handlens_runtime.bench.results import Benchmark
from handlens_runtime.bench.run import Entrant, measure
from handlens_runtime.bench.workload import STEPS, Trial, fitting
from handlens_runtime.errors import OptionError

TESTS = (Trial(8), Trial(32), Trial(STEPS, 4), Trial(STEPS, 40))


class FakeRunner:
    """Takes a second a token, or its `pace`; notes what it was asked."""

    def __init__(self, name, pace, log):
        self.name, self.pace, self.log = name, pace, log

    def prefill(self, tokens):
        self.log.append((self.name, f"pp{tokens}"))
        return self.pace * tokens

    def decode(self, depth, tokens):
        self.log.append((self.name, f"d{depth}"))
        return self.pace * tokens

    def kept(self, depth):
        return 0.25 if (self.name, depth) == ("ours", 40) else 1.0

    def encode_tile(self):
        return 2.0

    def encode_picture(self, width, height):
        return {"tiles": 9, "image_decode_s": 0.5, "encode_s": 18.0}

    def peak_memory_released(self):
        self.log.append((self.name, "released"))
        return 900

    def peak_memory(self):
        self.log.append((self.name, "memory"))
        return 1000 + len(self.log)


def entrant(name, pace, log):
    @contextmanager
    def opened():
        log.append((name, "open"))
        said = {"name": name, "threads": 2, "load_s": 0.25, "kv_bytes": 640, "file": "f"}
        yield FakeRunner(name, pace, log), said, 1.5
        log.append((name, "close"))

    return Entrant(opened, weight_bytes=1000, row_bytes=10)


@pytest.fixture
def log():
    return []


def measured(log, repeat=2, picture=None, progress=None):
    two = [entrant("ours", 1.0, log), entrant("peer", 3.0, log)]
    return measure(two, TESTS, repeat, lambda seconds: 2000.0, picture=picture, progress=progress)


def test_runners_take_turns_and_the_order_turns_around(log):
    measured(log)
    rounds = [name for name, what in log if what == "d40"]
    assert rounds == ["ours", "peer", "peer", "ours"]
    # A new process for each load, one more to warm the file cache, and the last ones measure.
    assert log[:10] == [(name, what) for _ in range(2) for name in ("ours", "peer") for what in ("open", "close")] + [
        ("ours", "open"),
        ("peer", "open"),
    ]
    assert log[10:12] == [("ours", "pp40"), ("peer", "pp40")]
    order = list(dict.fromkeys(what for _, what in log[12:]))
    assert order == ["pp8", "pp32", "d40", "d4", "memory", "close"]


def test_rates_ratios_and_shares_come_from_the_same_round(log):
    ours, theirs = measured(log)
    found = Benchmark("m", 1, 2, 2, 2, ours, theirs, ())
    assert [line.test for line in ours.lines] == list(TESTS)
    assert ours.lines[0].rate.values == (1.0, 1.0) and theirs.lines[0].rate.mean == pytest.approx(1 / 3)
    assert [ratio.mean for ratio in found.ratios()] == pytest.approx([3.0] * 4)
    assert ours.lines[0].share is None
    # Weights, and the rows before each of the steps: 4 + 1 to 4 + 16.
    assert ours.lines[2].step_bytes == 1000 + 10 * np.mean([4 + step for step in range(1, STEPS + 1)])
    assert ours.lines[2].share.mean == pytest.approx(ours.lines[2].step_bytes / 2000)
    # Where a quarter of the tokens was kept, a step reads as few.
    assert ours.lines[3].kept == 0.25 and theirs.lines[3].kept == 1
    assert ours.lines[3].step_bytes == 1000 + 10 * (10 + 17 / 2) < theirs.lines[3].step_bytes
    assert len(ours.load.values) == 2 and ours.load.mean == 0.25 and ours.load_from_start.mean == 1.5
    told = found.to_json()
    assert told["ratios"]["tg16 @ d40"]["samples"] == pytest.approx([3.0, 3.0])
    assert (told["kv_bytes"], told["weight_bytes_per_step"], told["read_bandwidth"]["mean"]) == (640, 1000, 2000.0)


def test_pictures_are_shown_to_the_bundle_alone_and_memory_is_read_before(log):
    ours, theirs = measured(log, picture=(768, 1536))
    assert ours.pictures.tiles == 9 and ours.pictures.encode.values == (18.0, 18.0)
    assert theirs.pictures is None and theirs.peak_memory_pictures is None
    assert ours.peak_memory_pictures > ours.peak_memory
    assert ours.peak_memory_released == 900 and theirs.peak_memory_released is None


def test_progress_rises_from_nothing_to_almost_all(log):
    shares = []
    measured(log, picture=(8, 8), progress=lambda stage, share: shares.append(share))
    assert shares[0] == 0 and shares == sorted(shares) and 0.8 < shares[-1] < 1


def test_what_the_context_does_not_hold_is_left_out_with_a_sentence(make_engine):
    manifest = make_engine().bundle.manifest  # a context of 512
    tests, notes = fitting(Workload(), manifest)
    assert [test.name for test in tests] == ["pp128", "pp512", "tg16 @ d16"]
    assert notes == (
        "pp2048, tg16 @ d512, tg16 @ d2048 left out: the context is 512; export with --context 2064 or more.",
    )
    assert fitting(Workload((512,), (496,)), manifest)[1] == ()
    with pytest.raises(OptionError, match=r"holds 512 tokens, too few for any of pp600; .*--prompts"):
        fitting(Workload((600,), ()), manifest)


def test_a_prompt_that_cannot_be_cut_is_held_against_one_pass(make_engine):
    manifest = make_engine(causal=False).bundle.manifest  # passes of at most 128
    tests, _ = fitting(Workload((128, 129), (128, 129)), manifest)
    assert [test.name for test in tests] == ["pp128", "tg16 @ d128"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"repeat": 0}, "--repeat is 0"),
        ({"prompts": (0,)}, "--prompts holds 0"),
        ({"depths": (-1,)}, "--depths holds -1"),
    ],
)
def test_a_workload_that_measures_nothing_is_refused(wrong, said):
    with pytest.raises(OptionError, match=said):
        Workload(**wrong)


def test_a_bundle_is_run_in_the_engines_chunks_and_filled_below_a_depth(make_engine):
    engine = make_engine()
    runner = BundleRunner(engine)
    assert runner.prefill(40) > 0
    assert engine.backend.calls == [("decode", 0, 16), ("decode", 16, 16), ("decode", 32, 8)]
    engine.backend.calls.clear()
    runner.decode(50, 3)
    assert engine.backend.calls == [("decode", 40, 10), *[("decode", position, 1) for position in (50, 51, 52)]]
    engine.backend.calls.clear()
    runner.decode(4, 1)
    assert engine.backend.calls == [("decode", 4, 1)]


class Choosing:
    """A fake backend that keeps every second row of a prompt."""

    def __init__(self, plain):
        self.plain, self.calls = plain, plain.calls

    def embed(self, ids):
        return self.plain.embed(ids)

    def decode(self, rows, position):
        return self.plain.decode(rows, position)

    def decode_prompt(self, rows, position, stopped=None):
        logits = self.plain.decode(rows, position)
        self.calls[-1] = ("prompt", position, len(rows))
        return logits, np.arange(2 * len(rows)).reshape(2, -1) % 2 == 0


def test_a_prompt_whose_tokens_are_chosen_is_one_pass_and_its_cache_is_never_cut(make_engine):
    engine = make_engine()
    engine.backend = Choosing(engine.backend)
    runner = BundleRunner(engine, sparse=True)
    runner._least = 40
    calls = engine.backend.calls
    runner.prefill(64)
    runner.prefill(20)  # too short to choose from
    assert calls == [("prompt", 0, 64), ("decode", 0, 16), ("decode", 16, 4)]
    calls.clear()
    runner.decode(64, 2)
    runner.decode(64, 1)
    assert calls == [("prompt", 0, 64), ("decode", 64, 1), ("decode", 65, 1), ("decode", 64, 1)]
    calls.clear()
    runner.decode(48, 1)
    runner.decode(8, 1)
    assert calls == [("prompt", 0, 48), ("decode", 48, 1), ("decode", 0, 8), ("decode", 8, 1)]
    assert (runner.kept(48), runner.kept(8)) == (0.5, 1.0)


def test_a_bundle_that_keeps_all_has_no_dense_twin(make_engine):
    bundle = make_engine().bundle
    with pytest.raises(OptionError, match=r"keeps all of a prompt; export it with --sparsity"):
        bench(bundle, vs="dense")


def test_a_picture_goes_the_engines_way_every_time(make_engine):
    engine = make_engine()
    runner = BundleRunner(engine)
    first, second = runner.encode_picture(40, 20), runner.encode_picture(40, 20)
    assert first["tiles"] == second["tiles"] == sum(tiles for _, _, tiles in engine.backend.calls) / 2
    engine.backend.calls.clear()
    runner.encode_tile()
    assert engine.backend.calls == [("encode", 0, 1)]


def test_the_bandwidth_reads_all_bytes_with_every_thread():
    bandwidth = Bandwidth(threads=3, count=80_000)
    assert [part.nbytes for part in bandwidth._parts] == [26_672, 26_664, 26_664]
    assert bandwidth.measure(0.001) > 0
