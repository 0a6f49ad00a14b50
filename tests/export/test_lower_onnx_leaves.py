"""Each leaf's eager forward against ONNX Runtime's own kernel, one node at a time."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from handlens_export.errors import UnsupportedError
from handlens_export.lower.onnx_leaves import PackedEmbedding, PackedLinear, pack, unpack
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear, QuantizedWeight


def random_weight(rows: int, columns: int, bits: int, group: int, symmetric: bool) -> QuantizedWeight:
    scales = torch.rand(rows, columns // group) * 0.02 + 0.005
    if symmetric:
        values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), dtype=torch.int8)
        return QuantizedWeight(values, scales, None, bits, group)
    values = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, scales.shape, dtype=torch.uint8)
    return QuantizedWeight(values, scales, zeros, bits, group)


def run_node(op: str, inputs: list[torch.Tensor | None], dynamic: int, **attributes: int) -> torch.Tensor:
    """One contrib node; input number `dynamic` is fed, the others are constants, as in a program."""
    names = ["" if x is None else f"i{n}" for n, x in enumerate(inputs)]
    constants = [
        numpy_helper.from_array(x.numpy(), name)
        for n, (x, name) in enumerate(zip(inputs, names, strict=True))
        if x is not None and n != dynamic
    ]
    fed = inputs[dynamic].numpy()
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)],
        "g",
        [helper.make_tensor_value_info(names[dynamic], helper.np_dtype_to_tensor_dtype(fed.dtype), fed.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {names[dynamic]: fed})[0])


def weight_cases():
    for bits in (2, 4, 8):
        for symmetric in (True, False):
            yield from ((bits, 256, group, symmetric) for group in (16, 32, 64, 128, 256))
            yield from ((bits, columns, columns, symmetric) for columns in (72, 576))  # a scale per row, padded blocks
    yield 4, 192, 96, True  # a group that is no power of two takes the largest block that divides it


@pytest.mark.parametrize("rows_in", [1, 33])
@pytest.mark.parametrize(("bits", "columns", "group", "symmetric"), list(weight_cases()))
def test_linear_rounds_as_the_kernel_does(bits, columns, group, symmetric, rows_in):
    torch.manual_seed(bits * columns + group)
    weight = random_weight(24, columns, bits, group, symmetric)
    bias = torch.randn(24)
    leaf = PackedLinear(QuantizedLinear(weight, bias), "w")
    x = torch.randn(rows_in, columns)
    x[0, : min(leaf.block, 64)] = 0  # a block of zeros has no scale to divide by
    y = run_node(
        "MatMulNBits",
        [x, leaf.packed, leaf.scales, leaf.zeros, None, leaf.bias],
        0,
        K=columns,
        N=24,
        bits=bits,
        block_size=leaf.block,
        accuracy_level=4,
    )
    exact = torch.nn.functional.linear(x, weight.dequantize(), bias)
    assert torch.equal(leaf.dequantize(), weight.dequantize())
    assert (y - leaf(x)).norm() / exact.norm() < 1e-5  # rounding activations itself moves the result by 4e-3


@pytest.mark.parametrize(("columns", "group"), [(72, 72), (128, 32), (60, 60)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_embedding_is_looked_up_as_the_kernel_does(columns, group, symmetric):
    torch.manual_seed(0)
    weight = random_weight(50, columns, 8, group, symmetric)
    leaf = PackedEmbedding(QuantizedEmbedding(weight))
    ids = torch.tensor([[0, 49, 7, 7]])
    inputs = [leaf.packed, ids, leaf.scales, leaf.zeros][: 3 if symmetric else 4]
    y = run_node("GatherBlockQuantized", inputs, 1, bits=8, block_size=leaf.block, gather_axis=0, quantize_axis=1)
    assert torch.equal(y, leaf(ids))
    assert torch.equal(leaf(ids)[0], weight.dequantize()[ids[0]])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_undone_by_unpacking(bits):
    values = torch.randint(0, 2**bits, (3, 16), dtype=torch.uint8)
    packed = pack(values, bits)
    assert packed.shape == (3, 16 * bits // 8)
    assert torch.equal(unpack(packed, bits), values)
    assert int(packed[0, 0]) & (2**bits - 1) == int(values[0, 0])


def test_a_group_that_no_block_divides_is_refused_by_name():
    weight = random_weight(8, 120, 4, 24, True)
    with pytest.raises(UnsupportedError, match=r"decoder\.head is quantized in groups of 24 columns"):
        PackedLinear(QuantizedLinear(weight, None), "decoder.head")
