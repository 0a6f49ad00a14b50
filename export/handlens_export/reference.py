"""The yardstick of a bundle's program: its checkpoint, rounded in eager torch as the backend rounds."""

from __future__ import annotations

from handlens_export.describe import METHOD, Plan
from handlens_export.errors import UnsupportedError
from handlens_export.lower.lowering import LoweringSpec, find
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.quantize.kv_scales import load_scales
from handlens_export.quantize.network import quantize_network
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_runtime.bundle import Bundle
from handlens_runtime.manifest import BackendName, Manifest


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that a bundle was made by. Raises UnsupportedError for one of another rounding than ours."""
    if manifest.quantization.method != METHOD:
        raise UnsupportedError(
            f"The bundle's weights were rounded by {manifest.quantization.method}, this HandLens rounds by {METHOD}; "
            "export the checkpoint again, or check with the HandLens that made the bundle."
        )
    return Recipe(**manifest.quantization.recipe.model_dump(), kv=manifest.quantization.kv)


def reference(bundle: Bundle, planned: Plan, backend: BackendName) -> Network:
    """The network whose eager forward is what `backend`'s program should compute. Raises CheckpointError."""
    manifest = bundle.manifest
    recipe = recipe_of(manifest)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    with StageCache() as kept:
        network, _ = quantize_network(parameters, planned.config, recipe, planned.context, lambda _share: None, kept)
    scales = None
    if manifest.quantization.kv_scales is not None:
        scales = load_scales(bundle.file(manifest.quantization.kv_scales))
    spec = LoweringSpec(
        context=planned.context,
        max_chunk=manifest.sizes.max_chunk,
        kv=recipe.kv,
        bos_id=planned.bos_id,
        eos_ids=manifest.chat.stop_ids,
        kv_scales=scales,
    )
    return find(backend).reference(network, spec)
