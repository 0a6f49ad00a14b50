"""Hold ExecuTorch's lowering to one copy of the weights: the packed one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from torch.export import ExportedProgram

from handlens_export.lower.executorch_program import on_disk
from handlens_export.stage_cache.tensor_file import let_go


@contextmanager
def weights_shared(folder: Path) -> Iterator[None]:
    """While the block runs, XNNPACK's exporter packs weights from where they are, and what it packed goes to `folder`.

    Before it packs, ExecuTorch copies every partition, all of them at once, in case a backend changes a graph; its own
    hook for that is given a copy of the graph around the same tensors, as ExecuTorch's CUDA backend does. Pages of
    mapped weights go after each partition. In bytes at the peak, with weights unpacked to a byte: from packed + weights
    twice to one partition.
    """
    preprocess = XnnpackBackend.preprocess

    def copied(_cls: type, program: ExportedProgram, _specs: list[Any]) -> ExportedProgram:
        shared = (*program.state_dict.values(), *program.constants.values())
        return copy.deepcopy(program, {id(tensor): tensor for tensor in shared})

    def packed(program: ExportedProgram, specs: list[Any]) -> Any:
        result = preprocess(program, specs)
        if result.data_store_output is not None:
            on_disk(result.data_store_output, folder)
        let_go()
        return result

    XnnpackBackend.copy_exported_program_for_preprocess = classmethod(copied)
    XnnpackBackend.preprocess = staticmethod(packed)
    try:
        yield
    finally:
        del XnnpackBackend.copy_exported_program_for_preprocess  # its base class's again
        XnnpackBackend.preprocess = staticmethod(preprocess)
