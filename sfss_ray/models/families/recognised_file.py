"""What a family of checkpoints says about a file it recognises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sfss_ray.models.card import IMAGENET_MEAN, IMAGENET_STD, ChannelOrder, Triple


@dataclass(frozen=True)
class Recognised:
    """A checkpoint whose keys were understood, under the names of the network it fits.

    `state` holds every tensor of the file that is not in `unused`: the loader, which alone knows all
    names and shapes of the network, tells what is missing, unexpected or of another shape.
    """

    family: str
    """Name for people."""
    network: str
    """A key of NETWORKS."""
    num_classes: int
    """Outputs of its classifier."""
    state: dict[str, Tensor]
    """Weights under the network's own names."""
    unused: tuple[str, ...] = ()
    """The file's keys that are known and not needed: auxiliary heads, counters."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the network, see `build_network`."""
    mean: Triple = IMAGENET_MEAN
    """See Card."""
    std: Triple = IMAGENET_STD
    """See Card."""
    channel_order: ChannelOrder = "rgb"
    """See Card."""
    value_range: float = 1.0
    """See Card."""
    align_corners: bool = False
    """See Card."""
    classes: tuple[str, ...] | None = None
    """Class names, when the file itself holds them."""
    notes: tuple[str, ...] = ()
    """What a user should know about this file, a sentence each."""


Recogniser = Callable[[Mapping[str, Tensor], Any], Recognised | None]
"""(state, content) -> what it is, or None when the keys are not this family's.

`content` is the whole loaded object; `state` the tensors of its student or of its EMA copy, flat, with
the prefixes `module.`, `net.` and a leading `model.` taken off (see sfss_ray.models.families.keys).
"""
