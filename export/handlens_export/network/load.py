"""A checkpoint's tensors under the network's names: checked from the headers, read one by one."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.errors import CheckpointError
from handlens_export.network.config import NetworkConfig
from handlens_export.network.families import Family
from handlens_export.network.network import Network

UNUSED = re.compile(
    r"(.*\.)?rotary_emb\.inv_freq"  # made anew from the config
    r"|.*\.position_ids"  # 0, 1, 2, …
    r"|(model\.)?(vision_tower|vision_model)\.(vision_model\.)?head\..*"  # SigLIP's pooling, which gives no patch
)
"""Tensors that a checkpoint may hold and the network has no need of."""
HEAD = "decoder.head.weight"
SHOWN = 5
"""Names listed in an error before the rest is counted."""


class Parameters:
    """Where each of a network's parameters lies in a checkpoint. Made from headers; only `read` reads weights."""

    def __init__(self, checkpoint: Checkpoint, family: Family, config: NetworkConfig) -> None:
        """Raises CheckpointError where a tensor is missing, has another shape, or would be left unused."""
        self._checkpoint, self._family, self._config = checkpoint, family, config
        self.path = checkpoint.path
        self.settings = repr(config)
        """All that a family's transform knows besides the tensor."""
        with torch.device("meta"):
            network = Network(config, context=1)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        """Shape of each parameter, by our names."""
        self.sources = self._find(family.tensor_names(config))
        """The checkpoint's name of each parameter."""
        self._refuse_unused(family.tensor_names(config))

    def read(self, name: str) -> Tensor:
        """One parameter in float32, contiguous, as the network takes it."""
        return self.stored(name).to(torch.float32).contiguous()

    def stored(self, name: str) -> Tensor:
        """One parameter as the network takes it, in the precision it is stored in: mapped, not copied, where it can."""
        tensor = self._checkpoint.tensors.read(self.sources[name])
        return self._family.transform(name, tensor, self._config)

    def rows(self, name: str, chosen: Tensor) -> Tensor:
        """Some rows of a matrix, in float32."""
        return self.stored(name)[chosen].float()

    def digest(self, name: str) -> str:
        """sha256 of the checkpoint's tensor behind a parameter, before the family's transform."""
        return self._checkpoint.tensors.digest(self.sources[name])

    def _find(self, names: dict[str, tuple[str, ...]]) -> dict[str, str]:
        present = set(self._checkpoint.tensors.names())
        sources = {}
        for name, expected in self.shapes.items():
            source = next((candidate for candidate in names[name] if candidate in present), None)
            if source is None:
                raise CheckpointError(
                    f"{self._checkpoint.path} lacks the tensor {names[name][0]} {expected}; save it again, whole."
                )
            found = self._checkpoint.tensors.shape(source)
            if found != expected:
                raise CheckpointError(
                    f"{self._checkpoint.path}: {source} has the shape {found} where config.json makes it {expected}; "
                    "save weights and configuration of one checkpoint together."
                )
            sources[name] = source
        return sources

    def _refuse_unused(self, names: dict[str, tuple[str, ...]]) -> None:
        tensors = self._checkpoint.tensors
        unused = sorted(set(tensors.names()) - set(self.sources.values()))
        unused = [name for name in unused if not UNUSED.fullmatch(name)]
        if self._config.decoder.tied_head:
            # A tied head is often saved too. A copy is harmless; another matrix is a head that is not tied.
            table = self.sources[HEAD]
            copies = [name for name in unused if name.endswith("lm_head.weight")]
            unused = [n for n in unused if n not in copies or tensors.digest(n) != tensors.digest(table)]
        if unused:
            more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
            raise CheckpointError(
                f"{self._checkpoint.path} holds {', '.join(unused[:SHOWN])}{more}, which a {self._config.family} "
                "network as config.json describes it does not use; "
                "save weights and configuration of one checkpoint together."
            )


def load(network: Network, checkpoint: Checkpoint, family: Family) -> None:
    """Fill a float network with a checkpoint's weights. Raises CheckpointError."""
    parameters = Parameters(checkpoint, family, network.config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(parameters.read(name))
