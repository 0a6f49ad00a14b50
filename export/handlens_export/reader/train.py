"""Train the reader, stage by stage, on however slow a machine: it goes on from its last checkpoint.

    python -m handlens_export.reader.train dense -o FOLDER [--threads 1] [--workers 1] [--minutes 60]

In FOLDER: `<stage>.pt`, the state to go on from, and `<stage>.jsonl`, the log. A CUDA device is used where there is
one; then the processes that draw are what limits it, so give it as many --workers as there are cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handlens_export.errors import CheckpointError, ExportError
from handlens_export.reader import state
from handlens_export.reader.batch import Batch
from handlens_export.reader.batches import from_step
from handlens_export.reader.fonts import font_files
from handlens_export.reader.initial import begin
from handlens_export.reader.losses import losses_of
from handlens_export.reader.model import Networks, Sizes
from handlens_export.reader.optimizer import Optimizer
from handlens_export.reader.options import at_least
from handlens_export.reader.save import load
from handlens_export.reader.stages import PARTS, Stage, stages

WARM_UP = 200
EVERY = 50
SAVE_SECONDS = 120.0


def main(arguments: list[str] | None = None) -> int:
    """Run one stage until its last step, or for so many minutes."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    everything = stages()
    stage = everything[options.stage]
    if options.steps:
        stage = replace(stage, steps=options.steps)
    options.folder.mkdir(parents=True, exist_ok=True)
    run = Run(options.stage, stage, Networks(Sizes()), options.folder)
    try:
        run.start(options.checkpoint)
        for family in stage.mix.typefaces:  # fetched here, where a failure is a sentence, not in a worker
            font_files(family)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    run.go(time.monotonic() + 60 * options.minutes, options.workers)
    return 0


class Run:
    """A stage under way."""

    def __init__(self, name: str, stage: Stage, networks: Networks, folder: Path) -> None:
        self.name, self.stage, self.networks, self.folder = name, stage, networks, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        networks.to(self.device)
        for weight, parameter in networks.named_parameters():
            parameter.requires_grad_(not weight.startswith(stage.frozen))
        self.optimizer = Optimizer(networks)
        self.step = 0
        self.examples = 0
        self.seconds = 0.0

    @property
    def path(self) -> Path:
        """Of the state."""
        return self.folder / f"{self.name}.pt"

    def start(self, checkpoint: Path | None = None) -> None:
        """Go on from the stage's own state, else from a checkpoint folder, else from the stages before it.

        Raises CheckpointError where one is missing or damaged.
        """
        if self.path.exists():
            kept = state.read(self.path, self.device)
            self.networks.load_state_dict(kept["modules"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step, self.examples, self.seconds = kept["step"], kept["examples"], kept["seconds"]
            return
        if checkpoint:
            load(self.networks.reader, checkpoint)
            return
        for before in self.stage.after:
            path = self.folder / f"{before}.pt"
            if not path.exists():
                raise CheckpointError(f"Stage {self.name} starts from {path}, which is missing; train {before} first.")
            weights = state.read(path, self.device)["modules"]
            prefixes = PARTS.get(before, ("",))
            self.networks.load_state_dict({k: v for k, v in weights.items() if k.startswith(prefixes)}, strict=False)
        if not self.stage.after and "dense" in self.stage.losses:
            unused = from_step(self.stage.mix, self.networks.sizes, self.stage.steps, self.stage.steps + 8, workers=0)
            begin(self.networks.reader, torch.cat([batch.tiles for batch in unused]).to(self.device))

    def save(self) -> None:
        """Whole or not at all."""
        kept = {
            "modules": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "examples": self.examples,
            "seconds": self.seconds,
        }
        state.write(self.path, kept)

    def go(self, until: float, workers: int) -> None:
        """Step until the stage's end or the moment `until`."""
        began = saved = time.monotonic()
        before, seen = self.seconds, _Mean()
        for batch in from_step(self.stage.mix, self.networks.sizes, self.step, self.stage.steps, workers):
            seen.add(self._one(batch))
            now = time.monotonic()
            self.seconds = before + now - began
            if self.step % EVERY == 0 or self.step == self.stage.steps:
                self._log(seen.taken())
            if now - saved > SAVE_SECONDS or now > until:
                self.save()
                saved = now
            if now > until:
                return
        self.save()

    def _one(self, batch: Batch) -> dict[str, float]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            parts, told = losses_of(self.stage.losses, self.networks, batch.to(self.device))
        loss: Tensor = sum(
            (self.stage.losses[name] * part for name, part in parts.items()), torch.zeros((), device=self.device)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.step(self._rate())
        self.step += 1
        self.examples += len(batch.ids)
        return {**{name: float(part.detach()) for name, part in parts.items()}, **told, "norm": norm}

    def _rate(self) -> float:
        left = (self.stage.steps - self.step) / (self.stage.steps / 4)
        return self.stage.learning_rate * min(1.0, (self.step + 1) / WARM_UP, left)

    def _log(self, values: dict[str, float]) -> None:
        line: dict[str, Any] = {"step": self.step, "examples": self.examples, "seconds": round(self.seconds)}
        line |= {name: float(f"{value:.4g}") for name, value in values.items()}
        text = json.dumps(line)
        print(f"{self.name} {text}", file=sys.stderr, flush=True)
        with (self.folder / f"{self.name}.jsonl").open("a") as file:
            file.write(text + "\n")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32: on a CPU without instructions for them, they took
    thirty times as long.
    """
    return device.type != "cpu" or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _Mean:
    """Of whatever values come, each over the steps that told it."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1

    def taken(self) -> dict[str, float]:
        """The means so far; begins anew."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("dense", "copy", "language", "align", "answers", "joint"))
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--threads", type=at_least(1, int), default=torch.get_num_threads())
    parser.add_argument("--workers", type=at_least(0, int), default=1, help="processes that draw")
    parser.add_argument("--minutes", type=at_least(0.1, float), default=1e9, help="stop after so long, to go on later")
    parser.add_argument("--steps", type=at_least(1, int), help="in place of the stage's own number")
    parser.add_argument(
        "--from",
        dest="checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="begin from a saved reader, such as assets/reader, in place of the stages before",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
