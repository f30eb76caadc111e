"""SegFormer checkpoints of Hugging Face's transformers: a file, or the folder save_pretrained writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.card import IMAGENET_MEAN, IMAGENET_STD, Triple
from sfss_ray.models.families.mit_names import from_transformers, size_of
from sfss_ray.models.families.mix_transformers import decoder_width, outputs_of
from sfss_ray.models.families.mmseg import State, has, strangers, under
from sfss_ray.models.families.recognised_file import Recognised
from sfss_ray.models.huggingface_folder import CONFIG, PREPROCESSOR

_KNOWN = {
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
"""Entries of config.json that no tensor shows, and the values that are built here."""


def huggingface_segformer(state: State, content: Any) -> Recognised | None:
    """`segformer.*` and `decode_head.*` under the names of transformers 4 or 5."""
    config = _entry(content, CONFIG)
    _check_config(config)
    if not has(state, "segformer."):
        return None
    if not has(state, "decode_head."):
        raise CheckpointError(
            "the file holds a SegFormer encoder alone, its decode_head is missing: give a checkpoint"
            " that was trained to segment"
        )
    head_start = "body.decode_head.linear_projections."
    renamed = from_transformers(under(state, "segformer."))
    head = under(state, "decode_head.")
    for key, value in head.items():
        if key.startswith("classifier."):
            renamed[key] = value
        else:
            old = re.match(r"linear_c\.(.*)", key)
            renamed[f"{head_start}{old[1]}" if old else f"body.decode_head.{key}"] = value
    size, outputs = size_of(renamed), outputs_of(renamed, "decode_head.classifier")
    return Recognised(
        family="SegFormer (Hugging Face)",
        network=f"segformer_{size}",
        num_classes=outputs,
        state=renamed | strangers(state, ("segformer.", "decode_head.")),
        options=decoder_width(head.get("linear_fuse.weight"), size),
        classes=_classes(config, outputs),
        **_preprocessing(_entry(content, PREPROCESSOR)),
    )


def _entry(content: Any, name: str) -> Mapping[str, Any]:
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _check_config(config: Mapping[str, Any]) -> None:
    """CheckpointError for another network than SegFormer, or one that is built in another way."""
    kind = config.get("model_type", "segformer")
    if kind != "segformer":
        names = config.get("architectures") or [kind]
        raise CheckpointError(
            f"its config.json is that of {', '.join(map(str, names))} (model_type {kind!r}): known is"
            " SegformerForSemanticSegmentation; any other network can be given in Python with"
            " sfss_ray.wrap_model"
        )
    for name, known in _KNOWN.items():
        if config.get(name, known) != known:
            raise CheckpointError(
                f"its config.json has {name} {config[name]!r}: known is {known!r}; any other network"
                " can be given in Python with sfss_ray.wrap_model"
            )


def _classes(config: Mapping[str, Any], outputs: int) -> tuple[str, ...] | None:
    """Names of the outputs where id2label says more than LABEL_0, LABEL_1."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping):
        return None
    by_id = {str(key): str(value).strip() for key, value in labels.items()}
    names = tuple(by_id.get(str(i), "") for i in range(outputs))
    meaningful = all(names) and not any(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return names if meaningful and len(set(names)) == len(by_id) == outputs else None


def _preprocessing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the card that preprocessor_config.json says; ImageNet's without it."""
    mean, std = (
        _three(values, "image_mean", IMAGENET_MEAN),
        _three(values, "image_std", IMAGENET_STD),
    )
    if values.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if values.get("do_rescale") is False:
        return {"mean": mean, "std": std, "value_range": 255.0}
    rescaling = values.get("rescale_factor", 1 / 255)
    if not isinstance(rescaling, (int, float)) or rescaling <= 0:
        raise CheckpointError(
            f"its preprocessor_config.json has rescale_factor {rescaling!r}: allowed is a number above 0"
        )
    # A factor other than 1 / 255 changes mean and std in proportion.
    factor = 255 * rescaling
    factor = 1.0 if abs(factor - 1) < 1e-6 else factor
    return {"mean": tuple(v / factor for v in mean), "std": tuple(v / factor for v in std)}


def _three(values: Mapping[str, Any], name: str, default: Triple) -> Triple:
    numbers = values.get(name, default)
    good = isinstance(numbers, (list, tuple)) and len(numbers) == 3
    if not good or not all(type(v) in (int, float) for v in numbers):
        raise CheckpointError(
            f"its preprocessor_config.json has {name} {numbers!r}: allowed are three numbers"
        )
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
