"""The yardstick of a bundle's program: its checkpoint, rounded in eager torch as the backend rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from handlens_export.describe import Plan, method_of
from handlens_export.errors import UnsupportedError
from handlens_export.lower.lowering import LoweringSpec, find
from handlens_export.measuring import calibration_of
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.network.zipvl import ZipVL
from handlens_export.quantize.calibrated import Calibration
from handlens_export.quantize.kv_scales import load_scales
from handlens_export.quantize.network import quantize_network
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_export.transform.transformed import transformed
from handlens_runtime.bundle import Bundle
from handlens_runtime.manifest import BackendName, Manifest


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that a bundle was made by. Raises UnsupportedError for one of another rounding than ours."""
    saved = manifest.quantization.recipe.model_dump(exclude={"calibration"})
    recipe = Recipe(**saved, kv=manifest.quantization.kv)
    if manifest.quantization.method != method_of(recipe):
        raise UnsupportedError(
            f"The bundle's weights were made by {manifest.quantization.method}, this HandLens has {method_of(recipe)}; "
            "export the checkpoint again, or check with the HandLens that made the bundle."
        )
    return recipe


def rounded(bundle: Bundle, planned: Plan) -> tuple[Parameters, Network]:
    """A bundle's network, its weights on their grids, and the float parameters that were rounded, after transforms.

    Raises CheckpointError, and UnsupportedError for a bundle of another rounding than ours.
    """
    recipe = recipe_of(bundle.manifest)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    calibration = _calibration(bundle, planned) if recipe.looks_at_activations else None
    with StageCache() as kept:
        parameters = transformed(parameters, planned.config, recipe, kept, calibration)
        network, _ = quantize_network(
            parameters, planned.config, recipe, planned.context, lambda _share: None, kept, calibration
        )
    return parameters, network


def reference(bundle: Bundle, planned: Plan, backend: BackendName) -> Network:
    """The network whose eager forward is what `backend`'s program should compute. Raises as `rounded`."""
    manifest = bundle.manifest
    recipe = recipe_of(manifest)
    _, network = rounded(bundle, planned)
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
        sparsity=None if manifest.sparsity is None else ZipVL(manifest.sparsity.tau),
    )
    return find(backend).reference(network, spec)


def _calibration(bundle: Bundle, planned: Plan) -> Calibration:
    """The built-in set again; in place of the user's own, which a bundle does not hold, the layers in the cache."""
    built_in = calibration_of(None, planned, bundle.manifest)
    recorded = bundle.manifest.quantization.recipe.calibration
    if recorded in (None, built_in.digest):
        return built_in

    def gone(network: Network) -> Sequence[Tensor]:
        raise UnsupportedError(
            f"The layers of {bundle.path} were calibrated and are not in the cache any more; "
            "export it again, to another folder, and check that."
        )

    return replace(built_in, digest=recorded, rows=gone)
