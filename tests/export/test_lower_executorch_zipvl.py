"""Decoders that choose a prompt's tokens inside a .pte, against the eager network that chooses as they do."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sharp_networks import CONTEXT, TAU, converse, go_back, rows_of, sharp_network
from tiny_networks import quantize_all

from handlens_export.lower import executorch
from handlens_export.lower.lowering import LoweringSpec
from handlens_export.network.network import Network
from handlens_export.network.zipvl import ZipVL
from handlens_runtime.pte import Program, open_program

METHOD = "text_decoder"


class Decoder:
    """A program in ExecuTorch, and how many rows each layer's cache holds."""

    def __init__(self, program: Program, layers: int) -> None:
        self.program, self.lengths, self.kept = program, np.zeros(layers, np.int64), np.zeros(0)

    def decode(self, rows: torch.Tensor, position: int, tau: float) -> torch.Tensor:
        inputs = [rows.numpy(), np.array([position]), np.array([tau], np.float32), self.lengths]
        logits, self.kept = self.program.run(METHOD, inputs)
        self.lengths = self.lengths + self.kept.sum(1).astype(np.int64)
        return torch.from_numpy(logits[0])


def made(folder: Path, kv: str, bits: int, **changes) -> tuple[Decoder, Network]:
    network = sharp_network(vision=True, **changes)
    layers = len(network.decoder.layers)
    quantize_all(network, bits, 32, embedding_bits=32)
    spec = LoweringSpec(CONTEXT, CONTEXT, kv, None, (), sparsity=ZipVL(TAU))
    reference = executorch.reference(copy.deepcopy(network), spec)
    part = executorch.lower_part("decoder", network, spec, folder, lambda share: None)
    executorch.join([part], folder)
    return Decoder(open_program(folder / executorch.FILE, None, [METHOD], []), layers), reference


@pytest.mark.parametrize(
    ("kv", "bits", "changes"),
    [
        ("int8", 4, {"layers": 5}),  # more than are traced
        ("float", 32, {"causal": False, "layers": 1, "qkv_bias": True}),
    ],
    ids=["int8-five-layers", "bidirectional"],
)
def test_a_conversation_of_prompts_and_answers_is_the_references(tmp_path, kv, bits, changes):
    decoder, reference = made(tmp_path, kv, bits, **changes)
    converse(decoder, reference, 0.999)


def test_at_a_tau_of_one_it_is_dense_and_going_back_is_a_matter_of_lengths(tmp_path):
    decoder, _ = made(tmp_path, "float", 32, layers=1)
    rows = rows_of(300)
    found = decoder.decode(rows[:, :149], 0, 1.0), decoder.decode(rows[:, 149:150], 149, 1.0)
    exact = sharp_network(vision=True, layers=1).logits(rows[:, :150])[0, 148:]
    torch.testing.assert_close(torch.stack(found), exact, rtol=1e-3, atol=1e-3)
    assert decoder.lengths.tolist() == [150] * len(decoder.lengths)
    go_back(decoder)
