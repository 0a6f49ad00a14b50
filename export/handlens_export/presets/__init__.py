"""Checkpoints of family `bluelm_v` with random weights, to build and measure with where no trained one is at hand."""

from handlens_export.presets.write import PRESETS, init

__all__ = ["PRESETS", "init"]
