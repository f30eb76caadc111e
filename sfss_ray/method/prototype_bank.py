"""A memory of mask prototypes: the newest of each class, the same on every worker."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfss_ray.method.transfer import send_arrays


class PrototypeBank:
    """A ring of the newest `size` prototypes of each class, with the number of each one's image.

    Entries are written in order, and the oldest are overwritten first. Slots that were never written
    are never returned. `state_dict` restores a bank bit for bit.

    Args:
        num_classes: C.
        size: Slots per class; 0 switches the bank off.
        dim: D, of the vectors.
        device: Device of the vectors. Image numbers and counts live on the CPU, as all bookkeeping of
            pairs does.
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
        """Write vectors (R, D) with classes (R,) and image numbers (R,), in this order."""
        if not self.size:
            return
        new_per_class = np.bincount(classes, minlength=len(self.written))
        order = classes.argsort(kind="stable")
        label = classes[order]
        first_of_class = (new_per_class.cumsum() - new_per_class)[label]
        rank = np.arange(len(order)) - first_of_class
        # Of more entries than slots only the newest would survive.
        newest = rank >= new_per_class[label] - self.size
        order, label, rank = order[newest], label[newest], rank[newest]
        written = self.written.numpy()
        slots = label * self.size + (written[label] + rank) % self.size
        slot_index, row_index = send_arrays([slots, order], self.vectors.device)
        self.vectors.flatten(0, 1)[slot_index] = vectors.index_select(0, row_index).float()
        self.images.numpy().reshape(-1)[slots] = images[order]
        written += new_per_class

    def contents(self) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Return all written entries: vectors (R, D), classes (R,), image numbers (R,)."""
        filled = np.arange(self.size) < self.written.numpy()[:, None]
        slots = np.flatnonzero(filled)
        (slot_index,) = send_arrays([slots], self.vectors.device)
        return (
            self.vectors.flatten(0, 1).index_select(0, slot_index),
            slots // max(self.size, 1),
            self.images.numpy().reshape(-1)[slots],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that restore this bank."""
        return {"vectors": self.vectors, "images": self.images, "written": self.written}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state of the same shape."""
        self.vectors.copy_(state["vectors"])
        self.images.copy_(state["images"])
        self.written.copy_(state["written"])
