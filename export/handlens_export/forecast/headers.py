"""Shapes of a network's parameters from a checkpoint's headers: no weight is read."""

from __future__ import annotations

from handlens_export.describe import Plan
from handlens_export.errors import CheckpointError
from handlens_export.quantize.formats import Shape


def shapes_of(planned: Plan) -> dict[str, Shape]:
    """Shape of each parameter by the network's names. Raises CheckpointError where the checkpoint lacks a tensor."""
    tensors = planned.checkpoint.tensors
    present = set(tensors.names())
    shapes: dict[str, Shape] = {}
    for name, candidates in planned.family.tensor_names(planned.config).items():
        source = next((candidate for candidate in candidates if candidate in present), None)
        if source is None:
            raise CheckpointError(f"{planned.checkpoint.path} lacks the tensor {candidates[0]}; save it again, whole.")
        shapes[name] = tensors.shape(source)
    return shapes
