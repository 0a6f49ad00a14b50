"""Evidence for what HandLens must show: one JSON line each on stdout, progress on stderr; 1 where one fails.

    python tests/verify/run.py [--only NAME] [--fresh] [--list]

Resumable: results are kept in the cache folder with a digest of the packages' sources and of the check itself, and only
what changed, or failed, runs again. Each check runs in a process of its own, so that one that dies is one that failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
sys.path[:0] = [str(ROOT / tree) for tree in ("sdk", "export", "runtime", "tests")]

from bundles import digest, verify_folder  # noqa: E402  the paths above come first
from outcome import Cases, Outcome  # noqa: E402

TOPICS = (
    "families",
    "programs",
    "perplexity",
    "quantizers",
    "zipvl",
    "sparse_chat",
    "sparse_speed",
    "conversation",
    "judges",
    "stages",
    "integrity",
    "base_install",
    "determinism",
    "resume",
    "reader",
    "full_size",
)
"""In the order of the issue: each a file here, whose CASES are its lines."""
SHARED = ("bundles.py", "logits.py", "outcome.py", "passages.py", "peak.py", "planted.py", "reading.py")


def main() -> int:
    """Run what is asked for; 0 where all of it passed."""
    arguments = _arguments()
    if arguments.child:
        topic, case, answer = arguments.child
        Path(answer).write_text(json.dumps(asdict(_cases(topic)[case]())))
        return 0
    passed = True
    for topic, case in _chosen(arguments.only):
        if arguments.list:
            print(f"{topic}: {case}")
            continue
        line = None if arguments.fresh else _kept(topic, case)
        if line is None:
            print(f"{topic}: {case} ...", file=sys.stderr, flush=True)
            line = _run(topic, case)
            _keep(line)
        print(json.dumps({key: value for key, value in line.items() if key != "digest"}), flush=True)
        passed &= line["passed"]
    return 0 if passed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="a topic, or a part of a line's text")
    parser.add_argument("--fresh", action="store_true", help="run again what has passed already")
    parser.add_argument("--list", action="store_true", help="name the lines, run none")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def _cases(topic: str) -> Cases:
    cases: Cases = importlib.import_module(topic).CASES
    return cases


def _chosen(only: str | None) -> Iterator[tuple[str, str]]:
    found = False
    for topic in TOPICS:
        for case in _cases(topic):
            if only is None or (topic == only if only in TOPICS else only in case):
                found = True
                yield topic, case
    if not found:
        raise SystemExit(f"No line is called '{only}'; --list names them, their topics are {', '.join(TOPICS)}.")


def _run(topic: str, case: str) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-W", "ignore", str(HERE / "run.py"), "--child", topic, case, str(answer)]
        # Whatever a library prints is progress: stdout holds the lines alone.
        code = subprocess.run(command, stdout=sys.stderr.fileno()).returncode
        if answer.exists():
            outcome = json.loads(answer.read_text())
        else:
            outcome = asdict(Outcome({"exit code": code}, "the check runs to its end", passed=False))
    seconds = round(time.monotonic() - began, 1)
    return {"line": f"{topic}: {case}", **outcome, "seconds": seconds, "digest": _digest(topic)}


def _digest(topic: str) -> str:
    paths = [ROOT / tree for tree in ("export", "runtime", "sdk")]
    return digest([*paths, HERE / f"{topic}.py", *(HERE / name for name in SHARED)])


def _results() -> Path:
    return verify_folder() / "results.jsonl"


def _kept(topic: str, case: str) -> dict[str, Any] | None:
    """The latest result of a line, if it passed and nothing that it rests on has changed since."""
    if not _results().exists():
        return None
    lines = [json.loads(line) for line in _results().read_text().splitlines()]
    same = [line for line in lines if line["line"] == f"{topic}: {case}"]
    return same[-1] if same and same[-1]["passed"] and same[-1]["digest"] == _digest(topic) else None


def _keep(line: dict[str, Any]) -> None:
    _results().parent.mkdir(parents=True, exist_ok=True)
    with _results().open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
