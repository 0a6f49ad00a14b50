"""The same checkpoint and recipe give the same bytes, from any folder; and nothing of this machine is in them."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import bundles
from outcome import Cases, Outcome

EXPORT = (
    "import sys; from pathlib import Path; from handlens_export.pipeline import export; "
    "from handlens_export.recipe import Recipe; export(Path(sys.argv[1]), Path(sys.argv[2]), Recipe())"
)


def same_bytes() -> Outcome:
    """Two exports of bluelm-v-nano: from other folders, in other working directories, under other hash seeds."""
    with tempfile.TemporaryDirectory(prefix="handlens-verify-") as scratch:
        first = _export(Path(scratch) / "one", seed="1")
        second = _export(Path(scratch) / "another place" / "deeper", seed="4242")
        differ = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        # As text and as UTF-16, the two ways in which a tool could have written a path.
        words = {str(Path(scratch)), str(Path.home()), os.uname().nodename, f"/{getpass.getuser()}/"}
        found = sorted(
            f"{name}: {word}"
            for name, content in first.items()
            for word in words
            if len(word) > 3 and any(word.encode(code) in content for code in ("utf-8", "utf-16-le"))
        )
    values = {"files": len(first), "bytes": sum(map(len, first.values())), "that differ": differ, "traces": found}
    return Outcome(values, "byte-identical; no path, user or host name inside", not differ and not found)


def _export(home: Path, seed: str) -> dict[str, bytes]:
    """Export a copy of the checkpoint, and read all of the bundle."""
    source, target = home / "checkpoint", home / "bundle"
    shutil.copytree(bundles.nano_checkpoint(), source)
    paths = os.pathsep.join(str(bundles.ROOT / tree) for tree in ("export", "runtime"))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", EXPORT, source, target], cwd=home, env=environment, check=True)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


CASES: Cases = {"two exports of bluelm-v-nano are the same": same_bytes}
