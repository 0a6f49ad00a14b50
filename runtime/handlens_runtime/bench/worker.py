"""The process of one runner: `python -m handlens_runtime.bench.worker`. JSON lines in, one JSON line out for each.

    {"open": "bundle" | "llama.cpp", "with": {…}}   ─▶ {"value": runner.Opened}
    {"call": "prefill", "with": {"tokens": 512}}    ─▶ {"value": 5.8}
    either, where it fails                          ─▶ {"error": "BackendError", "sentence": "…"}

It ends with its input, so that it does not outlive the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from handlens_runtime.bench.runner import Opened, Runner
from handlens_runtime.errors import HandLensError

CALLS = ("prefill", "decode", "kept", "encode_tile", "encode_picture", "peak_memory", "peak_memory_released")


def main() -> None:
    """Serve until the input ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)  # what libraries print is no reply
        runner: Runner | None = None
        for line in sys.stdin:
            request = json.loads(line)
            reply: dict[str, object]
            try:
                if "open" in request:
                    runner, opened = _open(request["open"], request["with"])
                    reply = {"value": opened}
                else:
                    assert request["call"] in CALLS and runner is not None
                    reply = {"value": getattr(runner, request["call"])(**request["with"])}
            except HandLensError as error:
                reply = {"error": type(error).__name__, "sentence": str(error)}
            except Exception:
                traceback.print_exc()  # to stderr, whose end the other side shows
                sys.exit(1)
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


def _open(kind: str, options: dict[str, Any]) -> tuple[Runner, Opened]:
    if kind == "bundle":
        from handlens_runtime.bench.bundle_runner import open_bundle

        return open_bundle(**options)
    from handlens_runtime.bench.llama_cpp_runner import open_llama_cpp

    return open_llama_cpp(**options)


if __name__ == "__main__":
    main()
