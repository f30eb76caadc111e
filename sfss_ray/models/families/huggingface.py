"""Recogniser of SegFormer checkpoints of Hugging Face's transformers, as a file or a whole folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.card import IMAGENET_MEAN, IMAGENET_STD, Card, Triple
from sfss_ray.models.families.keys import State, has_prefix, subtree
from sfss_ray.models.families.mit_names import from_transformers, size_of
from sfss_ray.models.families.mix_transformers import decoder_width, num_outputs
from sfss_ray.models.families.mmseg import unknown_tensors
from sfss_ray.models.families.recognised_file import RecognisedFile
from sfss_ray.models.huggingface_folder import CONFIG, PREPROCESSOR

_SUPPORTED_CONFIG = {
    "hidden_act": "gelu",
    "mlp_ratios": [4, 4, 4, 4],
    "num_attention_heads": [1, 2, 5, 8],
    "num_channels": 3,
    "num_encoder_blocks": 4,
    "patch_sizes": [7, 3, 3, 3],
    "reshape_last_stage": True,
    "sr_ratios": [8, 4, 2, 1],
    "strides": [4, 2, 2, 2],
}
"""Entries of config.json that no tensor reveals, with the values that this package builds."""


def huggingface_segformer(state: State, content: Any) -> RecognisedFile | None:
    """Recognise `segformer.*` and `decode_head.*` with the names of transformers 4 or 5."""
    config = _mapping_entry(content, CONFIG)
    _check_config(config)
    if not has_prefix(state, "segformer."):
        return None
    if not has_prefix(state, "decode_head."):
        raise CheckpointError(
            "the file holds a SegFormer encoder alone, its decode_head is missing: give a checkpoint"
            " that was trained to segment"
        )

    # The names used here are those of version 5, in which `linear_c` became `linear_projections`.
    renamed = from_transformers(subtree(state, "segformer."))
    head = subtree(state, "decode_head.")
    for key, tensor in head.items():
        if key.startswith("classifier."):
            renamed[key] = tensor
        else:
            key = re.sub(r"^linear_c\.", "linear_projections.", key)
            renamed[f"body.decode_head.{key}"] = tensor
    size, outputs = size_of(renamed), num_outputs(renamed, "decode_head.classifier")
    return RecognisedFile(
        family="SegFormer (Hugging Face)",
        network=f"segformer_{size}",
        num_classes=outputs,
        state=renamed | unknown_tensors(state, ("segformer.", "decode_head.")),
        options=decoder_width(head.get("linear_fuse.weight"), size),
        card=_card(_mapping_entry(content, PREPROCESSOR), _class_names(config, outputs)),
    )


def _mapping_entry(content: Any, name: str) -> Mapping[str, Any]:
    """Return an entry of the content that is a mapping, or an empty one."""
    entry = content.get(name) if isinstance(content, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for another network than SegFormer, or for an unsupported variant."""
    model_type = config.get("model_type", "segformer")
    if model_type != "segformer":
        names = config.get("architectures") or [model_type]
        raise CheckpointError(
            f"its config.json is that of {', '.join(map(str, names))} (model_type {model_type!r}):"
            " supported is SegformerForSemanticSegmentation; any other network can be given in Python"
            " with sfss_ray.wrap_model"
        )
    for name, supported in _SUPPORTED_CONFIG.items():
        if config.get(name, supported) != supported:
            raise CheckpointError(
                f"its config.json has {name} {config[name]!r}: supported is {supported!r}; any other"
                " network can be given in Python with sfss_ray.wrap_model"
            )


def _class_names(config: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """Return the names in id2label, or none if they are placeholders such as LABEL_0 or incomplete."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping):
        return ()
    by_id = {str(key): str(label).strip() for key, label in labels.items()}
    names = tuple(by_id.get(str(i), "") for i in range(outputs))
    meaningful = all(names) and not any(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return names if meaningful and len(set(names)) == len(by_id) == outputs else ()


def _card(preprocessor: Mapping[str, Any], classes: tuple[str, ...]) -> Card:
    """Return the card for a preprocessor_config.json, which may be empty."""
    mean = _triple(preprocessor, "image_mean", IMAGENET_MEAN)
    std = _triple(preprocessor, "image_std", IMAGENET_STD)
    if preprocessor.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if preprocessor.get("do_rescale") is False:
        return Card(mean, std, value_range=255.0, classes=classes)
    rescale_factor = preprocessor.get("rescale_factor", 1 / 255)
    if not isinstance(rescale_factor, (int, float)) or rescale_factor <= 0:
        raise CheckpointError(
            f"its preprocessor_config.json has rescale_factor {rescale_factor!r}: allowed is a number"
            " above 0"
        )
    # (x * 255 r - mean) / std = (x - mean / (255 r)) / (std / (255 r)) for x in [0, 1]
    scale = 255 * rescale_factor
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    return Card(_divided(mean, scale), _divided(std, scale), classes=classes)


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
