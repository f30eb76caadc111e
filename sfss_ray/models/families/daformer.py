"""Recogniser of the layers in DAFormer's decode heads, by their keys and the file's configuration."""

from __future__ import annotations

from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.daformer_head import DILATIONS, POINTWISE, SEPARABLE_CONTEXT
from sfss_ray.models.families.keys import State, has_prefix, subtree
from sfss_ray.models.families.mmseg import unknown_head_error
from sfss_ray.models.families.mmseg_settings import Settings, format_setting, unsupported_setting

_DEFAULT_PATCH = (8, 8)


def daformer_options(head: State, settings: Settings) -> dict[str, Any]:
    """Return the options of the network `daformer` for a decode head.

    Raises:
        CheckpointError: a layer of the head is of an unknown type.
    """
    options: dict[str, Any] = {}
    if has_prefix(head, "embed_layers.3.0.") or has_prefix(head, "embed_layers.3.aspp_modules."):
        last = describe_layer(subtree(head, "embed_layers.3."), settings, "embed_neck_cfg")
        if last["type"] != "rawconv_and_aspp":
            raise unknown_head_error(head, "its embed_layers.3 is not linear")
        options["last"] = last
    _check_neck(settings, enlarges_last_stage="last" in options)
    if not has_prefix(head, "embed_layers.0.proj."):
        raise unknown_head_error(head, "its embed_layers are not linear")
    fusion = describe_layer(subtree(head, "fuse_layer."), settings, "fusion_cfg")
    if fusion != SEPARABLE_CONTEXT:
        options["fusion"] = fusion
    return options


def hrda_options(head: State, settings: Settings) -> dict[str, Any]:
    """Return the options of the network `hrda` for a decode head.

    Raises:
        CheckpointError: the configured scales or crops are not supported, or a layer is of an unknown
            type.
    """
    _check_neck(settings, enlarges_last_stage=False)
    scales, crop_size = settings.get("scales"), settings.get("hr_crop_size")
    if isinstance(scales, (list, tuple)) and sorted(scales) != [0.5, 1]:
        raise unsupported_setting("scales", scales, "0.5 and 1")
    if isinstance(crop_size, (list, tuple)) and list(crop_size) != [512, 512]:
        raise unsupported_setting("hr_crop_size", crop_size, "512, 512")
    for name, supported in (("hr_slide_overlapping", True), ("blur_hr_crop", False)):
        if settings.get(name) not in (None, supported):
            raise unsupported_setting(name, settings.get(name), str(supported))
    options: dict[str, Any] = {}
    fusion = describe_layer(subtree(head, "head.fuse_layer."), settings, "fusion_cfg")
    if fusion != SEPARABLE_CONTEXT:
        options["fusion"] = fusion
    attention_layer = subtree(head, "scale_attention.fuse_layer.")
    attention = describe_layer(attention_layer, settings, "fusion_cfg")
    if attention != POINTWISE:
        options["attention_fusion"] = attention
    return options


def describe_layer(layer: State, settings: Settings, config_name: str) -> dict[str, Any]:
    """Return the description of a layer, as sfss_ray.models.architectures.daformer_head builds it.

    Args:
        layer: Its tensors, under keys without the layer's own name.
        settings: The settings of the file.
        config_name: The entry of `decoder_params` that configures the layer.

    Raises:
        CheckpointError: the layer is of an unknown type.
    """
    path = ("decode_head", "decoder_params", config_name)
    if has_prefix(layer, "aspp_modules."):
        return {"type": "aspp"} | _describe_context(layer, settings, path)
    if has_prefix(layer, "0.") and has_prefix(layer, "1.aspp_modules."):
        kernel = _describe_kernel(layer, "0.weight")
        context = _describe_context(subtree(layer, "1."), settings, path)
        return {"type": "rawconv_and_aspp"} | kernel | context
    if has_prefix(layer, "depthwise_conv."):
        return {"type": "sep_conv"} | _describe_kernel(layer, "depthwise_conv.conv.weight")
    if has_prefix(layer, "global_relation."):
        return {"type": "isa"} | _describe_attention(layer, settings, path)
    if has_prefix(layer, "conv.") and has_prefix(layer, "bn."):
        return {"type": "conv"} | _describe_kernel(layer, "conv.weight")
    raise unknown_head_error(
        {f"fuse_layer.{key}": tensor for key, tensor in layer.items()}, config_name
    )


def _describe_context(layer: State, settings: Settings, path: tuple[str, ...]) -> dict[str, Any]:
    """Return `sep` of an ASPP, and `dilations` and `pool` if they are not the defaults."""
    if has_prefix(layer, "context_layer."):
        raise unknown_head_error(layer, "its fuse_layer has a context_layer")
    branch_keys = [key for key in layer if key.startswith("aspp_modules.")]
    branches = len({key.split(".")[1] for key in branch_keys})
    configured = settings.get(*path, "dilations")
    default = configured if isinstance(configured, (list, tuple)) else DILATIONS
    if len(default) != branches:
        raise CheckpointError(
            f"its decode head DAFormerHead has {branches} branches (aspp_modules), but only"
            f" {len(default)} dilations are known ({format_setting(default)}): a configuration"
            " (meta.cfg) in the file can name those of all branches"
        )
    dilations = settings.integers("the head's dilations", (*path, "dilations"), (default, default))
    description: dict[str, Any] = {"sep": any(".depthwise_conv." in key for key in branch_keys)}
    if tuple(dilations) != DILATIONS:
        description["dilations"] = dilations
    if has_prefix(layer, "image_pool."):
        description["pool"] = True
    return description


def _describe_attention(layer: State, settings: Settings, path: tuple[str, ...]) -> dict[str, Any]:
    if has_prefix(layer, "out_conv."):
        raise unknown_head_error(layer, "its ISA layer has an out_conv")
    # A single convolution is not numbered: its key continues with `conv` or `bn`.
    parts = {key.split(".")[2] for key in layer if key.startswith("global_relation.key_project")}
    convolutions = len({part for part in parts if part.isdigit()}) or 1
    patch = settings.integers(
        "ISA's patch", (*path, "down_factor"), (_DEFAULT_PATCH, _DEFAULT_PATCH)
    )
    description: dict[str, Any] = {"key_query_num_convs": convolutions}
    if tuple(patch) != _DEFAULT_PATCH:
        description["down_factor"] = patch
    return description


def _describe_kernel(layer: State, key: str) -> dict[str, Any]:
    weight = layer.get(key)
    if weight is None or weight.ndim != 4:
        return {}  # the loader names the tensor that is missing or misshapen
    return {"kernel_size": weight.shape[-1]}


def _check_neck(settings: Settings, enlarges_last_stage: bool) -> None:
    """Raise CheckpointError for layers between backbone and head that have no keys."""
    neck = settings.get("neck")
    if not enlarges_last_stage:
        if neck:
            raise unsupported_setting("neck", settings.get("neck", "type"), "none")
        return
    is_supported = settings.get("neck", "type") == "SegFormerAdapter"
    is_supported = is_supported and settings.get("neck", "scales") in ([8], (8,))
    if not is_supported and (neck is not None or settings.is_complete):
        raise unsupported_setting(
            "neck", neck, "SegFormerAdapter with scales [8], for context at the last stage"
        )
    settings.record("the last stage enlarged by", 8, is_supported)
