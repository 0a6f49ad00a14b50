"""`golden.json`: what a bundle answered where it was made, so that any other machine can tell whether it answers alike.

    record   bundle ─▶ a few prompts, each backend greedily ─▶ golden.json   (the exporter, once)
    replay   golden.json ─▶ the same prompts here ─▶ a result each           (anyone with the bundle alone)

It holds the first token's five best log-probabilities where one would expect a digest of its logits. A digest demands
equal bits, and no two kinds of CPU give these: they sum in another order, and what lands on the other side of an int8
rounding boundary moves all that follows (ONNX Runtime's 4-bit products differ by about 1 % between x86 and ARM). On a
phone a digest could only ever fail.
"""

from handlens_runtime.golden.pattern import pattern
from handlens_runtime.golden.record import record
from handlens_runtime.golden.replay import Replay, Result, replay
from handlens_runtime.golden.schema import GOLDEN, Answer, Candidate, Case, Golden, read

__all__ = [
    "GOLDEN",
    "Answer",
    "Candidate",
    "Case",
    "Golden",
    "Replay",
    "Result",
    "pattern",
    "read",
    "record",
    "replay",
]
