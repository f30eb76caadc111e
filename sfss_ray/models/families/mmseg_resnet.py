"""DeepLab checkpoints of mmsegmentation on ResNets, and DAFormer's with DeepLabV2's head."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.mmseg_deeplab import DILATIONS, HEAD_DILATIONS, STRIDES
from sfss_ray.models.families.epsilon import with_epsilon
from sfss_ray.models.families.mmseg import (
    State,
    classes_of_meta,
    has,
    not_needed,
    strangers,
    under,
    unknown_head,
)
from sfss_ray.models.families.mmseg_settings import Settings, conflict, settings_of, shown
from sfss_ray.models.families.recognised_file import Recognised

_DEPTHS = {6: 50, 23: 101}
"""Blocks of the third stage -> depth."""
_REDUCED_DILATIONS = (6, 12)
"""Of DeepLabV2's head with two branches (DAFormer's dlv2red)."""
_OWN_HEAD_DILATIONS = {
    "deeplabv2": (6, 12, 18, 24),
    "deeplabv3": (1, 6, 12, 18),
    "deeplabv3plus": (1, 6, 12, 18),
}
"""Those a head has where its configuration leaves them out."""


def deeplab_of_mmseg(state: State, content: Any) -> Recognised | None:
    """`backbone.layer1-4` of bottlenecks and a `decode_head` of DeepLabV2, V3 or V3+."""
    backbone, head = under(state, "backbone."), under(state, "decode_head.")
    if not (head and has(backbone, "layer1.0.conv1.")):
        return None
    backbone = {key: v for key, v in backbone.items() if not not_needed(f"backbone.{key}")}
    kind, renamed = _head(head)
    network = _backbone(backbone)
    outputs = _outputs(renamed)
    settings = settings_of(content, kind, outputs)
    options = _options(settings, kind, head)
    renamed = with_epsilon(renamed, settings.epsilon("decode_head"))
    backbone = with_epsilon(backbone, settings.epsilon("backbone"))
    renamed |= {f"body.backbone.{key}": value for key, value in backbone.items()}
    unused = [key for key in state if not_needed(key)]
    return Recognised(
        family="DeepLab (mmseg, DAFormer)",
        network=f"{kind}_mmseg_{network}",
        num_classes=outputs,
        state=renamed | strangers(state, ("backbone.", "decode_head.", *unused)),
        options=options,
        unused=tuple(unused),
        mean=settings.mean,
        std=settings.std,
        channel_order=settings.channel_order,
        value_range=255.0,
        align_corners=settings.align_corners,
        classes=classes_of_meta(content),
        notes=settings.notes(),
    )


def _backbone(backbone: State) -> str:
    """resnet50, resnet101, with `_v1c` for the deep stem; CheckpointError for other ResNets."""
    downsample = backbone.get("layer1.0.downsample.1.weight")
    if has(backbone, "layer1.0.conv2.fc1."):
        raise CheckpointError(_other("ResNeSt"))
    if downsample is not None and downsample.ndim == 4:
        raise CheckpointError(_other("ResNet-D, which averages where it shrinks,"))
    if not has(backbone, "layer1.0.conv3."):
        raise CheckpointError(_other("ResNet of basic blocks (18 or 34)"))
    middle = backbone.get("layer1.0.conv2.weight")
    if middle is not None and middle.ndim == 4 and middle.shape[1] < middle.shape[0]:
        raise CheckpointError(_other("ResNeXt, whose convolutions are grouped,"))
    found = [re.match(r"layer3\.(\d+)\.", key) for key in backbone]
    blocks = 1 + max((int(match[1]) for match in found if match), default=-1)
    if blocks not in _DEPTHS:
        raise CheckpointError(_other(f"ResNet of {blocks} blocks in its third stage"))
    return f"resnet{_DEPTHS[blocks]}" + ("_v1c" if has(backbone, "stem.") else "")


def _other(what: str) -> str:
    return (
        f"an mmsegmentation checkpoint on a {what}: known are ResNet-50 and -101, plain or v1c; any"
        " other network can be given in Python with sfss_ray.wrap_model"
    )


def _head(head: State) -> tuple[str, dict[str, Tensor]]:
    """(kind, weights under our names)."""
    if not has(head, "aspp_modules."):
        raise unknown_head(head, "on a ResNet")
    if not has(head, "image_pool.") and has(head, "aspp_modules.0.conv.bias"):
        return "deeplabv2", {_branch(key): value for key, value in head.items()}
    if not has(head, "image_pool."):
        raise unknown_head(head, "on a ResNet, without image_pool")
    kind = "deeplabv3plus" if has(head, "sep_bottleneck.") else "deeplabv3"
    renamed = {}
    for key, value in head.items():
        last = key.startswith("conv_seg.")
        name = f"classifier.{key.removeprefix('conv_seg.')}" if last else f"body.decode_head.{key}"
        renamed[name] = value
    return kind, renamed


def _branch(key: str) -> str:
    return re.sub(r"^aspp_modules\.(\d+)\.conv\.", r"classifier.conv2d_list.\1.", key)


def _options(settings: Settings, kind: str, head: State) -> dict[str, Any]:
    """Options of the network that differ from what it is built with without any."""
    options: dict[str, Any] = {}
    backbone = _grid(settings)
    if backbone:
        options["backbone"] = backbone
    dilations = _head_dilations(settings, kind, head)
    if tuple(dilations) != HEAD_DILATIONS[kind]:
        options["head_dilations"] = dilations
    if has(head, "bottleneck.depthwise_conv."):
        options["separable_bottleneck"] = True
    return options


def _grid(settings: Settings) -> dict[str, Any]:
    """Strides and dilations of the backbone, where they are not those of output stride 8."""
    _check_backbone(settings)
    strides = settings.numbers("strides", ("backbone", "strides"), ((1, 2, 2, 2), STRIDES))
    dilations = settings.numbers("dilations", ("backbone", "dilations"), ((1, 1, 1, 1), DILATIONS))
    contract = settings.of("backbone", "contract_dilation")
    settings.tell(
        "contract_dilation",
        not settings.whole if contract is None else contract,
        contract is not None,
    )
    contracted = not settings.whole if contract is None else bool(contract)
    stride = 4 * strides[0] * strides[1] * strides[2] * strides[3]
    (settings.read if settings.whole else settings.assumed).append(f"output stride {stride}")
    grid: dict[str, Any] = {
        "strides": strides,
        "dilations": dilations,
        "contract_dilation": contracted,
    }
    plain = {"strides": list(STRIDES), "dilations": list(DILATIONS), "contract_dilation": True}
    grid = {} if grid == plain else grid
    if settings.of("backbone", "multi_grid") is not None:
        three = ((1, 1, 1), (1, 1, 1))
        grid["multi_grid"] = settings.numbers("multi_grid", ("backbone", "multi_grid"), three)
    style = settings.of("backbone", "style")
    if style not in (None, "pytorch", "caffe"):
        raise conflict("backbone.style", style, "pytorch or caffe")
    if style == "caffe":
        settings.tell("style", style, True)
        grid["style"] = style
    return grid


def _check_backbone(settings: Settings) -> None:
    """CheckpointError for what changes the computation and leaves no key behind."""
    kind = settings.of("backbone", "type")
    if isinstance(kind, str) and kind.rpartition(".")[2] not in ("ResNet", "ResNetV1c"):
        raise conflict("backbone.type", kind, "ResNet or ResNetV1c")
    for part in ("dcn", "plugins"):
        if settings.of("backbone", part):
            raise conflict(f"backbone.{part}", settings.of("backbone", part), "none")
    if settings.of("neck"):
        raise conflict("neck", settings.of("neck", "type"), "none on a ResNet")


def _head_dilations(settings: Settings, kind: str, head: State) -> list[int]:
    branches = len({key.split(".")[1] for key in head if key.startswith("aspp_modules.")})
    assumed = HEAD_DILATIONS[kind]
    if branches == len(_REDUCED_DILATIONS) and kind == "deeplabv2":
        assumed = _REDUCED_DILATIONS
    dilations = settings.of("decode_head", "dilations")
    default = _OWN_HEAD_DILATIONS[kind] if settings.whole else assumed
    if isinstance(dilations, (list, tuple)):
        default = dilations
    if len(default) != branches:
        raise CheckpointError(
            f"its decode head has {branches} branches (aspp_modules), and their dilations are known"
            f" for {len(default)} alone ({shown(default)}): a configuration (meta.cfg) in the file"
            " can name those of all branches"
        )
    path = ("decode_head", "dilations")
    return settings.numbers("the head's dilations", path, (default, default))


def _outputs(renamed: State) -> int:
    rows = next((v for key, v in renamed.items() if key.startswith("classifier.")), None)
    if rows is None:
        raise CheckpointError("its classifier decode_head.conv_seg is missing: give the whole file")
    return rows.shape[0]
