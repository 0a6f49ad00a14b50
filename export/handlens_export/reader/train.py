"""Train the reader: one run through the curriculum, of as many minutes as it is given.

    python -m handlens_export.reader.train -o FOLDER --minutes 12 --workers 15      with a CUDA device
    python -m handlens_export.reader.train -o FOLDER --minutes 1200 --workers 1     without
    python -m handlens_export.reader.train -o FOLDER --minutes 60 --from assets/reader       from weights that read
    python -m handlens_export.reader.train -o FOLDER --minutes 52 --from assets/reader --freeze-encoder --tiles 34 \
        --pool 12000                                  on two cores, as the weights of assets/reader were trained last

In FOLDER: the checkpoint, as far as it is trained, `log.jsonl`, and `state.pt`: with the same command a run that was
stopped goes on. What limits a run on an accelerator is the processes that draw, so give it a worker for each core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from handlens_export.errors import CheckpointError, ExportError
from handlens_export.reader import evaluation_set, state, validation
from handlens_export.reader.draw import Order, sheaves, tiles_of
from handlens_export.reader.fonts import FAMILIES, font_files
from handlens_export.reader.initial import begin
from handlens_export.reader.losses import losses_of
from handlens_export.reader.model import Networks, Reader
from handlens_export.reader.optimizer import Optimizer
from handlens_export.reader.options import at_least
from handlens_export.reader.pool import Pool, normalized
from handlens_export.reader.save import load, save
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.stages import Stage, further_stages, stages
from handlens_export.reader.turns import TOLD

EVERY = 50
"""Steps between lines of the log."""
SAVE_SECONDS = 120.0
FIRST = 64
"""Pages that are drawn before the first step."""
GENTLE = 1e-3
"""Rate for weights that read already: one run at half as much again read a fifth less after 70 steps."""
ENOUGH = 4
"""Pages of one size that a step can draw from."""


@dataclass(frozen=True)
class Plan:
    """What a machine is given to do."""

    seconds: float
    """Of the whole run."""
    tiles: int
    """Of a step."""
    pool: int
    """Tiles kept."""
    workers: int
    rate: float = 4e-3
    """Warmed up over the reader's first 100 steps, and brought to zero over the last two thirds."""
    validate: int = 0
    """Pages of each group that are asked in the end, and now and then before."""
    compiled: bool = False
    ahead: int = 2000
    """Tiles that may be drawn beyond those learned from: where both share the cores, drawing waits for learning."""


class Run:
    """A run under way."""

    def __init__(self, folder: Path, plan: Plan, curriculum: tuple[Stage, ...], reader: Reader | None = None) -> None:
        """Go on from the folder's own state, else from a reader that is trained already, else from new weights.

        Raises CheckpointError where the state is damaged or of other networks.
        """
        self.folder, self.plan, self.curriculum = folder, plan, curriculum
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kept = state.read(self.path) if self.path.exists() else None
        self.is_new = not kept and reader is None
        self.step = self.ordered = self.learned = 0
        self.cold = 0
        """Steps before the reader's first: those of a stage that trains heads alone."""
        self.seconds = 0.0
        try:
            sizes = Sizes(**kept["sizes"]) if kept else Sizes()
            networks = Networks(reader if reader and not kept else Reader(sizes))
            if kept:
                networks.load_state_dict(kept["modules"])
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} is of another version of training; begin a new run from its weights, with --from "
                f"{folder} and another -o."
            ) from error
        self.networks = networks.to(self.device)  # a device's own failures are not the state's
        self.optimizer = Optimizer(self.networks)
        if kept:
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step, self.cold, self.ordered = kept["step"], kept["cold"], kept["ordered"]
            self.seconds = kept["seconds"]
        self.pool: Pool | None = None
        self.stopped = threading.Event()
        self.failure: BaseException | None = None

    @property
    def path(self) -> Path:
        """Of the state."""
        return self.folder / "state.pt"

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return min(1.0, self.seconds / self.plan.seconds)

    @property
    def stage(self) -> Stage:
        """That of now."""
        return next((each for each in self.curriculum if self.progress < each.until), self.curriculum[-1])

    def save(self) -> None:
        """The state to go on from, whole or not at all."""
        kept = {
            "sizes": asdict(self.networks.reader.sizes),
            "modules": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "cold": self.cold,
            "ordered": self.ordered,
            "seconds": self.seconds,
        }
        state.write(self.path, kept)

    def go(self, until: float = float("inf")) -> None:
        """Step until the run's end, or the monotonic moment `until`."""
        random, asked = Random(f"steps {self.step}"), self._questions()
        threading.Thread(target=self._fill, daemon=True).start()
        while self.pool is None or not self._ready(self.pool):
            self._check()
            time.sleep(0.01)
        if self.is_new:
            begin(self.networks.reader, normalized(self.pool.tiles[:FIRST]))
        if self.plan.compiled:
            self._compile()
        began = saved = time.monotonic()
        before, seen = self.seconds, _Sums()
        while self.progress < 1 and time.monotonic() < until:
            self._check()
            seen.add(self._one(random))
            now = time.monotonic()
            self.seconds = before + now - began
            if self.step % EVERY == 0:
                self._log(seen.taken())
                self.seconds = before + time.monotonic() - began  # the device's work included
            if now - saved > SAVE_SECONDS:
                self.save()
                save(self.networks.reader, self.folder)
                saved = time.monotonic()
                self._validate(asked)
        self.stopped.set()
        self.save()
        save(self.networks.reader, self.folder)
        self._validate(asked)

    def _one(self, random: Random) -> dict[str, Tensor]:
        stage, counts = self._drawn()
        assert self.pool is not None
        batch = self.pool.batch(random, stage.mix.seed, random.choice(counts), self.plan.tiles)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            parts, told = losses_of(stage.losses, self.networks, batch, stage.frozen)
            loss: Tensor = sum(
                (stage.losses[name] * part for name, part in parts.items()), torch.zeros((), device=self.device)
            )
        self.learned += len(batch.tiles)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.step(self._rate(stage))
        self.step += 1
        return {**{name: part.detach() for name, part in parts.items()}, **told, "norm": norm}

    def _drawn(self) -> tuple[Stage, list[int]]:
        """The stage of now, or, where it has only begun and its pages are not drawn yet, the one before; and how many
        tiles its pages have, each as often as its grids.
        """
        assert self.pool is not None
        for stage in reversed(self.curriculum[: self.curriculum.index(self.stage) + 1]):
            tiled = [tiles_of(grid) for grid in stage.grids]
            if counts := [count for count in tiled if self.pool.has(stage.mix.seed, count, ENOUGH)]:
                return stage, counts
        raise AssertionError("no pages")

    def _rate(self, stage: Stage) -> float:
        if set(stage.losses) == {"heads"}:
            self.cold = self.step + 1
            return self.plan.rate
        return self.plan.rate * min(1.0, (self.step + 1 - self.cold) / 100, (1 - self.progress) / 0.66)

    def _ready(self, pool: Pool) -> bool:
        stage = self.stage
        return pool.drawn >= FIRST and any(pool.has(stage.mix.seed, tiles_of(grid), ENOUGH) for grid in stage.grids)

    def _fill(self) -> None:
        """Draw into the pool, in a thread of its own."""
        try:
            random = Random(f"orders {self.ordered}")

            def following() -> Order:
                stage = self.stage
                self.ordered += 1
                return Order(stage.mix, self.ordered, random.choice(stage.grids), min(17, self.plan.tiles))

            arriving = sheaves(following, self.plan.workers)
            first = next(arriving)  # workers are forked before the ring is made
            pool = Pool(self.plan.pool, self.device)
            pool.add(first)
            self.pool = pool
            drawn = 0
            for sheaf in arriving:
                while drawn > self.learned + self.plan.ahead and self._ready(pool) and not self.stopped.is_set():
                    time.sleep(0.05)
                if self.stopped.is_set():
                    return
                drawn += len(sheaf.tiles)
                pool.add(sheaf)
        except BaseException as error:  # shown by the thread that waits for it
            self.failure = error

    def _check(self) -> None:
        if self.failure:
            raise self.failure

    def _questions(self) -> list[validation.Drawn]:
        if not self.plan.validate:
            return []
        tasks = [(name, number) for name in evaluation_set.USUAL for number in range(self.plan.validate)]
        with multiprocessing.Pool(self.plan.workers) as workers:
            return workers.map(validation.draw, tasks, chunksize=8)

    def _validate(self, asked: list[validation.Drawn]) -> None:
        if asked:
            self._write({"validation": True, **validation.exact(self.networks.reader, asked, self.device)})

    def _compile(self) -> None:
        """Layer by layer: they are all one program, compiled once."""
        torch._dynamo.config.recompile_limit = 32
        reader = self.networks.reader
        for layer in (*reader.vision_tower.encoder.layers, *reader.language_model.model.layers):
            layer.compile(dynamic=True)

    def _log(self, values: dict[str, float]) -> None:
        assert self.pool is not None
        self._write({"stage": self.stage.name, "pages": self.pool.drawn, **values})

    def _write(self, values: dict[str, Any]) -> None:
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds)}
        line |= {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in values.items()}
        text = json.dumps(line)
        print(text, file=sys.stderr, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(text + "\n")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32: on a CPU without instructions for them, they took
    thirty times as long.
    """
    return device.type != "cpu" or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _Sums:
    """Of whatever is told, on the device until it is taken."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def taken(self) -> dict[str, float]:
        """Means of losses, shares of what was counted; begins anew."""
        told: dict[str, float] = {}
        for name, value in self.sums.items():
            found = value.cpu().float()
            if found.ndim == 0:
                told[name] = float(found) / self.counts[name]
            elif found.ndim == 1:
                told[name] = float(found[0] / found[1].clamp_min(1))
            else:
                told[name] = float(found[0].sum() / found[1].sum().clamp_min(1))
                prefix = "" if name == "exact" else f"{name} "
                told |= {f"{prefix}{TOLD[k]}": float(r / n) for k, (r, n) in enumerate(found.T) if n}
        self.sums, self.counts = {}, {}
        return told


def main(arguments: list[str] | None = None) -> int:
    """Run, or go on."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{options.folder} cannot be a folder ({error.strerror}); choose another with -o.", file=sys.stderr)
        return 2
    cuda = torch.cuda.device_count() > 0
    plan = Plan(
        seconds=60 * options.minutes,
        tiles=options.tiles or (816 if cuda else 24),
        pool=options.pool or (300_000 if cuda else 4_000),
        workers=options.workers,
        rate=options.rate or (GENTLE if options.checkpoint else Plan.rate),
        validate=options.validate,
        compiled=options.compile,
        **({"ahead": sys.maxsize} if cuda else {}),
    )
    print(json.dumps(asdict(plan)), file=sys.stderr, flush=True)
    try:
        for family in FAMILIES:  # fetched here, where a failure is a sentence, not in a worker
            font_files(family)
        reader = load(options.checkpoint) if options.checkpoint else None
        curriculum = further_stages(options.minutes, options.freeze_encoder) if reader else stages()
        Run(options.folder, plan, curriculum, reader).go()
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=at_least(0.01, float), required=True, help="of the whole run")
    parser.add_argument("--threads", type=at_least(1, int), default=torch.get_num_threads())
    parser.add_argument("--workers", type=at_least(1, int), default=1, help="processes that draw")
    parser.add_argument("--tiles", type=at_least(17, int), help="of a step: 816 with a CUDA device, else 24")
    parser.add_argument("--pool", type=at_least(100, int), help="tiles kept: 300,000 (45 GB) with CUDA, else 4,000")
    rates = f"of learning, at its highest: {Plan.rate}, with --from {GENTLE}"
    parser.add_argument("--rate", type=at_least(1e-6, float), help=rates)
    parser.add_argument("--validate", type=at_least(0, int), default=0, help="pages asked every 2 minutes")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument(
        "--from",
        dest="checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="begin from a saved reader, such as assets/reader, in place of new weights",
    )
    parser.add_argument(
        "--freeze-encoder", action="store_true", help="with --from: leave the encoder as it is; a step takes less time"
    )
    options = parser.parse_args(arguments)
    if options.freeze_encoder and not options.checkpoint:
        parser.error("--freeze-encoder leaves a trained encoder as it is: name a checkpoint with --from")
    return options


if __name__ == "__main__":
    sys.exit(main())
