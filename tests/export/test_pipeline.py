"""From a checkpoint to a bundle: what each stage is given, what is refused before any work, what a failure leaves."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from handlens_export import pipeline
from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.errors import CheckpointError, TargetError, UnsupportedError
from handlens_export.photographs import photographs
from handlens_export.pipeline import export
from handlens_export.quantize.weight import QuantizedLinear
from handlens_export.recipe import Recipe
from handlens_export.reference import recipe_of
from handlens_runtime.bundle import MANIFEST, SEAL, Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.golden import Golden
from handlens_runtime.manifest import BackendGraphs, Graph, PartQuantization
from handlens_runtime.options import Options

ONNX, EXECUTORCH = Recipe(backends=("onnx",)), Recipe(backends=("executorch",))


class FakeLowering:
    """Writes a small file in place of a program, and notes what it was given."""

    def __init__(self):
        self.given = {}
        self.failure: BaseException | None = None
        self.not_delegated = {}

    def named(self, name):
        def lower_part(part, network, spec, folder, progress):
            self.given[name] = (network, spec, type(network.decoder.head))
            network.decoder.head = nn.Identity()  # a lowering swaps leaves in place
            progress(0.5)
            file = folder / name / "decoder"
            file.parent.mkdir()
            file.write_text(name)
            if self.failure is not None:
                raise self.failure
            progress(1.0)
            return f"{name} lowered"

        def join(made, folder):
            assert made == [f"{name} lowered"]
            graph = {"file": f"{name}/decoder", "method": "forward", "inputs": (), "outputs": ()}
            decoder = Graph(**graph, nodes=10, delegated=9, not_delegated=self.not_delegated)
            return BackendGraphs(decoder=decoder, files=(f"{name}/decoder",))

        lowering = type("Lowering", (), {})()
        lowering.lower_part, lowering.join = lower_part, join
        lowering.parts = lambda network: ("decoder",)
        return lowering


@pytest.fixture
def lowering(monkeypatch) -> FakeLowering:
    fake = FakeLowering()
    monkeypatch.setattr(pipeline, "find", fake.named)
    monkeypatch.setattr(pipeline, "cores", lambda: 1)  # what a job notes in a process of its own is not seen here
    monkeypatch.setattr(pipeline, "record", lambda bundle, progress: Golden(cases=()))
    return fake


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint, tmp_path_factory):
    made = {}

    def of(family, variant=0):
        if (family, variant) not in made:
            made[family, variant] = tiny_checkpoint(family, tmp_path_factory.mktemp(family), variant)
        return made[family, variant]

    return of


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_bundle_is_whole_and_sealed(lowering, checkpoints, tmp_path):
    manifest = export(checkpoints("llama"), tmp_path / "bundle", Recipe())
    expected = ["executorch/decoder", "golden.json", "kv_scales.npz", "onnx/decoder", "tokenizer.json"]
    assert sorted(manifest.files) == expected
    assert names(tmp_path) == sorted(f"bundle/{name}" for name in (*expected, MANIFEST, SEAL))
    assert Bundle.load(tmp_path / "bundle").manifest == manifest


@pytest.mark.parametrize("method", ["round", "gptq"])
def test_progress_grows_through_all_stages_to_the_whole(lowering, checkpoints, tmp_path, method):
    told = []
    export(
        checkpoints("llama"),
        tmp_path / "b",
        Recipe(method=method),
        progress=lambda stage, share: told.append((stage, share)),
    )
    shares = [round(share, 9) for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["read", "quantize", "lower", "record", "bundle"]


def test_each_backend_lowers_leaves_of_its_own(lowering, checkpoints, tmp_path):
    export(checkpoints("llama"), tmp_path / "bundle", Recipe())
    (one, _, first), (other, _, second) = lowering.given["executorch"], lowering.given["onnx"]
    assert one is not other
    assert first is second is QuantizedLinear
    # Around the same integers: two backends take no more memory than one.
    shared = [n.decoder.layers[0].mlp.up_proj.quantized.values.data_ptr() for n in (one, other)]
    assert shared[0] == shared[1]


@pytest.mark.parametrize(
    ("recipe", "scales"),
    [
        (Recipe(), True),
        (ONNX, True),
        (EXECUTORCH, False),
        (Recipe(kv="float"), False),
    ],
    ids=["both", "onnx", "executorch", "float"],
)
def test_static_scales_are_made_only_where_a_cache_needs_them(lowering, checkpoints, tmp_path, recipe, scales):
    manifest = export(checkpoints("llama"), tmp_path / "bundle", recipe)
    assert ("kv_scales.npz" in manifest.files) == scales
    for backend, (_, spec, _) in lowering.given.items():
        assert (spec.kv_scales is not None) == (scales and backend == "onnx")
    assert all(spec.kv == recipe.kv for _, spec, _ in lowering.given.values())


@pytest.mark.parametrize(
    ("family", "asked", "context", "chunk", "max_chunk"),
    [
        ("llama", {}, 512, 128, 128),  # as long as it was trained for
        ("llama", {"context": 64}, 64, 64, 64),
        ("llama", {"chunk": 256}, 512, 256, 256),
        ("llama", {"chunk": 16}, 512, 16, 128),  # ExecuTorch's runner still prefills 128 at a time
        ("bluelm_v", {"chunk": 16, "context": 300}, 300, 16, 128),
        ("paligemma", {"context": 200}, 200, 128, 200),  # a prompt that sees all of itself comes in one call
    ],
)
def test_sizes_follow_the_recipe(lowering, checkpoints, tmp_path, family, asked, context, chunk, max_chunk):
    manifest = export(checkpoints(family), tmp_path / "bundle", Recipe(backends=("onnx",), **asked))
    sizes, (_, spec, _) = manifest.sizes, lowering.given["onnx"]
    assert (sizes.context, sizes.chunk, sizes.max_chunk) == (context, chunk, max_chunk)
    assert (spec.context, spec.max_chunk) == (context, max_chunk)
    assert spec.eos_ids == manifest.chat.stop_ids and spec.bos_id is not None
    assert manifest.causal == (family != "paligemma")


@pytest.mark.parametrize("failure", [RuntimeError("a kernel is missing"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("existing", [False, True], ids=["new", "over-an-old-one"])
def test_a_lowering_that_fails_leaves_all_as_it_was(lowering, checkpoints, tmp_path, failure, existing):
    target = tmp_path / "bundle"
    if existing:
        export(checkpoints("llama"), target, ONNX)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    lowering.failure = failure
    with pytest.raises(type(failure)):
        export(checkpoints("llama"), target, ONNX, force=True)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (["bundle"] if existing else [])


def test_a_program_with_too_little_delegated_leaves_nothing(lowering, checkpoints, tmp_path):
    lowering.not_delegated = {"aten_add": 6}
    with pytest.raises(UnsupportedError, match="leaves 6 of 10 nodes"):
        export(checkpoints("llama"), tmp_path / "bundle", EXECUTORCH)
    assert names(tmp_path) == []
    export(checkpoints("llama"), tmp_path / "bundle", Recipe(backends=("executorch",), max_portable=0.6))


def test_force_replaces_a_bundle(lowering, checkpoints, tmp_path):
    export(checkpoints("llama"), tmp_path / "bundle", Recipe())
    with pytest.raises(TargetError, match="already exists"):
        export(checkpoints("llama"), tmp_path / "bundle", ONNX)
    export(checkpoints("llama"), tmp_path / "bundle", ONNX, force=True)
    assert "executorch/decoder" not in names(tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.fixture
def no_work(monkeypatch):
    """Reading a weight is an error."""

    def refuse(*_):
        raise AssertionError("a weight was read before the refusal")

    monkeypatch.setattr(pipeline, "quantize_network", refuse)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"bits": 2}, "--bits 2 is not a format of the executorch backend, whose kernels take 3, 4, 8, 32"),
        ({"bits": 5, "backends": ("onnx",)}, "--bits 5 is not a format of the onnx backend"),
        ({"head_bits": 2}, "--head-bits 2 is not a format of the executorch"),
        ({"vision_bits": 2}, "--vision-bits 2 is not a format of the executorch"),
        ({"embedding_bits": 4}, "--embedding-bits 4 is not possible; choose 8 or 32"),
        ({"group": 48}, "--group 48 is not possible; choose one of 32, 64, 128"),
        ({"backends": ()}, "No backend was asked for"),
        ({"chunk": 0}, "--chunk is 0"),
        ({"context": 1}, "--context is 1"),
        ({"max_portable": 1.5}, "--max-portable is 1.5"),
    ],
)
def test_formats_that_no_kernel_takes_are_refused(asked, sentence):
    with pytest.raises(UnsupportedError, match=sentence) as error:
        Recipe(**asked)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("family", "context", "sentence"),
    [
        ("llama", 513, "--context 513 is more than the 512 positions"),
        ("bluelm_v", 25, "One tile of .* takes 25 tokens, which a --context of 25"),
    ],
)
def test_a_context_that_does_not_fit_is_refused_before_any_work(checkpoints, tmp_path, family, context, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        export(checkpoints(family), tmp_path / "deep" / "bundle", Recipe(context=context))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_work")
def test_places_and_checkpoints_are_refused_before_any_work(checkpoints, tmp_path):
    checkpoint = checkpoints("llama")
    with pytest.raises(TargetError, match="is not a bundle, so --force does not replace it"):
        export(checkpoint, checkpoint, Recipe(), force=True)
    with pytest.raises(CheckpointError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "bundle", Recipe())
    with pytest.raises(CheckpointError):
        export(tmp_path, tmp_path / "bundle", Recipe())
    assert list(tmp_path.iterdir()) == []


def test_a_lora_folder_is_read_with_the_checkpoint(lowering, checkpoints, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "read", lambda source, lora: asked.append(lora) or read(source))
    export(checkpoints("llama"), tmp_path / "bundle", ONNX, lora=tmp_path / "adapter")
    assert asked == [tmp_path / "adapter"]


PARTS = {
    part: PartQuantization(bits=4, group=32, symmetric=True, parameters=1000, bytes=600)
    for part in ("embedding", "decoder", "head")
}


@pytest.mark.parametrize(("family", "total"), [("gemma", 2000), ("llama", 3000)])
def test_a_tied_head_is_one_matrix_in_the_count_and_two_in_memory(checkpoints, family, total):
    planned = plan(read(checkpoints(family)), Recipe())
    manifest = describe(planned, Recipe(), PARTS)
    assert manifest.sizes.parameters == total and manifest.name == f"{family}-{total // 1000}K"
    assert sum(manifest.memory.weights.values()) == 1800


@pytest.mark.parametrize(("kv", "row"), [("int8", 16 + 4), ("float", 16 * 4)])
def test_the_caches_bytes_are_those_that_the_backend_allocates(checkpoints, kv, row):
    planned = plan(read(checkpoints("llama")), Recipe(context=100))
    memory = describe(planned, Recipe(context=100, kv=kv), PARTS).memory
    assert memory.kv_cache == 2 * 2 * 100 * 2 * row  # keys and values, layers, tokens, heads
    assert memory.peak > memory.kv_cache + sum(memory.weights.values())


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(context=512),
        Recipe(("onnx",), bits=8, group=64, head_bits=2, vision_bits=4, embedding_bits=32, kv="float", context=100),
        Recipe(("executorch",), bits=32, group=128, head_bits=4, context=64, chunk=200, max_portable=0.25),
    ],
)
def test_a_bundle_says_by_which_recipe_it_was_made(checkpoints, recipe):
    assert recipe_of(describe(plan(read(checkpoints("llama")), recipe), recipe, PARTS)) == recipe


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names(folder)}


SCRIPT = """
import sys
from pathlib import Path
from handlens_export.pipeline import export
from handlens_export.recipe import Recipe
export(Path(sys.argv[1]), Path(sys.argv[2]), Recipe())
"""


@pytest.mark.parametrize("family", ["bluelm_v", pytest.param("llama", marks=pytest.mark.long)])
def test_the_same_checkpoint_gives_the_same_bytes_from_anywhere(exported, tmp_path, family):
    """In another process with another hash seed, from another folder of another name, to another place."""
    made = exported(family)
    shutil.copytree(made.checkpoint, tmp_path / "else where" / "renamed")
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p),
        "TZ": "Asia/Tokyo",
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, "renamed", "../bündel"]
    ran = subprocess.run(
        command, cwd=tmp_path / "else where", env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert digests(tmp_path / "bündel") == digests(made.bundle)


@pytest.mark.parametrize("backend", ["executorch", "onnx"])
def test_a_bundle_answers_from_wherever_it_was_moved(exported, tmp_path, monkeypatch, backend):
    made = exported("bluelm_v")
    moved = Path(shutil.copytree(made.bundle, tmp_path / "Größe 東京" / "b"))
    monkeypatch.chdir(tmp_path / "Größe 東京")
    messages = [Message("user", "What is this?", images=(photographs()[0],))]
    options = Options(max_tokens=4, temperature=0.0)
    first = [token.id for token in Engine(made.bundle, backend).generate(messages, options)]
    for folder in (moved, Path("b")):
        assert [token.id for token in Engine(folder, backend).generate(messages, options)] == first


def test_an_export_needs_no_gradients_and_leaves_no_global_switched(lowering, checkpoints, tmp_path):
    state = torch.random.get_rng_state()
    export(checkpoints("llama"), tmp_path / "bundle", ONNX)
    assert torch.is_grad_enabled() and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("jobs", [0, -1])
def test_fewer_jobs_than_one_are_refused_before_any_work(lowering, checkpoints, tmp_path, jobs):
    with pytest.raises(UnsupportedError, match=f"jobs is {jobs}"):
        export(checkpoints("llama"), tmp_path / "bundle", ONNX, jobs=jobs)
    assert not lowering.given and not (tmp_path / "bundle").exists()
