"""The card of a checkpoint: what images its network expects, and what its outputs mean."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sfss_ray.data.class_sets import ClassSet, parse_classes
from sfss_ray.errors import CheckpointError, DataError
from sfss_ray.storage.text import read_text

ChannelOrder = Literal["rgb", "bgr"]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Card:
    """How RGB images in [0, 1] become a network's input: (order(image * value_range) - mean) / std.

    A card that is wrong raises nothing by itself; it costs accuracy, up to all of it. `sfss-ray verify`
    shows the card in use and what the network predicts with it.
    """

    mean: Triple = IMAGENET_MEAN
    """In units of `value_range`, in the order of `channel_order`."""
    std: Triple = IMAGENET_STD
    """In units of `value_range`, in the order of `channel_order`; above 0."""
    channel_order: ChannelOrder = "rgb"
    """Order of the channels the network was trained on."""
    value_range: float = 1.0
    """Largest pixel value the network was trained on: 1 or 255."""
    align_corners: bool = False
    """How its makers scaled logits up; a mismatch costs accuracy."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the outputs."""

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, _triple(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise CheckpointError(f"card: std is {self.std}: allowed are three numbers above 0")
        if self.channel_order not in ("rgb", "bgr"):
            raise CheckpointError(
                f"card: channel_order is {self.channel_order!r}: allowed is rgb or bgr"
            )
        if self.value_range not in (1, 255):
            raise CheckpointError(
                f"card: value_range is {self.value_range!r}: allowed is 1 or 255, the largest pixel"
                " value the network was trained on"
            )
        object.__setattr__(self, "value_range", float(self.value_range))
        if not isinstance(self.align_corners, bool):
            raise CheckpointError(
                f"card: align_corners is {self.align_corners!r}: allowed is true or false"
            )
        object.__setattr__(self, "classes", class_names(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and model files keep them."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """The card with these values, defaults for the rest; CheckpointError names unknown ones."""
        return cls().replaced(values)

    def replaced(self, values: Mapping[str, Any]) -> Card:
        """A copy with some values changed; CheckpointError names unknown and refused ones."""
        known = [field.name for field in dataclasses.fields(self)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise CheckpointError(
                f"card: unknown entry {unknown[0]!r}: known are {', '.join(known)}"
            )
        return dataclasses.replace(self, **values)


def class_names(classes: ClassSet | str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Names of classes given as a class set, its name, names joined by commas, or a list."""
    if isinstance(classes, ClassSet):
        return classes.classes
    if isinstance(classes, str):
        return parse_classes(classes).classes
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        raise DataError(
            f"classes are {classes!r}: give a class set's name, or the names of all classes"
        )
    return tuple(classes)


CardLike = Card | Mapping[str, Any] | Path | str
"""A whole card, or some of its entries: a mapping, or a JSON file of one."""


def card_values(card: CardLike | None) -> dict[str, Any]:
    """The entries a user gave: all of a Card, those of a mapping or of a JSON file.

    Raises:
        CheckpointError: the file cannot be read, is no JSON object, or an entry is refused.
    """
    if card is None:
        return {}
    if isinstance(card, Card):
        values = card.to_dict()
        return values if card.classes else {k: v for k, v in values.items() if k != "classes"}
    values = dict(card) if isinstance(card, Mapping) else _read_json(Path(card))
    checked = Card.from_dict(values).to_dict()  # refuses what no card may hold
    return {name: checked[name] for name in values}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is not JSON: {error}"
        raise CheckpointError(
            f"cannot read card {str(path)!r} ({reason}): give a JSON file such as"
            ' {"channel_order": "bgr", "value_range": 255}'
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"card {str(path)!r} is no JSON object: give entries by name")
    return values


def _triple(name: str, values: Any) -> Triple:
    numbers = values if isinstance(values, (list, tuple)) else ()
    if len(numbers) != 3 or not all(
        isinstance(v, (int, float)) and math.isfinite(v) for v in numbers
    ):
        raise CheckpointError(f"card: {name} is {values!r}: allowed are three numbers")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
