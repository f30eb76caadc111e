"""All networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.compact import CompactBody
from sfss_ray.models.architectures.deeplab_v2 import deeplabv2, deeplabv2_torchvision
from sfss_ray.models.architectures.espnet import espnet_builder
from sfss_ray.models.architectures.espnet_v2 import espnet_v2_builder
from sfss_ray.models.architectures.mmseg_deeplab import mmseg_deeplab_builders
from sfss_ray.models.architectures.segformer import (
    SIZES,
    daformer_builder,
    hrda_builder,
    segformer_builder,
    segformer_mmseg_builder,
)
from sfss_ray.models.architectures.torchvision_networks import deeplab_or_fcn, lraspp
from sfss_ray.models.architectures.transformers_networks import TRANSFORMERS, transformers_network
from sfss_ray.models.segmenter import Segmenter


def _compact(num_classes: int, width: int = 16) -> Segmenter:
    return Segmenter(CompactBody(width), nn.Conv2d(4 * width, num_classes, 1))


def _compact_wide(num_classes: int) -> Segmenter:
    return _compact(num_classes, width=32)


NETWORKS: dict[str, Callable[..., Segmenter]] = {
    "compact": _compact,
    "compact_wide": _compact_wide,
    "deeplabv2_resnet101": deeplabv2,
    "deeplabv2_resnet101_torchvision": deeplabv2_torchvision,
    "deeplabv3_mobilenet_v3_large": deeplab_or_fcn("deeplabv3_mobilenet_v3_large"),
    "deeplabv3_resnet50": deeplab_or_fcn("deeplabv3_resnet50"),
    "deeplabv3_resnet101": deeplab_or_fcn("deeplabv3_resnet101"),
    "espnet": espnet_builder,
    "espnet_v2": espnet_v2_builder,
    "fcn_resnet50": deeplab_or_fcn("fcn_resnet50"),
    "fcn_resnet101": deeplab_or_fcn("fcn_resnet101"),
    "lraspp_mobilenet_v3_large": lraspp,
    **mmseg_deeplab_builders(),
    **{f"segformer_{size}": segformer_builder(size) for size in SIZES},
    **{f"segformer_mmseg_{size}": segformer_mmseg_builder(size) for size in SIZES},
    **{f"daformer_{size}": daformer_builder(size) for size in SIZES},
    **{f"hrda_{size}": hrda_builder(size) for size in SIZES},
    TRANSFORMERS: transformers_network,
}


def build_network(
    name: str, num_classes: int, options: Mapping[str, Any] | None = None
) -> Segmenter:
    """Build a network with random weights.

    Args:
        name: A key of NETWORKS.
        num_classes: Number of outputs of the classifier.
        options: Further arguments of its builder, as plain values (strides, the type of a head). Model
            files store them.

    Raises:
        ConfigError: the name or an option is unknown. The message lists the known ones.
    """
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}: known are {', '.join(NETWORKS)}")
    options = dict(options or {})
    _, *parameters = inspect.signature(NETWORKS[name]).parameters
    unknown = [option for option in options if option not in parameters]
    if unknown:
        raise ConfigError(
            f"network {name!r} has no option {unknown[0]!r}: known are"
            f" {', '.join(parameters) or 'none'}"
        )
    network = NETWORKS[name](num_classes, **options)
    network.options = options
    return network
