"""Of what native code writes to stderr, cpuinfo's lines are held back and nothing else, a crash's last words least."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from handlens.cli.quiet import without_cpuinfo

chatter = b"Error in cpuinfo: failed to parse the list of possible processors\\n"
cores = b"[cpuinfo_utils.cpp:125] CPU info and manual query on # of cpus dont match.\\n"
with without_cpuinfo():
    print("ours", file=sys.stderr)
    print("[cpuinfo_utils.cpp:71] Reading file /sys/devices/soc0/image_version", file=sys.stderr)
    os.write(2, chatter + b"Error in XNNPACK: not \\xff ready\\n" + cores + chatter)
    {last}
os.write(2, chatter)
"""


def stderr(last: str, code: int = 0, **environment: str) -> list[bytes]:
    python = [sys.executable, "-c", SCRIPT.format(last=last)]
    done = subprocess.run(
        python, env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"} | environment, stderr=-1
    )
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()


def test_only_what_cpuinfo_says_is_held_back_and_only_inside() -> None:
    real, ours = b"Error in XNNPACK: not \xff ready", b"ours"
    *inside, after = stderr("pass")
    assert sorted(inside) == [real, ours]
    assert after.startswith(b"Error in cpuinfo: ")


@pytest.mark.parametrize(("last", "code"), [("os.abort()", -signal.SIGABRT), ("os._exit(3)", 3)])
def test_the_last_words_of_a_crash_are_shown(last: str, code: int) -> None:
    said = stderr(f"os.write(2, b'terminate called\\n'); {last}", code)
    assert b"terminate called" in said and not [line for line in said if b"cpuinfo" in line]


def test_debugging_shows_all() -> None:
    assert len(stderr("pass", HANDLENS_DEBUG="1")) == 7
