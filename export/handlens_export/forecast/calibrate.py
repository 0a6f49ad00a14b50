"""`handlens plan --calibrate`: this machine as a device, measured with the kernel that its programs run on."""

from __future__ import annotations

import os
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from handlens_export.forecast.device import DESKTOP, Device
from handlens_runtime.bench.bandwidth import READ_BYTES, Bandwidth, best

EFFICIENCY = 0.85
"""Share of the measured rates that a whole network reaches: ExecuTorch decoded 2.5B parameters at 25 to 28 of 30 GB/s
on two cores (README.md). The rates here are measured, not a data sheet's, so that it is far above a phone's."""
PRODUCT = (128, 2560, 6912)
"""Rows, columns, outputs: a chunk of a prompt through a linear of BlueLM-V-3B's feed-forward."""
SECONDS = 1.0
"""Each rate is the best of the passes that fit into this, after one to warm up: other work only ever slows a pass."""


def calibrate(
    read_bytes: int = READ_BYTES, product: tuple[int, int, int] = PRODUCT, seconds: float = SECONDS
) -> Device:
    """Measure read bandwidth and int8 products, on all cores that this process may use. Takes `seconds` for each."""
    return Device(
        name=DESKTOP,
        bandwidth=Bandwidth(cores(), read_bytes).measure(seconds),
        int8=product_rate(product, seconds),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        efficiency=EFFICIENCY,
        note=f"measured {time.strftime('%Y-%m-%d')} on {cores()} cores",
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def product_rate(product: tuple[int, int, int], seconds: float) -> float:
    """Operations a second of one MatMulNBits of 8 bits, activations rounded to int8."""
    rows, columns, outputs = product
    session = _linear(columns, outputs)
    given = {"x": np.ones((rows, columns), np.float32)}
    return 2 * rows * columns * outputs / best(lambda: session.run(None, given), seconds)


def _linear(columns: int, outputs: int, block: int = 128) -> ort.InferenceSession:
    """A program of one linear, as the lowering writes it."""
    blocks = -(-columns // block)
    weights = np.full((outputs, blocks, block), 129, np.uint8)
    scales = np.full(outputs * blocks, 0.01, np.float32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "weights", "scales"],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=outputs,
        bits=8,
        block_size=block,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [
            helper.make_tensor("weights", TensorProto.UINT8, weights.shape, weights.tobytes(), raw=True),
            helper.make_tensor("scales", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
