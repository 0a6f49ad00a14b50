"""The workstation: read a checkpoint, transform, quantize, lower, bundle, check."""
