"""Weights to grids of few bits: a quantizer is one file, one function on tensors."""
