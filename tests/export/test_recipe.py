"""A recipe made in Python is held to what the command line's parser lets through."""

from __future__ import annotations

import pytest

from handlens_export.errors import UnsupportedError
from handlens_export.recipe import Recipe


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"backends": ("tflite",)}, "--backend names 'tflite', but the backends are executorch, onnx; choose"),
        ({"backends": "onnx"}, r"backends is 'onnx', but it must be a tuple of names, such as \('onnx',\)"),
        ({"backends": ("onnx", "onnx")}, "--backend names onnx twice; name each once"),
        ({"kv": "int4"}, "--kv 'int4' is not possible; choose one of int8, float"),
        ({"bits": 4.0}, "--bits is 4.0, but it must be a whole number; give one such as 4"),
        ({"bits": "4"}, "--bits is '4', but it must be a whole number"),
        ({"head_bits": 8.0}, "--head-bits is 8.0, but it must be a whole number; give one such as 8"),
        ({"embedding_bits": 8.0}, "--embedding-bits is 8.0, but"),
        ({"group": None}, "--group is None, but it must be a whole number; give one such as 32"),
        ({"context": 64.5}, "--context is 64.5, but it must be a whole number; give one such as 2048"),
        ({"chunk": True}, "--chunk is True, but it must be a whole number"),
        ({"layer_bits": (("decoder.layers.0.mlp", 8.0),)}, "--layer-bits decoder.layers.0.mlp is 8.0, but bits are"),
        ({"layer_bits": (("vision.layers.0", 8),)}, "--layer-bits names 'vision.layers.0'; give a decoder layer, its"),
        ({"layer_bits": (("decoder.layers.0.mlp.q_proj", 8),)}, "--layer-bits names 'decoder.layers.0.mlp.q_proj'"),
        ({"layer_bits": (("decoder.layers.0", 8), ("decoder.layers.0", 4))}, "names decoder.layers.0 twice"),
        ({"layer_bits": (("decoder.layers.0", 2),)}, "--layer-bits decoder.layers.0=2: 2 is not a format of the exec"),
        ({"max_portable": "half"}, "--max-portable is 'half', but a share lies between 0 and 1"),
    ],
)
def test_what_only_python_lets_through_is_refused_too(asked, sentence):
    with pytest.raises(UnsupportedError, match=sentence) as error:
        Recipe(**asked)
    assert "\n" not in str(error.value)
