"""The state of an adaptation besides its networks: thresholds, class prior and prototype bank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sfss_ray.config import TrainConfig
from sfss_ray.method.mask_neighbours import MaskNeighbours
from sfss_ray.method.mask_vote import ClassPrior
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.pseudo_labels import ClassThresholds


@dataclass
class Memory:
    """Running statistics of the teacher and the prototypes of earlier steps."""

    thresholds: ClassThresholds
    prior: ClassPrior
    bank: PrototypeBank
    neighbours: MaskNeighbours | None = None
    """The latest masks, where they are asked."""

    @staticmethod
    def empty(
        num_classes: int,
        embedding_dim: int,
        config: TrainConfig,
        device: torch.device | str = "cpu",
    ) -> Memory:
        """Return the memory of a run that starts at step 1."""
        return Memory(
            ClassThresholds(num_classes, device),
            ClassPrior(num_classes, device),
            PrototypeBank(num_classes, config.pairs.bank_size, embedding_dim, device),
            MaskNeighbours(num_classes, device=device) if config.loss.asks_neighbours else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors that restore this memory bit for bit."""
        state = {
            "thresholds": self.thresholds.histogram,
            "prior": self.prior.total,
            "bank": self.bank.state_dict(),
        }
        if self.neighbours is not None:
            state["neighbours"] = self.neighbours.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of the same shapes. Further keys are ignored."""
        self.thresholds.histogram.copy_(state["thresholds"])
        self.prior.total.copy_(state["prior"])
        self.bank.load_state_dict(state["bank"])
        if self.neighbours is not None:
            self.neighbours.load_state_dict(state["neighbours"])
