"""The file that a model in memory was read from, for reports."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ReadFile:
    """The checkpoint of a model in memory, which counts as long as its weights are unchanged."""

    origin: str
    """Absolute path or address."""
    sha256: str
    """Hash of the file."""
    weights_sha256: str
    """Hash of the weights as they were read, see the function of this name."""


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
