"""The layers of DAFormer's decode heads, told by their keys and the file's configuration."""

from __future__ import annotations

from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.daformer_head import DILATIONS, POINTWISE, SEPARABLE_CONTEXT
from sfss_ray.models.families.mmseg import State, has, under, unknown_head
from sfss_ray.models.families.mmseg_settings import Settings, conflict, shown

_PATCH = (8, 8)


def daformer_options(head: State, settings: Settings) -> dict[str, Any]:
    """Options of the network `daformer` for the keys of a decode head."""
    options: dict[str, Any] = {}
    if has(head, "embed_layers.3.0.") or has(head, "embed_layers.3.aspp_modules."):
        last = layer_of(under(head, "embed_layers.3."), settings, "embed_neck_cfg")
        if last["type"] != "rawconv_and_aspp":
            raise unknown_head(head, "its embed_layers.3 is no linear map")
        options["last"] = last
    _check_neck(settings, "last" in options)
    if not has(head, "embed_layers.0.proj."):
        raise unknown_head(head, "its embed_layers are no linear maps")
    fusion = layer_of(under(head, "fuse_layer."), settings, "fusion_cfg")
    if fusion != SEPARABLE_CONTEXT:
        options["fusion"] = fusion
    return options


def hrda_options(head: State, settings: Settings) -> dict[str, Any]:
    """Options of the network `hrda`; CheckpointError for scales that it is not built with."""
    _check_neck(settings, False)
    scales, crop = settings.of("scales"), settings.of("hr_crop_size")
    if isinstance(scales, (list, tuple)) and sorted(scales) != [0.5, 1]:
        raise conflict("scales", scales, "0.5 and 1")
    if isinstance(crop, (list, tuple)) and list(crop) != [512, 512]:
        raise conflict("hr_crop_size", crop, "512, 512")
    for name, known in (("hr_slide_overlapping", True), ("blur_hr_crop", False)):
        if settings.of(name) not in (None, known):
            raise conflict(name, settings.of(name), str(known))
    options: dict[str, Any] = {}
    fusion = layer_of(under(head, "head.fuse_layer."), settings, "fusion_cfg")
    if fusion != SEPARABLE_CONTEXT:
        options["fusion"] = fusion
    attention = layer_of(under(head, "scale_attention.fuse_layer."), settings, "fusion_cfg")
    if attention != POINTWISE:
        options["attention_fusion"] = attention
    return options


def layer_of(layer: State, settings: Settings, name: str) -> dict[str, Any]:
    """A layer's description (see sfss_ray.models.architectures.daformer_head) from its keys.

    `name` is the entry of `decoder_params` that its maker described it in. CheckpointError for a layer
    of another kind.
    """
    path = ("decode_head", "decoder_params", name)
    if has(layer, "aspp_modules."):
        return {"type": "aspp"} | _context(layer, settings, path)
    if has(layer, "0.") and has(layer, "1.aspp_modules."):
        found = {"type": "rawconv_and_aspp"} | _kernel(layer, "0.weight")
        return found | _context(under(layer, "1."), settings, path)
    if has(layer, "depthwise_conv."):
        return {"type": "sep_conv"} | _kernel(layer, "depthwise_conv.conv.weight")
    if has(layer, "global_relation."):
        return {"type": "isa"} | _attention(layer, settings, path)
    if has(layer, "conv.") and has(layer, "bn."):
        return {"type": "conv"} | _kernel(layer, "conv.weight")
    raise unknown_head({f"fuse_layer.{key}": value for key, value in layer.items()}, name)


def _context(layer: State, settings: Settings, path: tuple[str, ...]) -> dict[str, Any]:
    """sep, dilations, pool of an ASPP; the defaults are left out but for `sep`."""
    if has(layer, "context_layer."):
        raise unknown_head(layer, "its fuse_layer has a context_layer")
    branches = len({key.split(".")[1] for key in layer if key.startswith("aspp_modules.")})
    given = settings.of(*path, "dilations")
    default = given if isinstance(given, (list, tuple)) else DILATIONS
    if len(default) != branches:
        raise CheckpointError(
            f"its decode head DAFormerHead has {branches} branches (aspp_modules), and their dilations"
            f" are known for {len(default)} alone ({shown(default)})"
        )
    dilations = settings.numbers("the head's dilations", (*path, "dilations"), (default, default))
    found: dict[str, Any] = {
        "sep": any(".depthwise_conv." in key for key in layer if key.startswith("aspp_modules."))
    }
    if tuple(dilations) != DILATIONS:
        found["dilations"] = dilations
    if has(layer, "image_pool."):
        found["pool"] = True
    return found


def _attention(layer: State, settings: Settings, path: tuple[str, ...]) -> dict[str, Any]:
    if has(layer, "out_conv."):
        raise unknown_head(layer, "its ISA layer has an out_conv")
    convolutions = {
        key.split(".")[2] for key in layer if key.startswith("global_relation.key_project")
    }
    number = len({part for part in convolutions if part.isdigit()}) or 1
    patch = settings.numbers("ISA's patch", (*path, "down_factor"), (_PATCH, _PATCH))
    found: dict[str, Any] = {"key_query_num_convs": number}
    if tuple(patch) != _PATCH:
        found["down_factor"] = patch
    return found


def _kernel(layer: State, key: str) -> dict[str, Any]:
    weight = layer.get(key)
    if weight is None or weight.ndim != 4:
        return {}  # the loader names the tensor that is missing or misshapen
    return {"kernel_size": weight.shape[-1]}


def _check_neck(settings: Settings, enlarging: bool) -> None:
    """CheckpointError for layers between backbone and head that leave no key behind."""
    neck = settings.of("neck")
    if not enlarging:
        if neck:
            raise conflict("neck", settings.of("neck", "type"), "none")
        return
    known = settings.of("neck", "type") == "SegFormerAdapter"
    known = known and settings.of("neck", "scales") in ([8], (8,))
    if not known and (neck is not None or settings.whole):
        raise conflict(
            "neck", neck, "SegFormerAdapter with scales [8], for context at the last stage"
        )
    settings.tell("the last stage enlarged by", 8, known)
