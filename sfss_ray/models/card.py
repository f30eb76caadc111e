"""The card of a checkpoint: the preprocessing of its network and the classes of its outputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sfss_ray.config.ranges import is_number
from sfss_ray.data.class_sets import ClassSet, parse_classes
from sfss_ray.errors import CheckpointError, DataError
from sfss_ray.storage.places import Place, parsed
from sfss_ray.storage.text import limited_nesting, read_text

ChannelOrder = Literal["rgb", "bgr"]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Card:
    """How a network wants its images, and what its outputs mean.

    An RGB image in [0, 1] becomes (order(image * value_range) - mean) / std. A wrong card raises no
    error, but it costs accuracy, up to all of it. `sfss-ray verify` shows the card in use and what the
    network predicts with it.
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
    """Corner rule of the upsampling the network was trained with; a mismatch costs accuracy."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the outputs."""

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, _checked_triple(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise CheckpointError(f"card: std is {self.std}: allowed are three numbers above 0")
        if self.channel_order not in ("rgb", "bgr"):
            raise CheckpointError(
                f"card: channel_order is {self.channel_order!r}: allowed is rgb or bgr"
            )
        if isinstance(self.value_range, bool) or self.value_range not in (1, 255):
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
        """Return the entries as plain values, as JSON and model files store them."""
        entries = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items()}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Card:
        """Return the card with these entries and defaults for the rest.

        Raises:
            CheckpointError: an entry is unknown or has a value that is not allowed.
        """
        return cls().replaced(entries)

    def replaced(self, entries: Mapping[str, Any]) -> Card:
        """Return a copy with some entries changed.

        Raises:
            CheckpointError: an entry is unknown or has a value that is not allowed.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        unknown = [name for name in entries if name not in fields]
        if unknown:
            raise CheckpointError(
                f"card: unknown entry {unknown[0]!r}: known are {', '.join(fields)}"
            )
        return dataclasses.replace(self, **entries)


def class_names(classes: ClassSet | str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Return the names of classes given as a class set, its name, names joined by commas, or a list.

    Raises:
        DataError: `classes` is of another type, or an unknown class set.
    """
    if isinstance(classes, ClassSet):
        return classes.classes
    if isinstance(classes, str):
        return parse_classes(classes).classes
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        raise DataError(
            f"classes are {classes!r}: give a class set's name, or the names of all classes"
        )
    return tuple(classes)


def require_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a model's outputs; raise a CheckpointError if there is none."""
    if not classes:
        raise CheckpointError(
            "card: classes is empty: give the names of the outputs, or leave the entry out to keep those"
            " of the model"
        )
    return classes


CardLike = Card | Mapping[str, Any] | Place | str
"""A whole card, or some of its entries: a mapping, or the path of a JSON file."""


def card_values(card: CardLike | None) -> dict[str, Any]:
    """Return the checked entries that a user set: all of a Card, those of a mapping or of a JSON file.

    Raises:
        CheckpointError: the file cannot be read or is not a JSON object, or an entry is refused.
    """
    if card is None:
        return {}
    if isinstance(card, Card):
        entries = card.to_dict()
        return entries if card.classes else {k: v for k, v in entries.items() if k != "classes"}
    entries = dict(card) if isinstance(card, Mapping) else _read_json(parsed(card))
    checked = Card.from_dict(entries).to_dict()
    if "classes" in entries:
        require_names(tuple(checked["classes"]))
    return {name: checked[name] for name in entries}


def _read_json(path: Place | str) -> dict[str, Any]:
    try:
        with limited_nesting():
            entries = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is not JSON: {error}"
        raise CheckpointError(
            f"cannot read card {str(path)!r} ({reason}): give a JSON file such as"
            ' {"channel_order": "bgr", "value_range": 255}'
        ) from error
    if not isinstance(entries, dict):
        raise CheckpointError(
            f"card {str(path)!r} is not a JSON object: give a file of entries by name, such as"
            ' {"channel_order": "bgr", "value_range": 255}'
        )
    return entries


def _checked_triple(name: str, candidate: Any) -> Triple:
    """Return three finite numbers as floats; CheckpointError for anything else."""
    numbers = candidate if isinstance(candidate, (list, tuple)) else ()
    if len(numbers) != 3 or not all(is_number(number, float) for number in numbers):
        raise CheckpointError(f"card: {name} is {candidate!r}: allowed are three numbers")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
