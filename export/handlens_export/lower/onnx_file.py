"""From a traced program to an .onnx file and its data: nothing of the exporting machine, the same bytes every time."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

OPSET = 21
DATA_SUFFIX = ".data"
INLINE_BYTES = 1024
"""Smaller tensors stay in the .onnx file, where shape inference can see them."""
ALIGNMENT = 4096
"""Offsets in the data file are multiples of this (a page), so that each tensor can be mapped on its own."""


def trace(
    program: nn.Module,
    example: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ir.Model:
    """Trace `program` into an ONNX model in memory; weights are shared with the program, not copied."""
    with _quiet(), torch.no_grad():
        traced = torch.onnx.export(
            program,
            example,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            verbose=False,
        )
    assert traced is not None
    return traced.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the tracer says about its own internals, which a user of this package cannot act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def strip(model: ir.Model) -> None:
    """Remove stack traces, paths, versions and notes: all that a file does not need to be run."""
    model.producer_name, model.producer_version = "handlens", None
    model.doc_string, model.domain, model.model_version = None, None, None
    model.metadata_props.clear()
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()
    if value.const_value is not None:
        value.const_value.doc_string = None
        value.const_value.metadata_props.clear()


def write(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write `path` and, where weights are large, `path`.data beside it; returns the files written, in that order.

    Tensors go to the data file one after another in the graph's order, so that no second copy of the weights is made.
    """
    strip(model)
    data = path.with_name(path.name + DATA_SUFFIX)
    large = [v for v in model.graph.initializers.values() if v.const_value and v.const_value.nbytes >= INLINE_BYTES]
    if large:
        with data.open("wb") as file:
            for value in large:
                _move(value, file, data)
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return (path, data) if large else (path,)


def _move(value: ir.Value, file: Any, data: Path) -> None:
    """Append one initializer to the open data file and leave a reference in its place."""
    tensor = value.const_value
    assert tensor is not None and value.name is not None
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    offset = file.tell()
    file.write(np.ascontiguousarray(tensor.numpy()).data)
    value.const_value = ir.ExternalTensor(
        data.name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name,
        base_dir=data.parent,
    )


def float_linears(model: ir.Model) -> dict[str, int]:
    """Matrix products with a weight left in float, by operator."""
    weights = set(model.graph.initializers.values())
    found: dict[str, int] = {}
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm") and any(_origin(v) in weights for v in node.inputs):
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The value behind a transposition."""
    producer = None if value is None else value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else value


def contrib_nodes(model: ir.Model) -> int:
    """Nodes that are ONNX Runtime contrib operators."""
    graphs = (model.graph, *model.graph.subgraphs())
    return sum(node.domain == "com.microsoft" for graph in graphs for node in graph)
