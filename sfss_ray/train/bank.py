"""A memory of mask prototypes: per class a ring of the newest, the same on every worker."""

from __future__ import annotations

import torch
from torch import Tensor

from sfss_ray.train.devices import send


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

    def write(self, vectors: Tensor, classes: Tensor, images: Tensor) -> None:
        """Add prototypes (R, D) of classes (R,) from image numbers (R,), in this order."""
        if not self.size:
            return
        number = torch.bincount(classes, minlength=len(self.written))
        order = classes.argsort(stable=True)
        label = classes[order]
        rank = torch.arange(len(order))
        rank = rank - (number.cumsum(0) - number)[label]  # among the new ones of its class
        newest = rank >= number[label] - self.size
        order, label, rank = order[newest], label[newest], rank[newest]
        slots = (self.written[label] + rank) % self.size
        at = self.vectors.device
        self.vectors[send(label, at), send(slots, at)] = vectors[send(order, at)].float()
        self.images[label, slots] = images[order]
        self.written += number

    def contents(self) -> tuple[Tensor, Tensor, Tensor]:
        """All written entries: vectors (R, D), classes (R,), image numbers (R,)."""
        filled = torch.arange(self.size) < self.written[:, None]
        classes, slots = filled.nonzero(as_tuple=True)
        at = self.vectors.device
        return (
            self.vectors[send(classes, at), send(slots, at)],
            classes,
            self.images[classes, slots],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on: plain tensors."""
        return {"vectors": self.vectors, "images": self.images, "written": self.written}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a state of the same shape."""
        self.vectors.copy_(state["vectors"])
        self.images.copy_(state["images"])
        self.written.copy_(state["written"])
