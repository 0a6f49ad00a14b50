"""The yardstick of a bundle's program: its checkpoint, rounded in eager torch as the backend rounds."""

from __future__ import annotations

from handlens_export.describe import Plan
from handlens_export.lower.lowering import LoweringSpec, find
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.quantize.calibration import calibration_rows
from handlens_export.quantize.kv_scales import calibrate
from handlens_export.quantize.network import quantize_network
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import TOKENIZER, Bundle
from handlens_runtime.manifest import BackendName, Manifest
from handlens_runtime.tokenizer import Tokenizer


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that a bundle was made by."""
    parts = manifest.quantization.parts
    decoder = parts["decoder"]
    return Recipe(
        backends=tuple(manifest.backends),
        bits=decoder.bits,
        group=decoder.group or Recipe.group,
        head_bits=parts["head"].bits,
        vision_bits=parts["vision"].bits if "vision" in parts else Recipe.vision_bits,
        embedding_bits=parts["embedding"].bits,
        kv=manifest.quantization.kv,
        context=manifest.sizes.context,
        chunk=manifest.sizes.chunk,
    )


def reference(bundle: Bundle, planned: Plan, backend: BackendName) -> Network:
    """The network whose eager forward is what `backend`'s program should compute. Raises CheckpointError."""
    manifest = bundle.manifest
    recipe = recipe_of(manifest)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    network, _ = quantize_network(parameters, planned.config, recipe, planned.context, lambda _share: None)
    scales = None
    if backend == "onnx" and recipe.kv == "int8":
        rows = calibration_rows(network, manifest, Tokenizer(bundle.file(TOKENIZER)))
        scales = calibrate(network, rows)
    spec = LoweringSpec(
        context=planned.context,
        max_chunk=manifest.sizes.max_chunk,
        kv=recipe.kv,
        bos_id=planned.bos_id,
        eos_ids=manifest.chat.stop_ids,
        kv_scales=scales,
    )
    return find(backend).reference(network, spec)
