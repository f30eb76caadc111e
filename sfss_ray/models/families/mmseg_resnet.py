"""Recogniser of DeepLab checkpoints on ResNets, of mmsegmentation and DAFormer."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.mmseg_deeplab import HEAD_DILATIONS, BackboneOptions
from sfss_ray.models.families.epsilon import with_epsilon
from sfss_ray.models.families.keys import State, has_prefix, subtree
from sfss_ray.models.families.mmseg import (
    classes_of_meta,
    is_unused,
    unknown_head_error,
    unknown_tensors,
)
from sfss_ray.models.families.mmseg_settings import (
    Settings,
    format_setting,
    read_settings,
    unsupported_setting,
)
from sfss_ray.models.families.recognised_file import RecognisedFile

_DEPTH_OF_BLOCKS = {6: 50, 23: 101}
"""The depth of a ResNet by the number of blocks in its third stage."""
_REDUCED_DILATIONS = (6, 12)
"""Dilations of DeepLabV2's head with two branches (DAFormer's dlv2red)."""
_MMSEG_DEFAULT_DILATIONS = {
    "deeplabv2": (6, 12, 18, 24),
    "deeplabv3": (1, 6, 12, 18),
    "deeplabv3plus": (1, 6, 12, 18),
}
"""Dilations of a head whose configuration leaves them out."""


def mmseg_resnet_deeplab(state: State, content: Any) -> RecognisedFile | None:
    """Recognise `backbone.layer1-4` of bottlenecks with a `decode_head` of DeepLabV2, V3 or V3+."""
    backbone, head = subtree(state, "backbone."), subtree(state, "decode_head.")
    if not (head and has_prefix(backbone, "layer1.0.conv1.")):
        return None
    backbone = {key: v for key, v in backbone.items() if not is_unused(f"backbone.{key}")}

    # The keys decide the network. The configuration may only confirm or refine them.
    head_type, renamed = _rename_head(head)
    resnet = _backbone_name(backbone)
    outputs = _num_outputs(renamed)
    settings = read_settings(content, head_type, outputs)
    options = _network_options(settings, head_type, head)

    # BatchNorm has PyTorch's epsilon here, so another one becomes part of the scales.
    renamed = with_epsilon(renamed, settings.epsilon("decode_head"))
    backbone = with_epsilon(backbone, settings.epsilon("backbone"))
    renamed |= {f"body.backbone.{key}": tensor for key, tensor in backbone.items()}

    # Tensors of unknown parts stay in the state, so that the loader reports them.
    unused = tuple(key for key in state if is_unused(key))
    return RecognisedFile(
        family="DeepLab (mmseg, DAFormer)",
        network=f"{head_type}_mmseg_{resnet}",
        num_classes=outputs,
        state=renamed | unknown_tensors(state, ("backbone.", "decode_head.", *unused)),
        options=options,
        unused=unused,
        card=settings.card(classes_of_meta(content)),
        notes=settings.notes(),
    )


def _backbone_name(backbone: State) -> str:
    """Return resnet50 or resnet101, with `_v1c` for the deep stem; CheckpointError for other ResNets."""
    downsample = backbone.get("layer1.0.downsample.1.weight")
    if has_prefix(backbone, "layer1.0.conv2.fc1."):
        raise CheckpointError(_unsupported_backbone("ResNeSt"))
    if downsample is not None and downsample.ndim == 4:
        raise CheckpointError(
            _unsupported_backbone("ResNet-D, which averages where it downsamples,")
        )
    if not has_prefix(backbone, "layer1.0.conv3."):
        raise CheckpointError(_unsupported_backbone("ResNet of basic blocks (18 or 34)"))
    weight = backbone.get("layer1.0.conv2.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[1] < weight.shape[0]:
        raise CheckpointError(_unsupported_backbone("ResNeXt, whose convolutions are grouped,"))
    matches = [re.match(r"layer3\.(\d+)\.", key) for key in backbone]
    blocks = 1 + max((int(match[1]) for match in matches if match), default=-1)
    if blocks not in _DEPTH_OF_BLOCKS:
        raise CheckpointError(
            _unsupported_backbone(f"ResNet of {blocks} blocks in its third stage")
        )
    stem = "_v1c" if has_prefix(backbone, "stem.") else ""
    return f"resnet{_DEPTH_OF_BLOCKS[blocks]}{stem}"


def _unsupported_backbone(description: str) -> str:
    return (
        f"an mmsegmentation checkpoint on a {description}: supported are ResNet-50 and -101, plain or"
        " v1c; any other network can be given in Python with sfss_ray.wrap_model"
    )


def _rename_head(head: State) -> tuple[str, dict[str, Tensor]]:
    """Return the type of a decode head, and its weights under the names used here."""
    if not has_prefix(head, "aspp_modules."):
        raise unknown_head_error(head, "on a ResNet")
    if not has_prefix(head, "image_pool.") and has_prefix(head, "aspp_modules.0.conv.bias"):
        return "deeplabv2", {_rename_branch(key): tensor for key, tensor in head.items()}
    if not has_prefix(head, "image_pool."):
        raise unknown_head_error(head, "on a ResNet, without image_pool")
    head_type = "deeplabv3plus" if has_prefix(head, "sep_bottleneck.") else "deeplabv3"
    renamed = {}
    for key, tensor in head.items():
        if key.startswith("conv_seg."):
            renamed[f"classifier.{key.removeprefix('conv_seg.')}"] = tensor
        else:
            renamed[f"body.decode_head.{key}"] = tensor
    return head_type, renamed


def _rename_branch(key: str) -> str:
    return re.sub(r"^aspp_modules\.(\d+)\.conv\.", r"classifier.conv2d_list.\1.", key)


def _network_options(settings: Settings, head_type: str, head: State) -> dict[str, Any]:
    """Return the options of the network that differ from its defaults."""
    options: dict[str, Any] = {}
    backbone = _backbone_options(settings)
    if backbone:
        options["backbone"] = backbone
    dilations = _head_dilations(settings, head_type, head)
    if tuple(dilations) != HEAD_DILATIONS[head_type]:
        options["head_dilations"] = dilations
    if has_prefix(head, "bottleneck.depthwise_conv."):
        options["separable_bottleneck"] = True
    return options


def _backbone_options(settings: Settings) -> dict[str, Any]:
    """Return the fields of `BackboneOptions`, or none if they are the defaults of output stride 8."""
    # Without a configuration the file is taken for a d8 model, the most common kind.
    _check_backbone(settings)
    d8 = BackboneOptions()
    path = ("backbone", "strides")
    strides = settings.integers("strides", path, ((1, 2, 2, 2), d8.strides))
    path = ("backbone", "dilations")
    dilations = settings.integers("dilations", path, ((1, 1, 1, 1), d8.dilations))

    contract_dilation = _contracts_dilation(settings)

    # The notes name the output stride too, because users know models by it. The stem has stride 4.
    stride = 4 * strides[0] * strides[1] * strides[2] * strides[3]
    descriptions = settings.read if settings.is_complete else settings.assumed
    descriptions.append(f"output stride {stride}")

    # Only differences from the defaults are options, so files of d8 models need none.
    options: dict[str, Any] = {}
    if (tuple(strides), tuple(dilations)) != (d8.strides, d8.dilations) or not contract_dilation:
        options = {
            "strides": strides,
            "dilations": dilations,
            "contract_dilation": contract_dilation,
        }
    if settings.get("backbone", "multi_grid") is not None:
        ones = ((1, 1, 1), (1, 1, 1))
        options["multi_grid"] = settings.integers("multi_grid", ("backbone", "multi_grid"), ones)
    style = settings.get("backbone", "style")
    if style not in (None, "pytorch", "caffe"):
        raise unsupported_setting("backbone.style", style, "pytorch or caffe")
    if style == "caffe":
        settings.record("style", style, True)
        options["style"] = style
    return options


def _contracts_dilation(settings: Settings) -> bool:
    """Return the setting contract_dilation.

    mmsegmentation's default is False, but all its d8 configurations set True, so True is assumed.
    """
    stated = settings.get("backbone", "contract_dilation")
    default = not settings.is_complete
    settings.record("contract_dilation", default if stated is None else stated, stated is not None)
    return default if stated is None else bool(stated)


def _check_backbone(settings: Settings) -> None:
    """Raise CheckpointError for settings that change the computation but not the keys."""
    backbone_type = settings.get("backbone", "type")
    if isinstance(backbone_type, str):
        name = backbone_type.rpartition(".")[2]
        if name not in ("ResNet", "ResNetV1c"):
            raise unsupported_setting("backbone.type", backbone_type, "ResNet or ResNetV1c")
    for part in ("dcn", "plugins"):
        if settings.get("backbone", part):
            raise unsupported_setting(f"backbone.{part}", settings.get("backbone", part), "none")
    if settings.get("neck"):
        raise unsupported_setting("neck", settings.get("neck", "type"), "none on a ResNet")


def _head_dilations(settings: Settings, head_type: str, head: State) -> list[int]:
    """Return the dilations of the head's branches; CheckpointError if they are unknown for some."""
    branches = len({key.split(".")[1] for key in head if key.startswith("aspp_modules.")})
    assumed = HEAD_DILATIONS[head_type]
    if branches == len(_REDUCED_DILATIONS) and head_type == "deeplabv2":
        assumed = _REDUCED_DILATIONS
    default = _MMSEG_DEFAULT_DILATIONS[head_type] if settings.is_complete else assumed
    configured = settings.get("decode_head", "dilations")
    if isinstance(configured, (list, tuple)):
        default = configured
    if len(default) != branches:
        raise CheckpointError(
            f"its decode head has {branches} branches (aspp_modules), but only {len(default)} dilations"
            f" are known ({format_setting(default)}): a configuration (meta.cfg) in the file can name"
            " those of all branches"
        )
    path = ("decode_head", "dilations")
    return settings.integers("the head's dilations", path, (default, default))


def _num_outputs(renamed: State) -> int:
    rows = next((v for key, v in renamed.items() if key.startswith("classifier.")), None)
    if rows is None:
        raise CheckpointError("its classifier decode_head.conv_seg is missing: give the whole file")
    return rows.shape[0]
