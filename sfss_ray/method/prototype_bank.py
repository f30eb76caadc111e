"""A memory of mask prototypes: per class a ring of the newest, the same on every worker."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfss_ray.method.transfer import send_arrays


class PrototypeBank:
    """Per class the newest `size` prototypes, each with the number of the image it came from.

    The vectors live on `device`; what is known of them lives on the CPU, as all bookkeeping of pairs.

    Entries are written in the order given and the oldest go first. Nothing is ever drawn from slots
    that were not written. `state_dict` restores it bit for bit.
    """

    def __init__(self, num_classes: int, size: int, dim: int, device: torch.device | str = "cpu"):
        self.vectors = torch.zeros(num_classes, size, dim, device=device)
        self.images = torch.full((num_classes, size), -1, dtype=torch.long)
        self.written = torch.zeros(num_classes, dtype=torch.long)

    @property
    def size(self) -> int:
        """Slots per class."""
        return self.vectors.shape[1]

    def write(self, vectors: Tensor, classes: np.ndarray, images: np.ndarray) -> None:
        """Add prototypes (R, D) of classes (R,) from image numbers (R,), in this order."""
        if not self.size:
            return
        number = np.bincount(classes, minlength=len(self.written))
        order = classes.argsort(kind="stable")
        label = classes[order]
        rank = (
            np.arange(len(order)) - (number.cumsum() - number)[label]
        )  # among the new of its class
        newest = rank >= number[label] - self.size
        order, label, rank = order[newest], label[newest], rank[newest]
        written = self.written.numpy()
        entries = label * self.size + (written[label] + rank) % self.size
        there, whose = send_arrays([entries, order], self.vectors.device)
        self.vectors.flatten(0, 1)[there] = vectors.index_select(0, whose).float()
        self.images.numpy().reshape(-1)[entries] = images[order]
        written += number

    def contents(self) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """All written entries: vectors (R, D), classes (R,), image numbers (R,)."""
        filled = np.arange(self.size) < self.written.numpy()[:, None]
        entries = np.flatnonzero(filled)
        (there,) = send_arrays([entries], self.vectors.device)
        return (
            self.vectors.flatten(0, 1).index_select(0, there),
            entries // max(self.size, 1),
            self.images.numpy().reshape(-1)[entries],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on: plain tensors."""
        return {"vectors": self.vectors, "images": self.images, "written": self.written}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state of the same shape."""
        self.vectors.copy_(state["vectors"])
        self.images.copy_(state["images"])
        self.written.copy_(state["written"])
