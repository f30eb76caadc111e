"""Recognisers of DeepLabV2 checkpoints: AdaptSegNet's code and its many descendants, and FADA's.

Key names and preprocessing were read from the public code of AdaptSegNet, ADVENT, CROTS and FADA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.deeplab_v2 import CAFFE_CARD, FEATURES
from sfss_ray.models.card import Card
from sfss_ray.models.families.epsilon import with_epsilon
from sfss_ray.models.families.keys import State, has_prefix
from sfss_ray.models.families.recognised_file import RecognisedFile
from sfss_ray.models.load_report import BATCH_COUNTERS

_COPY_PREFIXES = ("ema_", "teacher", "ema.")
_INITIAL_STD = 0.01


def caffe_deeplab_v2(state: State, content: Any) -> RecognisedFile | None:
    """Recognise AdaptSegNet, ADVENT, HCL (two heads), IAPC (one), CROTS, and `Scale.` weights.

    The keys are conv1, bn1, layer1-4, and a head of four convolutions: `layer6` on 2048 channels with or
    without the auxiliary `layer5` on 1024, or `layer5` alone on 2048.
    """
    state = {key.removeprefix("Scale."): tensor for key, tensor in state.items()}
    if has_prefix(state, "features.0.") and has_prefix(state, "classifier.conv2d_list."):
        raise CheckpointError(_vgg_message("AdaptSegNet's"))
    head = _main_head(state)
    if head is None:
        return None

    # Auxiliary heads and copies are known but not needed. Any other key is left to the loader.
    renamed, unused = {}, []
    for key, tensor in state.items():
        if key.startswith(head):
            renamed[f"classifier.{key.removeprefix(head)}"] = tensor
        elif key.startswith(("layer5.", "layer6.", "fc.", *_COPY_PREFIXES)):
            unused.append(key)
        else:
            renamed[f"body.{key}"] = tensor
    renamed, notes = _without_idle_branches(renamed)
    return RecognisedFile(
        family="DeepLabV2 (AdaptSegNet, ADVENT, HCL, IAPC, CROTS)",
        network="deeplabv2_resnet101",
        num_classes=_num_outputs(renamed),
        state=renamed,
        unused=tuple(unused),
        card=CAFFE_CARD,
        notes=notes,
    )


def _main_head(state: State) -> str | None:
    """Return the prefix of the head on 2048 channels, or None if the file is not of this family.

    Raises:
        CheckpointError: the file holds a backbone without that head.
    """
    heads = [name for name in ("layer6.", "layer5.") if has_prefix(state, f"{name}conv2d_list.")]
    if not heads:
        if not (has_prefix(state, "layer4.2.conv3.") and has_prefix(state, "conv1.")):
            return None
        raise CheckpointError(
            "the file holds a ResNet backbone alone, its classifier (layer6.conv2d_list or"
            " layer5.conv2d_list) is missing: give a checkpoint that was trained to segment"
        )
    main = next((head for head in heads if _input_channels(state, head) == FEATURES), heads[0])
    if main == "layer5." and _input_channels(state, main) != FEATURES:
        raise CheckpointError(
            "the file's classifier layer6.conv2d_list is missing, and its layer5.conv2d_list is the"
            f" auxiliary one ({_input_channels(state, main)} channels): give the whole checkpoint"
        )
    return main


def torchvision_deeplab_v2(state: State, content: Any) -> RecognisedFile | None:
    """Recognise FADA, DT-ST, TRSFUDA: `feature_extractor` (torchvision's ResNet) and `classifier`."""
    extractor, classifier = "feature_extractor.backbone.", "classifier.conv2d_list."
    if not (has_prefix(state, "feature_extractor.") and has_prefix(state, "classifier.")):
        return None
    if not (has_prefix(state, extractor) or has_prefix(state, classifier)):
        return None
    if has_prefix(state, "feature_extractor.backbone.0."):
        raise CheckpointError(_vgg_message("FADA's"))

    # Discriminators and optimizers lie beside the two parts; they are not needed.
    renamed, unused = {}, []
    for key, tensor in state.items():
        if key.startswith("feature_extractor.backbone.fc."):
            unused.append(key)
        elif key.startswith("feature_extractor."):
            renamed[f"body.{key.removeprefix('feature_extractor.')}"] = tensor
        elif key.startswith("classifier."):
            renamed[key] = tensor
        else:
            unused.append(key)
    renamed, notes = _with_original_epsilon(renamed)
    return RecognisedFile(
        family="DeepLabV2 (FADA, DT-ST, TRSFUDA)",
        network="deeplabv2_resnet101_torchvision",
        num_classes=_num_outputs(renamed),
        state=renamed,
        unused=tuple(unused),
        card=Card(align_corners=True),
        notes=notes,
    )


def _with_original_epsilon(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Convert the scales of a frozen BatchNorm without epsilon; return the weights and notes.

    DT-ST and TRSFUDA, and FADA with MODEL.FREEZE_BN, replace BatchNorm by a module that divides by
    sqrt(running_var). It has no batch counter, while ordinary BatchNorm has one in each layer.
    """
    if any(key.endswith(BATCH_COUNTERS) for key in state):
        return state, ()
    note = (
        "BatchNorm was frozen without an epsilon (the file has no num_batches_tracked): its scales were"
        " changed to give the same results with the epsilon of 1e-5 that is used here"
    )
    return with_epsilon(state, 0.0), (note,)


def _vgg_message(owner: str) -> str:
    return (
        f"{owner} VGG16 DeepLab is not supported: supported are the DeepLabV2 checkpoints of the same"
        " code on ResNet-101; any other network can be given in Python with sfss_ray.wrap_model"
    )


def _input_channels(state: State, head: str) -> int:
    weights = [v for k, v in state.items() if k.startswith(head) and v.ndim == 4]
    return weights[0].shape[1] if weights else 0


def _num_outputs(renamed: State) -> int:
    return next(v.shape[0] for k, v in renamed.items() if k.startswith("classifier."))


def _without_idle_branches(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Zero head convolutions that never took part in training; return the weights and notes.

    AdaptSegNet's classifier (and CROTS's) returns from inside its loop, so it sums only the first two of
    its four convolutions. The other two keep their initial weights, drawn from N(0, 0.01), and would add
    noise to the sum here. ADVENT's own classifier sums all four. The keys of both are the same, but
    weights that no gradient ever reached still look like their initial distribution.
    """
    branches = [state.get(f"classifier.conv2d_list.{i}.weight") for i in range(4)]
    idle = [i for i, weight in enumerate(branches) if weight is not None and _looks_initial(weight)]
    if idle != [2, 3]:
        return state, ()
    silenced = dict(state)
    for i in idle:
        for parameter in ("weight", "bias"):
            key = f"classifier.conv2d_list.{i}.{parameter}"
            if key in silenced:
                silenced[key] = torch.zeros_like(silenced[key])
    note = (
        "head convolutions 2 and 3 still hold their random start weights, so the original code summed"
        " two of four: these two are set to zero here"
    )
    return silenced, (note,)


def _looks_initial(weight: Tensor) -> bool:
    """Whether weights look drawn from N(0, 0.01).

    Their mean, standard deviation and kurtosis must lie within five standard errors of those of a normal
    distribution: 1 / sqrt(n), 1 / sqrt(2 n) and sqrt(24 / n).
    """
    scaled = weight.float().flatten() / _INITIAL_STD
    count = scaled.numel()
    if count < 10_000:
        return False
    mean, deviation = scaled.mean().item(), scaled.std().item()
    kurtosis = (scaled - mean).div(deviation).pow(4).mean().item() if deviation > 0 else 0.0
    return (
        abs(mean) < 5 / count**0.5
        and abs(deviation - 1) < 5 / (2 * count) ** 0.5
        and abs(kurtosis - 3) < 5 * (24 / count) ** 0.5
    )
