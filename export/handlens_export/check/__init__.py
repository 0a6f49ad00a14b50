"""Does a bundle answer like its checkpoint? Stage by stage, on real photographs.

    preprocessing ─▶ vision encoder ─▶ projector ─▶ embedding ─▶ prefill ─▶ decode

Each stage of the program is given the reference's input, so the first stage that departs is the one at fault. The
reference is the checkpoint with weights, activations and cache rounded as the backend rounds them: a program equal to
it is right, however far rounding itself has moved the answer. How far that is, against the float checkpoint, is
reported beside and never mixed in.
"""

from handlens_export.check.report import STAGES, Distance, Finding, Report, Stage
from handlens_export.check.run import check

__all__ = ["STAGES", "Distance", "Finding", "Report", "Stage", "check"]
