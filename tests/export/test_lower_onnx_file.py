"""The same bytes from any folder and process, and nothing of the machine in them."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[2]
LOWER = """
import sys
from pathlib import Path
import torch
from handlens_export.lower import lowering
from handlens_export.lower.lowering import LoweringSpec
from handlens_export.network.config import DecoderConfig, NetworkConfig, ProjectorConfig, VisionConfig
from handlens_export.network.network import Network
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedLinear

torch.manual_seed(0)
decoder = DecoderConfig(100, 64, 2, 4, 2, 16, 96, 64, 1e-5, 1e4)
vision = VisionConfig(28, 14, 32, 1, 2, 48, 1e-6)
network = Network(NetworkConfig("test", decoder, vision, ProjectorConfig("linear", 32, 64)))
for layer in network.decoder.layers:
    layer.mlp.gate_proj = QuantizedLinear(quantize(layer.mlp.gate_proj.weight.detach(), 4, 32), None)
lowering.lower("onnx", network, LoweringSpec(32, 8, "float", None, ()), Path(sys.argv[1]), lambda done: None)
"""


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> list[Path]:
    """Lowered by two processes with other hash seeds, from and to other folders."""
    folders, processes = [], []
    for seed in ("1", "2"):
        folder = tmp_path_factory.mktemp(f"somewhere_{seed}")
        path = os.pathsep.join(str(ROOT / part) for part in ("export", "runtime"))
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", LOWER, str(folder)]
        processes.append(subprocess.Popen(command, cwd=folder, env=environment))
        folders.append(folder)
    assert [process.wait() for process in processes] == [0, 0]
    return folders


def test_two_processes_write_the_same_bytes(twice):
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in twice]
    assert len(files[0]) == 6
    assert files[0] == files[1]


def test_no_path_user_or_traceback_is_written(twice):
    words = {str(ROOT), str(twice[0]), getpass.getuser(), "site-packages", "Traceback", ".py", sys.prefix}
    for file in twice[0].rglob("*.onnx"):
        content = file.read_bytes()
        assert not [word for word in words if len(word) > 2 and word.encode() in content]
        model = onnx.load(file, load_external_data=False)
        assert (model.producer_name, model.producer_version, model.doc_string) == ("handlens", "", "")
        assert not model.metadata_props and not model.graph.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_weights_lie_outside_on_pages_of_their_own(twice):
    file = twice[0] / "onnx" / "decoder.onnx"
    model = onnx.load(file, load_external_data=False)
    places = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data]
    assert len(places) > 10
    assert {place["location"] for place in places} == {"decoder.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
