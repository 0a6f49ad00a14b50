"""Words that options choose among, written out so that `--help` needs no schema (a test compares them with it)."""

from __future__ import annotations

from typing import Literal

BackendChoice = Literal["executorch", "onnx"]
CacheChoice = Literal["show", "clear"]
KVChoice = Literal["int8", "float"]
MethodChoice = Literal["round", "clip", "gptq", "rsq"]
PeerChoice = Literal["llama.cpp", "dense"]
PresetChoice = Literal["bluelm-v-nano", "bluelm-v-3b"]
