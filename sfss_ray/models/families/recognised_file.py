"""What a family of checkpoints knows about a file that it recognises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sfss_ray.models.card import Card
from sfss_ray.models.families.keys import State


@dataclass(frozen=True)
class RecognisedFile:
    """A checkpoint of a known family, under the names of the network that it fits.

    `state` holds every tensor of the file that is not in `unused`. Only the loader knows all names and
    shapes of the network, so it decides which tensors are missing, unexpected or of another shape.
    """

    family: str
    """Name of the family, for people."""
    network: str
    """A key of NETWORKS."""
    num_classes: int
    """Number of outputs of the classifier."""
    state: dict[str, Tensor]
    """Weights under the network's names."""
    unused: tuple[str, ...] = ()
    """Keys of the file that are known and not needed: auxiliary heads, counters."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the network, see `build_network`."""
    card: Card = field(default_factory=Card)
    """The preprocessing. Its classes are those that the file names, or empty."""
    notes: tuple[str, ...] = ()
    """Sentences that a user should read about this file."""


Recogniser = Callable[[State, Any], RecognisedFile | None]
"""(state, content) -> the recognised file, or None if the keys are not those of the family.

`content` is the whole loaded object. `state` has the tensors of its student or of its EMA copy, flat,
without the prefixes of wrappers (see sfss_ray.models.families.keys).
"""
