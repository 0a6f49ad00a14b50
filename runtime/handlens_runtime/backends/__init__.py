"""Backends, a file each, found by name: `executorch`, `onnx`."""
