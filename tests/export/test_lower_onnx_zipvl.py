"""Decoders that choose a prompt's tokens inside the ONNX program, against the eager network that chooses as they do."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from sharp_networks import CONTEXT, TAU, converse, go_back, rows_of, sharp_network
from tiny_networks import quantize_all

from handlens_export.lower import onnx
from handlens_export.lower.lowering import LoweringSpec
from handlens_export.network.network import Network
from handlens_export.network.zipvl import ZipVL
from handlens_export.quantize.kv_scales import calibrate


class Program:
    """A decoder in ONNX Runtime, its caches and how many rows each layer's holds."""

    def __init__(self, file: Path) -> None:
        self.session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        kinds = {"tensor(int8)": np.int8, "tensor(float)": np.float32}
        past = [one for one in self.session.get_inputs() if one.name.startswith("past_")]
        self.caches = {
            one.name.removeprefix("past_"): ort.OrtValue.ortvalue_from_numpy(np.zeros(one.shape, kinds[one.type]))
            for one in past
        }
        self.lengths = np.zeros(len(past) // 2, np.int32)
        self.kept = np.zeros(0)

    def decode(self, rows: torch.Tensor, position: int, tau: float) -> torch.Tensor:
        binding = self.session.io_binding()
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(f"present_{name}", cache)
        given = {"rows": rows.numpy(), "position": np.array([position], np.int32), "lengths": self.lengths}
        for name, value in {**given, "tau": np.array([tau], np.float32)}.items():
            binding.bind_cpu_input(name, value)
        for name in ("logits", "kept"):
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        logits, self.kept = (one.numpy() for one in binding.get_outputs()[-2:])
        self.lengths = self.lengths + self.kept.sum(1).astype(np.int32)
        return torch.from_numpy(logits[0])


def made(folder: Path, kv: str, **changes) -> tuple[Program, Network]:
    """Linears in float: those of 4 bits round what goes in to int8, which differs by processor (`test_lower_onnx`)."""
    network, scales = sharp_network(**changes), None
    if kv == "int8":
        scales = calibrate(network, [network.decoder.embedding(torch.randint(0, 200, (1, 60)))])
    quantize_all(network, 32, 32, embedding_bits=32)
    spec = LoweringSpec(CONTEXT, CONTEXT, kv, None, (), kv_scales=scales, sparsity=ZipVL(TAU))
    reference = onnx.reference(copy.deepcopy(network), spec)
    onnx.lower_part("decoder", network, spec, folder, lambda share: None)
    return Program(folder / "onnx" / "decoder.onnx"), reference


@pytest.mark.parametrize(
    ("kv", "changes"),
    [
        ("float", {}),
        ("int8", {"qkv_bias": True}),
        ("float", {"causal": False, "head_dim": 12, "heads": 4, "layers": 1}),
    ],
    ids=["float", "int8", "bidirectional-padded-heads"],
)
def test_a_conversation_of_prompts_and_answers_is_the_references(tmp_path, kv, changes):
    program, reference = made(tmp_path, kv, **changes)
    converse(program, reference, 0.9999)


def test_at_a_tau_of_one_it_is_dense_and_going_back_is_a_matter_of_lengths(tmp_path):
    program, _ = made(tmp_path, "float")
    rows = rows_of(300)
    exact = sharp_network()
    found = program.decode(rows[:, :149], 0, 1.0), program.decode(rows[:, 149:150], 149, 1.0)
    torch.testing.assert_close(torch.stack(found), exact.logits(rows[:, :150])[0, 148:], rtol=1e-3, atol=1e-3)
    assert program.lengths.tolist() == [150] * len(program.lengths)
    go_back(program)
