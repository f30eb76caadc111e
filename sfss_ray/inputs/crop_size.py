"""The size of training crops, chosen from the images of a run where the config leaves it open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sfss_ray.config import AugmentConfig, Config, override
from sfss_ray.data.augment import fit_crop
from sfss_ray.data.decoding import image_size
from sfss_ray.data.folders import ImageFile, LabelledImage, evenly_spread
from sfss_ray.errors import DataError

Size = tuple[int, int]

MAX_CROP_PIXELS = 512 * 512
"""Pixels of a chosen crop, at most: what a crop of the field's large images usually has."""
MIN_ZOOM = 0.5
"""Smaller zooms of `scale_range` do not make a chosen crop any smaller."""
_MULTIPLE = 32
_MAX_IMAGES_READ = 200


def with_crop_size(
    config: Config,
    stage: Literal["train", "pretrain"],
    images: Sequence[ImageFile | LabelledImage],
    size_multiple: int = 1,
) -> tuple[Config, str]:
    """Return the config with the crop size of a stage settled, and a line about it.

    A crop size that is set stays. Otherwise it is chosen from the typical size of the images, and
    `max_size`, where it is open too, becomes that of evaluation, so that training and evaluation show
    the network the same scale.

    Args:
        config: `augment` of the stage and `evaluation.max_size` are used.
        stage: The part of the config that trains.
        images: Those that the stage trains on; only their headers are read.
        size_multiple: Sides of the network's input must be multiples of this number of pixels.

    Raises:
        DataError: no image can be read.
    """
    augment = config.train.augment if stage == "train" else config.pretrain.augment
    name = f"{stage}.augment"
    if augment.crop_size is not None:
        return config, _describe_given(augment, name, size_multiple)
    typical = typical_size(images, name)
    max_size = augment.max_size or config.evaluation.max_size
    crop = choose_crop_size(typical, augment, max_size, size_multiple)
    chosen = {f"{name}.crop_size": crop, f"{name}.max_size": max_size}
    line = (
        f"{crop[0]}x{crop[1]} (height x width), chosen for images of {typical[0]}x{typical[1]}"
        f" ({name}.crop_size sets another)"
    )
    return override(config, chosen), line


def _describe_given(augment: AugmentConfig, name: str, size_multiple: int) -> str:
    """Return a line about a crop size that is set, which training rounds down for the network."""
    height, width = augment.chosen_crop_size
    fitted = fit_crop(augment, size_multiple).chosen_crop_size
    if fitted == (height, width):
        return f"{height}x{width} (height x width), as {name}.crop_size says"
    return (
        f"{fitted[0]}x{fitted[1]} (height x width) instead of {height}x{width}, because the network"
        f" takes multiples of {size_multiple} pixels ({name}.crop_size)"
    )


def typical_size(images: Sequence[ImageFile | LabelledImage], name: str) -> Size:
    """Return the median height and the median width of images, from the headers of at most 200.

    Images that cannot be read are left out.

    Args:
        images: At least one.
        name: Group of the setting that may be given instead, for the error.

    Raises:
        DataError: no image can be read.
    """
    sizes: list[Size] = []
    error: DataError | None = None
    for image in evenly_spread(list(images), _MAX_IMAGES_READ):
        try:
            sizes.append(image_size(image.path))
        except DataError as problem:
            error = error or problem
    if not sizes:
        raise DataError(
            f"none of {len(images)} images can be read, so no size of crops can be chosen ({error}):"
            f" give readable images, or set {name}.crop_size"
        )
    # The lower one of two middle values, so that half of the images are at least as large.
    height, width = (int(side) for side in np.quantile(sizes, 0.5, axis=0, method="lower"))
    return height, width


def choose_crop_size(
    image: Size, augment: AugmentConfig, max_size: int, size_multiple: int = 1
) -> Size:
    """Return the (height, width) of the crops that fit images of one size.

    A crop has the image's aspect ratio. It is the largest one that the image still fills at the
    smallest zoom, so nothing is scaled up only to fill it, and has at most MAX_CROP_PIXELS. Sides are
    rounded down to multiples of 32, or of the network's own number where 32 is no multiple of that.

    Args:
        image: (height, width) of a typical image.
        augment: `scale_range` is used.
        max_size: Longest side of an image that zooms refer to; longer images count as scaled down.
        size_multiple: Sides of the network's input must be multiples of this number of pixels.
    """
    height, width = image
    zoom = min(1.0, max(MIN_ZOOM, augment.scale_range[0]))
    scale = zoom * min(1.0, max_size / max(image))
    scale = min(scale, math.sqrt(MAX_CROP_PIXELS / (height * width)))
    multiple = _MULTIPLE if _MULTIPLE % size_multiple == 0 else size_multiple
    smallest = math.ceil(_MULTIPLE / multiple) * multiple
    rows, columns = (
        # A side that is a multiple must not lose one to the rounding of a product.
        max(smallest, math.floor(side * scale / multiple + 1e-6) * multiple)
        for side in (height, width)
    )
    return rows, columns
