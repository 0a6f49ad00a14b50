"""Runs go on where they stopped and end in a checkpoint that is the network."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reader_pages import SMALL, drawn

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.network.load import load as load_weights
from handlens_export.network.network import Network
from handlens_export.reader import train
from handlens_export.reader.batch import Batch
from handlens_export.reader.draw import Mix
from handlens_export.reader.examples import TILE
from handlens_export.reader.losses import Loss
from handlens_export.reader.model import Reader
from handlens_export.reader.optimizer import Muon
from handlens_export.reader.save import load, save
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.stages import Stage
from handlens_export.reader.tokenizer import build
from handlens_export.reader.train import Plan, Run, fast_bfloat16, main
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import TOKENIZER


def test_muon_steps_as_torchs_does() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((32, 64), (32, 64), (64, 32))]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    muon = Muon(ours, weight_decay=0.02)
    muon.param_groups[0]["lr"] = 1e-2
    other = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        before = [matrix.detach().clone() for matrix in ours]
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        muon.step()
        other.step()
    for one, two, old in zip(ours, theirs, before, strict=True):
        assert (one - two).abs().max() < 0.5 * (one - old).abs().mean()  # torch's is in bfloat16


def test_a_rate_is_warmed_up_for_the_reader_and_not_for_its_head(mix: Mix, tmp_path: Path) -> None:
    run = Run(tmp_path, Plan(seconds=100.0, tiles=17, pool=200, workers=1, rate=1.0), curriculum(mix), Reader(SMALL))
    head, first, _ = run.curriculum
    rates = []
    for run.step, stage in ((0, head), (99, head), (100, first), (110, first)):
        rates.append(run._rate(stage))
    assert rates == [1.0, 1.0, 0.01, 0.11]


def curriculum(mix: Mix) -> tuple[Stage, ...]:
    first: dict[Loss, float] = {"dense": 1.0, "language": 1.0}
    last: dict[Loss, float] = {"dense": 0.5, "rows": 1.0, "language": 1.0, "answers": 1.0, "pointers": 0.3}
    grids = ((1, 1), (2, 1))
    head = Stage("heads", 0.2, mix, grids, {"heads": 1.0})
    return head, Stage("first", 0.4, mix, grids, first), Stage("last", 1.0, replace(mix, seed="other"), grids, last)


def test_a_run_goes_through_its_stages_and_goes_on_where_it_was_stopped(
    mix: Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FIRST", 4)
    monkeypatch.setattr(train, "EVERY", 1)
    plan = Plan(seconds=3.0, tiles=17, pool=200, workers=1, validate=0)
    torch.manual_seed(0)
    # Not the machine's clock: how many steps a busy one takes in three seconds is not known.
    clock = (index / 10 for index in count())
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    run = Run(tmp_path, plan, curriculum(mix), Reader(SMALL))
    run.go(until=next(clock) + 1.5)
    assert run.step > 0 and run.progress < 1
    resumed = Run(tmp_path, plan, curriculum(mix))
    assert (resumed.step, resumed.cold, resumed.networks.reader.sizes) == (run.step, run.cold, SMALL)
    for name, weight in resumed.networks.state_dict().items():
        torch.testing.assert_close(weight, run.networks.state_dict()[name], rtol=0, atol=0, msg=name)
    resumed.go()
    assert resumed.progress == 1 and resumed.step > run.step
    log = (tmp_path / "log.jsonl").read_text()
    assert '"stage": "first"' in log and '"stage": "last"' in log
    trained = load(tmp_path).state_dict()
    for name, weight in resumed.networks.reader.state_dict().items():
        torch.testing.assert_close(trained[name], weight.bfloat16().float(), rtol=0, atol=0, msg=name)


def test_drawing_waits_for_learning(mix: Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of few cores it would take half of them; but it does not wait before a step can be made."""
    monkeypatch.setattr(train, "FIRST", 30)
    sheaf = drawn(mix, tiles=10)
    monkeypatch.setattr(train, "sheaves", lambda following, workers: repeat(sheaf))
    alone = Stage("one", 1.0, mix, ((1, 1),), {"heads": 1.0})
    run = Run(tmp_path, Plan(3600.0, 17, 200, 1, ahead=10), (alone,), Reader(SMALL))
    drawing = threading.Thread(target=run._fill)
    drawing.start()

    def comes_to(pages: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (run.pool and run.pool.drawn >= pages):
            time.sleep(0.01)
        return run.pool is not None and run.pool.drawn >= pages

    # The first sheaf is not counted: 20 of 30 tiles are ahead when there are enough to begin with.
    assert comes_to(30, 30) and not comes_to(40, 0.5)
    run.learned = 10
    assert comes_to(40, 30) and not comes_to(50, 0.5)
    run.stopped.set()
    drawing.join(30)
    assert not drawing.is_alive() and run.failure is None


def test_what_fails_in_the_drawing_ends_the_run(mix: Mix, tmp_path: Path) -> None:
    """The thread that draws dies alone otherwise, and the run waits for ever."""
    impossible = replace(mix, layouts=("no such layout",))
    run = Run(tmp_path, Plan(3.0, 17, 200, 1), curriculum(impossible), Reader(SMALL))
    with pytest.raises(KeyError, match="no such layout"):
        run.go()


@pytest.mark.parametrize("wrong", [b"", b"no weights"])
def test_a_folder_that_holds_no_reader_is_named(
    wrong: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FAMILIES", ())
    save(Reader(SMALL), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(wrong)
    assert main(["-o", str(tmp_path / "out"), "--minutes", "1", "--from", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(tmp_path) in said and "give a folder that training wrote" in said


@pytest.mark.parametrize("content", [b"", b"root:x:0:0", b"PK\x03\x04 half a file"])
def test_a_file_that_is_no_state_is_named(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FAMILIES", ())
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    assert main(["-o", str(tmp_path), "--minutes", "1"]) == 2
    assert f"{path} is no state of training" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_bytes() == content


def test_a_state_of_other_networks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FAMILIES", ())
    run = Run(tmp_path, Plan(1.0, 17, 200, 1), (), Reader(SMALL))
    del run.networks.row_head
    run.save()
    kept = run.path.read_bytes()
    assert main(["-o", str(tmp_path), "--minutes", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{run.path} is of another version of training" in said and f"--from {tmp_path}" in said
    assert run.path.read_bytes() == kept


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine")
    assert main(["-o", str(tmp_path / "taken"), "--minutes", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "choose another with -o" in said
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("wrong", [["--tiles", "0"], ["--threads", "-1"], ["--workers", "0"], ["--minutes", "0"]])
def test_numbers_that_train_nothing_are_refused(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-o", str(tmp_path / "out"), "--minutes", "1", *wrong])
    assert ended.value.code == 2
    assert f"argument {wrong[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_saved_checkpoint_is_the_trained_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = Reader(Sizes(vision_layers=1, layers=1)).eval()
    for parameter in reader.parameters():
        parameter.data = parameter.data.bfloat16().float()
    save(reader, tmp_path / "checkpoint")
    planned = plan(read(tmp_path / "checkpoint"), Recipe())
    network = Network(planned.config, 256).eval()
    load_weights(network, planned.checkpoint, planned.family)
    tiles = torch.randn(2, 3, TILE, TILE)
    image = build().token_to_id("<image>")
    ids = torch.tensor([[1, *[image] * 2 * reader.sizes.tokens_per_tile, 20, 30, 40, 0, 2]])
    nothing = torch.zeros(0)
    batch = Batch(
        **dict.fromkeys(("tiles", "labels", "targets", "answers", "kinds", "naming", "saying"), nothing),
        ids=ids,
        positions=torch.arange(ids.shape[1])[None],
        segments=torch.zeros_like(ids),
        images=torch.where(ids[0] == image)[0],
        wanted=torch.arange(ids.shape[1]),
    )
    with torch.no_grad():
        rows = reader.rows(reader.features(tiles)).flatten(0, 1)
        expected, _ = reader.logits(rows, batch)
    torch.testing.assert_close(network(ids, tiles, image)[0], expected, rtol=0, atol=2e-5)
    assert planned.checkpoint.config["image_token_id"] == image
    assert TOKENIZER in {path.name for path in (tmp_path / "checkpoint").iterdir()}


def test_an_encoder_is_frozen_only_where_there_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-o", str(tmp_path / "out"), "--minutes", "1", "--freeze-encoder"])
    assert ended.value.code == 2
    assert "name a checkpoint with --from" in capsys.readouterr().err


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_encoder_stays_as_it_is(
    freeze: bool, mix: Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line to the weights that are saved."""
    monkeypatch.setattr(train, "FAMILIES", ())
    monkeypatch.setattr(train, "FIRST", 4)
    monkeypatch.setattr(train, "EVERY", 1)
    save(Reader(SMALL), tmp_path / "from")
    whole = train.further_stages

    def short(minutes: float, frozen: bool) -> tuple[Stage, ...]:
        return tuple(replace(stage, mix=mix, grids=((1, 1),)) for stage in whole(minutes, frozen))

    monkeypatch.setattr(train, "further_stages", short)
    clock = (index / 10 for index in count())
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    words = ["-o", str(tmp_path / "out"), "--minutes", "0.05", "--tiles", "17", "--pool", "200"]
    assert main([*words, "--from", str(tmp_path / "from"), *(["--freeze-encoder"] if freeze else [])]) == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {"slots", "row characters", "answers", "pointers"} <= set(log[-1])
    before, after = load(tmp_path / "from").state_dict(), load(tmp_path / "out").state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"downsampler", "projector", "language_model"} | (set() if freeze else {"vision_tower"})


def test_bfloat16_is_left_to_processors_that_multiply_it(monkeypatch):
    """Emulated, a step of training takes thirty times as long."""
    cpu = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not fast_bfloat16(cpu) and fast_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert fast_bfloat16(cpu)
