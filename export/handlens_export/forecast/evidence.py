"""The model of `speed` held against published figures: which it was fitted on, which it predicts, and how far off.

    python -m handlens_export.forecast.evidence          prints EVIDENCE.md, which a test compares with the file
    python -m handlens_export.forecast.evidence --fit    prints the fitted constants

Published figures: BlueLM-V-3B (arXiv 2411.10640), and the READMEs and tables named beside each row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from handlens_export.forecast.device import Device, find
from handlens_export.forecast.files import weight_bytes
from handlens_export.forecast.speed import Passes, prefill_seconds, tokens_per_second, vision_seconds
from handlens_export.memory import estimate, kv_cache
from handlens_export.network.config import DecoderConfig, NetworkConfig, ProjectorConfig, VisionConfig
from handlens_export.network.network import Network
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import Recipe

NPU_FORMAT = Recipe(backends=("executorch",), bits=4, group=128, head_bits=4)
"""Stands for formats of NPUs, which are not published: 4 bits, head included, int8 cache."""
CPU_FORMAT = Recipe(backends=("executorch",), bits=4, group=32, head_bits=8)
"""ExecuTorch's, and close to llama.cpp's Q4_0 with its 6-bit head: 4.5 bits a weight."""


def _llama(
    width: int, layers: int, heads: int, kv_heads: int, mlp: int, vocabulary: int, head: int = 128
) -> NetworkConfig:
    decoder = DecoderConfig(vocabulary, width, layers, heads, kv_heads, head, mlp, 4096, 1e-5, 10_000.0, tied_head=True)
    return NetworkConfig("llama", decoder)


BLUELM = NetworkConfig(
    "bluelm_v",
    _llama(2560, 36, 20, 4, 6912, 100_352).decoder,
    VisionConfig(384, 14, 1152, 27, 16, 4304, 1e-6),
    ProjectorConfig("downsample_mlp", 1152, 2560, 2),
)
QWEN25_3B = _llama(2048, 36, 16, 2, 11008, 151_936)
QWEN3_4B = _llama(2560, 36, 32, 8, 9728, 151_936)
LLAMA32_3B = _llama(3072, 28, 24, 8, 8192, 128_256)
LLAMA2_7B = _llama(4096, 32, 32, 32, 11008, 32_000)
LLAMA3_8B = _llama(4096, 32, 32, 8, 14336, 128_256)
LLAVA_7B = NetworkConfig(
    "llava", LLAMA2_7B.decoder, VisionConfig(336, 14, 1024, 23, 16, 4096, 1e-5), ProjectorConfig("linear", 1024, 4096)
)


@dataclass(frozen=True)
class Row:
    """One published figure."""

    device: str
    what: str
    source: str
    published: float
    unit: Literal["tok/s", "s", "GB"]
    predict: Callable[[Device], float]
    fitted: str = ""
    """The constant that was fitted on it."""
    remark: str = ""

    @property
    def predicted(self) -> float:
        """By the shipped device."""
        return self.predict(find(self.device))

    @property
    def error(self) -> float:
        """Relative; 0.1 is a tenth too high."""
        return self.predicted / self.published - 1


def passes(config: NetworkConfig, recipe: Recipe) -> Passes:
    """What a network in a format asks of a device."""
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in Network(config, context=1).named_parameters()}
    weights = weight_bytes(shapes, recipe, "executorch")
    step, seen = weights["decoder"] + weights["head"], weights.get("vision", 0) + weights.get("projector", 0)
    return Passes(config, step, seen, kv_cache(config, "executorch", recipe.kv, 1), 128, tile_batch=4)


def _decode(config: NetworkConfig, recipe: Recipe, position: int) -> Callable[[Device], float]:
    return lambda device: tokens_per_second(passes(config, recipe), device, position)


def _prefill_rate(config: NetworkConfig, recipe: Recipe, tokens: int) -> Callable[[Device], float]:
    return lambda device: tokens / prefill_seconds(passes(config, recipe), device, tokens)


def _bluelm(tiles: int, tokens: int) -> Callable[[Device], float]:
    asked = passes(BLUELM, NPU_FORMAT)
    return lambda device: vision_seconds(asked, device, tiles) + prefill_seconds(asked, device, tokens)


def _llava_prefill(device: Device) -> float:
    asked = passes(LLAVA_7B, CPU_FORMAT)
    return vision_seconds(asked, device, 1) + prefill_seconds(asked, device, 576 + 50)


def _peak(config: NetworkConfig, recipe: Recipe, context: int) -> Callable[[Device], float]:
    def predict(device: Device) -> float:
        with torch.device("meta"):
            shapes = {name: tuple(weight.shape) for name, weight in Network(config, context=1).named_parameters()}
        needs = estimate(config, recipe, context, max(128, config.tokens_per_tile), weigh(shapes, recipe))
        return needs.backends["executorch"].peak / 1e9  # one pass a tile, and weights once, as on an NPU

    return predict


D9300, GEN3, GEN3_NPU = "dimensity-9300", "snapdragon-8-gen-3", "snapdragon-8-gen-3-npu"
ELITE, ELITE_NPU = "snapdragon-8-elite", "snapdragon-8-elite-npu"
TABLE5, NPU_TABLE = "BlueLM-V-3B, table 5", "PowerServe, README"
PERF, ET = "AI Hub, perf.yaml", "ExecuTorch, examples"
FIXED = "a call has a fixed cost that the model lacks"
ROWS: tuple[Row, ...] = (
    Row(D9300, "BlueLM-V-3B: vision, 9 tiles", TABLE5, 2.06, "s", _bluelm(9, 0), "int8"),
    Row(D9300, "BlueLM-V-3B: prefill, 2,048 tokens", TABLE5, 2.7, "s", _bluelm(0, 2048), "int8"),
    Row(D9300, "BlueLM-V-3B: decode at 2,048", TABLE5, 24.4, "tok/s", _decode(BLUELM, NPU_FORMAT, 2048)),
    Row(
        D9300,
        "BlueLM-V-3B: picture to first token",
        TABLE5,
        4.76,
        "s",
        _bluelm(9, 2048),
        "",
        "the sum of two fitted figures, so no test",
    ),
    Row(D9300, "BlueLM-V-3B: peak memory", "text", 2.2, "GB", _peak(BLUELM, NPU_FORMAT, 2048)),
    Row(D9300, "BlueLM-V-3B: encoder, 4 tiles in a call", "figure 5", 0.8, "s", _bluelm(4, 0)),
    Row(D9300, "BlueLM-V-3B: encoder, 1 tile in a call", "figure 5", 0.3, "s", _bluelm(1, 0), "", FIXED),
    Row(D9300, "LLaMA-7B: decode", "introduction, 10 to 15", 12.5, "tok/s", _decode(LLAMA2_7B, NPU_FORMAT, 512)),
    Row(D9300, "LLaMA-7B: memory", "introduction", 4.5, "GB", _peak(LLAMA2_7B, CPU_FORMAT, 1024)),
    Row(
        D9300,
        "MiniCPM-V 2.5 (8B), llama.cpp on the CPU: decode",
        TABLE5,
        4.9,
        "tok/s",
        _decode(LLAMA3_8B, CPU_FORMAT, 2048),
        "",
        "its threads and format are not published",
    ),
    Row(GEN3_NPU, "Qwen2.5-3B: decode", NPU_TABLE, 21.0, "tok/s", _decode(QWEN25_3B, NPU_FORMAT, 512), "efficiency"),
    Row(GEN3_NPU, "Qwen2.5-3B: prefill", NPU_TABLE, 907, "tok/s", _prefill_rate(QWEN25_3B, NPU_FORMAT, 512), "int8"),
    Row(GEN3_NPU, "Llama-2-7B: decode", "T-MAC, table 7", 11.3, "tok/s", _decode(LLAMA2_7B, NPU_FORMAT, 128)),
    Row(ELITE_NPU, "Qwen2.5-3B: prefill", NPU_TABLE, 982, "tok/s", _prefill_rate(QWEN25_3B, NPU_FORMAT, 512), "int8"),
    Row(ELITE_NPU, "Qwen2.5-3B: decode", NPU_TABLE, 22.2, "tok/s", _decode(QWEN25_3B, NPU_FORMAT, 512)),
    Row(ELITE_NPU, "Llama-3.2-3B: decode", PERF, 23.5, "tok/s", _decode(LLAMA32_3B, NPU_FORMAT, 512)),
    Row(
        ELITE_NPU,
        "Qwen3-VL-4B: decode",
        PERF,
        27.2,
        "tok/s",
        _decode(QWEN3_4B, NPU_FORMAT, 512),
        "",
        "a better compiler reaches more of the memory's bandwidth",
    ),
    Row(GEN3, "Llama-3.2-3B: prefill", ET, 89.7, "tok/s", _prefill_rate(LLAMA32_3B, CPU_FORMAT, 64), "int8"),
    Row(GEN3, "Llama-3.2-3B: decode", ET, 19.7, "tok/s", _decode(LLAMA32_3B, CPU_FORMAT, 128)),
    Row(GEN3, "LLaVA-1.5-7B: prefill with its picture", ET, 14.6, "s", _llava_prefill),
    Row(GEN3, "LLaVA-1.5-7B: decode", ET, 8.92, "tok/s", _decode(LLAVA_7B, CPU_FORMAT, 640)),
    Row(GEN3, "Llama-2-7B, llama.cpp: decode", "T-MAC, table 7", 8.24, "tok/s", _decode(LLAMA2_7B, CPU_FORMAT, 128)),
    Row(
        ELITE,
        "Qwen3-VL-4B, llama.cpp: prefill, 512",
        PERF,
        110,
        "tok/s",
        _prefill_rate(QWEN3_4B, CPU_FORMAT, 512),
        "int8",
    ),
    Row(
        ELITE,
        "Qwen3-VL-4B, llama.cpp: decode at 512",
        PERF,
        21.0,
        "tok/s",
        _decode(QWEN3_4B, CPU_FORMAT, 512),
        "",
        "llama.cpp reaches more of the memory's bandwidth",
    ),
    Row(
        ELITE,
        "Qwen3-VL-4B, llama.cpp: decode at 4,096",
        PERF,
        5.3,
        "tok/s",
        _decode(QWEN3_4B, CPU_FORMAT, 4096),
        "",
        "its attention over a float16 cache is bound by products, not by reads",
    ),
)


def fit() -> dict[str, dict[str, float]]:
    """The constants that the fitted rows give: efficiency from one row, each int8 from one or two of its table.

    Where int8 has two rows, it is their geometric mean: neither is favoured.
    """
    constants: dict[str, dict[str, float]] = {}
    efficiency = next(row for row in ROWS if row.fitted == "efficiency")
    device = find(efficiency.device)
    share = device.efficiency * efficiency.published / efficiency.predict(device)
    for name in dict.fromkeys(row.device for row in ROWS):
        given = find(name)
        factors = [_factor(row, given) for row in ROWS if row.device == name and row.fitted == "int8"]
        mean = 1.0
        for factor in factors:
            mean *= factor ** (1 / len(factors))
        constants[name] = {"efficiency": share, "int8": given.int8 * given.efficiency * mean / share}
    return constants


def _factor(row: Row, device: Device) -> float:
    """By how much the device must be faster to give the published figure."""
    ratio = row.published / row.predict(device)
    return ratio if row.unit == "tok/s" else 1 / ratio


HEADING = """# The speed model against published figures

Made by `python -m handlens_export.forecast.evidence`; a test compares it. README.md beside it derives the model. A
remark stands beside each prediction that is off by more than a quarter.

"""


def page() -> str:
    """EVIDENCE.md."""
    lines = ["| device | figure | source | published | model | error | |", "|---|---|---|---|---|---|---|"]
    for row in ROWS:
        kind = f"fitted ({row.fitted})" if row.fitted else "predicted"
        note = f"{kind}; {row.remark}" if row.remark else kind
        lines.append(
            f"| {row.device} | {row.what} | {row.source} | {row.published:g} {row.unit} | "
            f"{row.predicted:.3g} {row.unit} | {row.error:+.0%} | {note} |"
        )
    return HEADING + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--fit"]:
        for name, constants in fit().items():
            print(name, {constant: float(f"{value:.4g}") for constant, value in constants.items()})
    else:
        print(page(), end="")
