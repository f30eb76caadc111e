"""DeepLabV2 checkpoints: AdaptSegNet's code and its many children, and FADA's.

Key names and preprocessing were read from the public code of AdaptSegNet, ADVENT, CROTS and FADA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.deeplab_v2 import CAFFE_MEAN, FEATURES
from sfss_ray.models.families.epsilon import with_epsilon
from sfss_ray.models.families.recognised_file import Recognised
from sfss_ray.models.load_report import COUNTERS

_BODY = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_COPIES = ("ema_", "teacher", "ema.")
_INITIAL_STD = 0.01


def caffe_deeplab_v2(state: Mapping[str, Tensor], content: Any) -> Recognised | None:
    """AdaptSegNet, ADVENT, HCL (two heads), IAPC (one), CROTS (`net.`), their `Scale.` start weights.

    conv1, bn1, layer1-4, and heads of four convolutions: `layer6` on 2048 channels with or without
    the auxiliary `layer5` on 1024, or `layer5` alone on 2048.
    """
    state = {key.removeprefix("Scale."): value for key, value in state.items()}
    if _has(state, "features.0.") and _has(state, "classifier.conv2d_list."):
        raise CheckpointError(_vgg("AdaptSegNet's"))
    heads = [name for name in ("layer6.", "layer5.") if _has(state, f"{name}conv2d_list.")]
    if not heads:
        if not (_has(state, "layer4.2.conv3.") and _has(state, "conv1.")):
            return None
        raise CheckpointError(
            "the file holds a ResNet backbone alone, its classifier (layer6.conv2d_list or"
            " layer5.conv2d_list) is missing: give a checkpoint that was trained to segment"
        )
    main = next((head for head in heads if _inputs(state, head) == FEATURES), heads[0])
    if main == "layer5." and _inputs(state, main) != FEATURES:
        raise CheckpointError(
            "the file's classifier layer6.conv2d_list is missing, and its layer5.conv2d_list is the"
            f" auxiliary one ({_inputs(state, main)} channels): give the whole checkpoint"
        )
    renamed, unused = {}, []
    for key, value in state.items():
        if key.startswith(main):
            renamed[f"classifier.{key.removeprefix(main)}"] = value
        elif key.startswith(("layer5.", "layer6.", "fc.", *_COPIES)):
            unused.append(key)
        else:
            renamed[f"body.{key}"] = value
    renamed, notes = _without_idle_branches(renamed)
    return Recognised(
        family="DeepLabV2 (AdaptSegNet, ADVENT, HCL, IAPC, CROTS)",
        network="deeplabv2_resnet101",
        num_classes=_outputs(renamed),
        state=renamed,
        unused=tuple(unused),
        mean=CAFFE_MEAN,
        std=(1.0, 1.0, 1.0),
        channel_order="bgr",
        value_range=255.0,
        align_corners=True,
        notes=notes,
    )


def torchvision_deeplab_v2(state: Mapping[str, Tensor], content: Any) -> Recognised | None:
    """FADA, DT-ST, TRSFUDA: `feature_extractor` (torchvision's ResNet) and `classifier` side by side."""
    extractor, classifier = "feature_extractor.backbone.", "classifier.conv2d_list."
    if not (_has(state, "feature_extractor.") and _has(state, "classifier.")):
        return None
    if not (_has(state, extractor) or _has(state, classifier)):
        return None
    if _has(state, "feature_extractor.backbone.0."):
        raise CheckpointError(_vgg("FADA's"))
    renamed, unused = {}, []
    for key, value in state.items():
        if key.startswith("feature_extractor.backbone.fc."):
            unused.append(key)
        elif key.startswith("feature_extractor."):
            renamed[f"body.{key.removeprefix('feature_extractor.')}"] = value
        elif key.startswith("classifier."):
            renamed[key] = value
        else:
            unused.append(key)
    renamed, notes = _with_makers_epsilon(renamed)
    return Recognised(
        family="DeepLabV2 (FADA, DT-ST, TRSFUDA)",
        network="deeplabv2_resnet101_torchvision",
        num_classes=_outputs(renamed),
        state=renamed,
        unused=tuple(unused),
        align_corners=True,
        notes=notes,
    )


def _with_makers_epsilon(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Scales of BatchNorm for a file that was made with this code's frozen one, which has no epsilon.

    DT-ST and TRSFUDA, and FADA with MODEL.FREEZE_BN, replace BatchNorm by a module that divides by
    sqrt(running_var). It has no counter of batches, ordinary BatchNorm has one per layer.
    """
    if any(key.endswith(COUNTERS) for key in state):
        return state, ()
    note = (
        "BatchNorm was frozen without an epsilon (the file has no num_batches_tracked): its scales were"
        " changed to give the same values with the epsilon of 1e-5 that is used here"
    )
    return with_epsilon(state, 0.0), (note,)


def _vgg(whose: str) -> str:
    return (
        f"{whose} VGG16 DeepLab is not supported: supported are the DeepLabV2 checkpoints of the same"
        " code on ResNet-101; any other network can be given in Python with sfss_ray.wrap_model"
    )


def _has(state: Mapping[str, Tensor], start: str) -> bool:
    return any(key.startswith(start) for key in state)


def _inputs(state: Mapping[str, Tensor], head: str) -> int:
    weights = [v for k, v in state.items() if k.startswith(head) and v.ndim == 4]
    return weights[0].shape[1] if weights else 0


def _outputs(renamed: Mapping[str, Tensor]) -> int:
    return next(v.shape[0] for k, v in renamed.items() if k.startswith("classifier."))


def _without_idle_branches(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Silence head convolutions that never took part.

    AdaptSegNet's classifier (and CROTS's) returns from inside its loop: it adds up the first two of
    its four convolutions. The others keep their initial weights, drawn from N(0, 0.01), and would add
    noise where they are summed as they should. ADVENT's own classifier adds up all four. Nothing in the
    keys tells the two apart, but weights that no gradient ever reached do.
    """
    branches = [state.get(f"classifier.conv2d_list.{i}.weight") for i in range(4)]
    idle = [i for i, weight in enumerate(branches) if weight is not None and _is_initial(weight)]
    if idle != [2, 3]:
        return state, ()
    silent = dict(state)
    for i in idle:
        for part in ("weight", "bias"):
            key = f"classifier.conv2d_list.{i}.{part}"
            if key in silent:
                silent[key] = torch.zeros_like(silent[key])
    note = (
        "head convolutions 2 and 3 still hold their random start weights, so the maker's code summed"
        " two of four: these two are set to zero here"
    )
    return silent, (note,)


def _is_initial(weight: Tensor) -> bool:
    """Whether weights look drawn from N(0, 0.01): mean, deviation and tails within five errors."""
    values = weight.float().flatten() / _INITIAL_STD
    number = values.numel()
    if number < 10_000:
        return False
    mean, deviation = values.mean().item(), values.std().item()
    tails = (values - mean).div(deviation).pow(4).mean().item() if deviation > 0 else 0.0
    return (
        abs(mean) < 5 / number**0.5
        and abs(deviation - 1) < 5 / (2 * number) ** 0.5
        and abs(tails - 3) < 5 * (24 / number) ** 0.5
    )
