"""Cards of transformers models: preprocessor_config.json, id2label, and defaults of the model type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.card import IMAGENET_MEAN, IMAGENET_STD, Card, Triple

_NO_MEAN: Triple = (0.0, 0.0, 0.0)
_NO_STD: Triple = (1.0, 1.0, 1.0)
_HALF = (0.5, 0.5, 0.5)
_CENTRED = {"image_mean": _HALF, "image_std": _HALF}
_UNNORMALISED = {"do_normalize": False, "do_flip_channel_order": True}
PROCESSOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "beit": _CENTRED,
    "data2vec-vision": _CENTRED,
    "dpt": _CENTRED,
    "mobilenet_v2": _CENTRED,
    "mobilevit": _UNNORMALISED,
    "mobilevitv2": _UNNORMALISED,
}
"""Defaults of transformers' image processors by model type. Those of the other types normalise with
ImageNet's mean and standard deviation. MobileViT takes BGR in [0, 1] without normalisation."""


def mapping_entry(content: Any, name: str) -> Mapping[str, Any]:
    """Return an entry of a checkpoint's content that is a mapping, or an empty one."""
    entry = content.get(name) if isinstance(content, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def class_labels(config: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """Return the names in id2label, or none if they are placeholders such as LABEL_0 or incomplete."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping):
        return ()
    by_id = {str(key): str(label).strip() for key, label in labels.items()}
    names = tuple(by_id.get(str(i), "") for i in range(outputs))
    meaningful = all(names) and not any(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return names if meaningful and len(set(names)) == len(by_id) == outputs else ()


def preprocessor_card(
    preprocessor: Mapping[str, Any], classes: tuple[str, ...], model_type: str = ""
) -> Card:
    """Return the card for a preprocessor_config.json, which may be empty.

    Args:
        preprocessor: Its entries. Those that it lacks are the defaults of the model type.
        classes: Class names of the outputs.
        model_type: That of config.json.

    Raises:
        CheckpointError: an entry has a value that is not allowed.
    """
    entries = {name: value for name, value in preprocessor.items() if value is not None}
    preprocessor = PROCESSOR_DEFAULTS.get(model_type, {}) | entries
    mean = _triple(preprocessor, "image_mean", IMAGENET_MEAN)
    std = _triple(preprocessor, "image_std", IMAGENET_STD)
    if preprocessor.get("do_normalize") is False:
        mean, std = _NO_MEAN, _NO_STD
    order = "bgr" if preprocessor.get("do_flip_channel_order") is True else "rgb"
    if preprocessor.get("do_rescale") is False:
        return Card(mean, std, order, value_range=255.0, classes=classes)
    rescale_factor = preprocessor.get("rescale_factor", 1 / 255)
    if not isinstance(rescale_factor, (int, float)) or rescale_factor <= 0:
        raise CheckpointError(
            f"its preprocessor_config.json has rescale_factor {rescale_factor!r}: allowed is a number"
            " above 0"
        )
    # (x * 255 r - mean) / std = (x - mean / (255 r)) / (std / (255 r)) for x in [0, 1]
    scale = 255 * rescale_factor
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    return Card(_divided(mean, scale), _divided(std, scale), order, classes=classes)


def preprocessor_notes(preprocessor: Mapping[str, Any], model_type: str) -> tuple[str, ...]:
    """Return sentences for the user about the preprocessing and the label ids."""
    notes = []
    if not preprocessor:
        notes.append(
            "there is no preprocessor_config.json beside the weights: the preprocessing is the usual one"
            f" of {model_type}; `sfss-ray verify` shows whether it fits"
        )
    # Earlier versions of transformers wrote `reduce_labels`.
    if preprocessor.get("do_reduce_labels", preprocessor.get("reduce_labels")) is True:
        notes.append(
            "the model was trained with reduced labels (do_reduce_labels): its output 0 is id 1 of the"
            " original label files, whose id 0 means unlabelled"
        )
    return tuple(notes)


def _divided(triple: Triple, divisor: float) -> Triple:
    return (triple[0] / divisor, triple[1] / divisor, triple[2] / divisor)


def _triple(preprocessor: Mapping[str, Any], name: str, default: Triple) -> Triple:
    numbers = preprocessor.get(name, default)
    is_triple = isinstance(numbers, (list, tuple)) and len(numbers) == 3
    if not is_triple or not all(type(v) in (int, float) for v in numbers):
        raise CheckpointError(
            f"its preprocessor_config.json has {name} {numbers!r}: allowed are three numbers"
        )
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
