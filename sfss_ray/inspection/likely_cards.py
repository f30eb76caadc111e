"""Cards that the weights of a checkpoint may have been trained with."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from sfss_ray.models.card import IMAGENET_MEAN, IMAGENET_STD, Card, Triple

_WHITE = 255.0
_NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CAFFE = ((122.67891434, 116.66876762, 104.00698793), (1.0, 1.0, 1.0))
_NORMALISATIONS: tuple[tuple[float, Triple, Triple, str], ...] = (
    (1.0, IMAGENET_MEAN, IMAGENET_STD, "ImageNet's mean and std"),
    (1.0, *_HALF, "mean and std 0.5"),
    (1.0, *_NONE, "no normalisation"),
    (255.0, *_NONE, "no normalisation"),
    (255.0, *_CAFFE, "Caffe's mean"),
)
"""Value range, mean and std of red, green and blue, and a name, as the field uses them."""
_PREPARATION = ("mean", "std", "channel_order", "value_range")
"""The entries of a card that say how an image is prepared."""


def cards_to_compare(current: Card, stated: Card | None) -> list[Card]:
    """Return cards that prepare images differently: the one in use, the checkpoint's, common ones.

    Common ones are the normalisations of the field in both channel orders. The two cards are also varied
    by a forgotten or an unnecessary division by 255, before or after the normalisation, and by the other
    channel order, with and without reordering mean and std. All cards have the corner rule and the
    classes of the card in use.

    Args:
        current: The card in use. It is the first of the list.
        stated: The card that a checkpoint's family or a model file states, if any.
    """
    common = [
        Card(mean=mean, std=std, value_range=value_range)
        for value_range, mean, std, _ in _NORMALISATIONS
    ]
    bases = [current] if stated is None else [current, stated]
    cards = list(bases)
    for card in bases:
        other_order = "rgb" if card.channel_order == "bgr" else "bgr"
        cards.append(dataclasses.replace(card, channel_order=other_order))
        cards.append(dataclasses.replace(card, value_range=1 + _WHITE - card.value_range))
        if card.value_range == _WHITE:
            red, green, blue = card.std
            std = (_WHITE * red, _WHITE * green, _WHITE * blue)
            cards.append(dataclasses.replace(card, std=std))
    cards += [_in_order(card, order) for card in (*cards, *common) for order in ("rgb", "bgr")]

    unequal: dict[Any, Card] = {}
    for card in cards:
        card = dataclasses.replace(
            card, align_corners=current.align_corners, classes=current.classes
        )
        unequal.setdefault(_function_of(card), card)
    return list(unequal.values())


def prepares_alike(first: Card, second: Card) -> bool:
    """Whether two cards turn an image into the same input."""
    return _function_of(first) == _function_of(second)


def describe_preparation(card: Card) -> str:
    """Describe order, range and normalisation, as in 'RGB, 0 to 1, ImageNet's mean and std'."""
    in_rgb = _in_order(card, "rgb")
    names = {(value_range, mean, std): name for value_range, mean, std, name in _NORMALISATIONS}
    key = (card.value_range, in_rgb.mean, in_rgb.std)
    normalisation = names.get(key, f"mean {_numbers(card.mean)}, std {_numbers(card.std)}")
    return f"{card.channel_order.upper()}, 0 to {card.value_range:g}, {normalisation}"


def changed_entries(current: Card, better: Card) -> str:
    """Return the entries to change in a card, as a JSON object."""
    old, new = current.to_dict(), better.to_dict()
    return json.dumps({name: new[name] for name in _PREPARATION if new[name] != old[name]})


def _in_order(card: Card, order: str) -> Card:
    """Return a card in a channel order, with the same mean and std for each colour."""
    if card.channel_order == order:
        return card
    return card.replaced({"channel_order": order, "mean": card.mean[::-1], "std": card.std[::-1]})


def _function_of(card: Card) -> tuple[Any, ...]:
    """Return the numbers a and b, rounded, of the input a * pixel - b, and the channel order."""
    values = [(card.value_range / s, m / s) for m, s in zip(card.mean, card.std, strict=True)]
    return (card.channel_order, *(f"{value:.4g}" for pair in values for value in pair))


def _numbers(triple: Triple) -> str:
    return "[" + ", ".join(f"{value:.5g}" for value in triple) + "]"
