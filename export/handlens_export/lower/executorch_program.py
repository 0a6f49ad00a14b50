"""Methods lowered apart, joined into one `.pte`.

ExecuTorch lowers all methods of a program together, one after another. Lowered apart, each gives a program of its own
before it is written; joined, their tables stand one after another and what refers to a table is moved along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from executorch.exir import ExecutorchBackendConfig, ExecutorchProgramManager
from executorch.exir._serialize._cord import FileBackedData
from executorch.exir._serialize._named_data_store import NamedDataStore, NamedDataStoreOutput
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir.schema import Buffer, ExecutionPlan, Program, Tensor

from handlens_runtime.manifest import Graph

LARGE = 1 << 16
"""Bytes from which packed weights wait on disk until the program is written."""


@dataclass(frozen=True)
class Part:
    """Some methods of a program, lowered."""

    graphs: dict[str, Graph]
    """By method."""
    program: Program
    mutable_data: list[Buffer] | None
    """What buffers that change hold at first."""
    weights: NamedDataStoreOutput | None
    """What XNNPACK packed, most of it in files."""


def part(graphs: dict[str, Graph], manager: ExecutorchProgramManager) -> Part:
    """Of what `to_executorch` gave."""
    emitted = manager._emitter_output
    return Part(graphs, emitted.program, emitted.mutable_data, manager._named_data)


def write(parts: Sequence[Part], config: ExecutorchBackendConfig, file: BinaryIO) -> None:
    """One program of all parts' methods, sorted by name as ExecuTorch sorts them; constant methods come last."""
    first, *others = parts
    program, mutable = first.program, list(first.mutable_data or [])
    store = NamedDataStore()
    for each in parts:
        if each.weights is not None:
            store.merge_named_data_store(each.weights)
    for other in others:
        _move(other, len(program.constant_buffer) - 1, max(0, len(mutable) - 1), len(program.backend_delegate_data))
        program.execution_plan += other.program.execution_plan
        program.constant_buffer += other.program.constant_buffer[1:]  # the first of each stands for "none"
        program.backend_delegate_data += other.program.backend_delegate_data
        mutable += (other.mutable_data or [])[1 if mutable else 0 :]
    methods = {name for each in parts for name in each.graphs}
    program.execution_plan.sort(key=lambda plan: (plan.name not in methods, plan.name if plan.name in methods else ""))
    output = store.get_named_data_store_output()
    serialize_pte_binary(
        PTEFile(program, mutable or None, output if output.buffers else None),
        extract_delegate_segments=config.extract_delegate_segments,
        segment_alignment=config.segment_alignment,
        constant_tensor_alignment=config.constant_tensor_alignment,
        delegate_alignment=config.delegate_alignment,
    ).write_to_file(file)


def on_disk(weights: NamedDataStoreOutput, folder: Path) -> None:
    """Move large buffers into files of their own in `folder`, in place."""
    for index, buffer in enumerate(weights.buffers):
        if isinstance(buffer, bytes) and len(buffer) >= LARGE:
            path = folder / f"{len(list(folder.iterdir()))}.packed"
            path.write_bytes(buffer)
            weights.buffers[index] = FileBackedData(str(path))


def _move(part: Part, constants: int, mutables: int, delegates: int) -> None:
    """Add to each reference how many entries stand before its table's own."""
    for plan in part.program.execution_plan:
        for tensor in _tensors(plan):
            if tensor.data_buffer_idx:
                tensor.data_buffer_idx += constants if tensor.allocation_info is None else mutables
        for delegate in plan.delegates:
            delegate.processed.index += delegates


def _tensors(plan: ExecutionPlan) -> list[Tensor]:
    return [value.val for value in plan.values if isinstance(value.val, Tensor)]
