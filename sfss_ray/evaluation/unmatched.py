"""Classes that a model predicts and labels cannot show: scores then compare two class sets."""

from __future__ import annotations

from collections.abc import Sequence

from sfss_ray.data.class_sets import ClassSet, matched_names
from sfss_ray.data.shipped_groups import suggested_name

MIN_PERCENT = 0.5
"""Percent of the predicted pixels below which unmatched classes are not mentioned, all together."""
_LISTED = 5
"""Unmatched classes that are named, the most frequent first."""


def unmatched_note(classes: ClassSet, label_classes: ClassSet, percents: Sequence[float]) -> str:
    """Say in one line which predicted classes have no counterpart in the labels.

    Returns '' if they have less than `MIN_PERCENT` of the pixels together.

    A pixel of such a class counts as wrong whatever its label is. A model of 19 classes that predicts
    truck on CamVid's cars, which include trucks, has too low an IoU of car.

    Args:
        classes: The model's classes.
        label_classes: The classes that the labels can contain.
        percents: Percent of the predicted pixels by class of the model.
    """
    matched = set(matched_names(label_classes, classes).values())
    shares = {
        name: percent
        for name, percent in zip(classes.classes, percents, strict=True)
        if name not in matched and percent > 0
    }
    if sum(shares.values()) < MIN_PERCENT:
        return ""
    note = (
        f"predicted classes without a counterpart in the labels' {label_classes.name}:"
        f" {_listed(shares)} of the pixels; the scores compare other class sets"
    )
    name = suggested_name(classes, label_classes)
    if name is None:
        return f"{note}: class groups can join them (class_groups, --class-groups)"
    return f"{note}: class_groups {name} joins them (--class-groups {name})"


def _listed(shares: dict[str, float]) -> str:
    """Return 'truck 3.1 %, rider 0.5 %, together 3.6 %', the most frequent classes first."""
    order = sorted(shares, key=lambda name: -shares[name])
    parts = [f"{name} {shares[name]:.1f} %" for name in order[:_LISTED]]
    if order[_LISTED:]:
        parts.append(f"{len(order) - _LISTED} more")
    if order[1:]:
        parts.append(f"together {sum(shares.values()):.1f} %")
    return ", ".join(parts)
