"""Opening a folder of images with its white level settled, as every command does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sfss_ray.config import Config
from sfss_ray.data.depth import with_white
from sfss_ray.data.folders import ImageFile, LabelledImage, list_images
from sfss_ray.errors import DataError
from sfss_ray.storage.object_cache import set_limit
from sfss_ray.storage.places import Place

_Image = TypeVar("_Image", ImageFile, LabelledImage)


def first_readable(images: Sequence[_Image], max_pixels: int | None) -> _Image:
    """Return the first image that can be read.

    Args:
        images: Images that are tried in their order.
        max_pixels: Larger images count as unreadable; None allows any size.

    Raises:
        DataError: none can be read; the message has the reason of the first.
    """
    reasons = []
    for image in images:
        try:
            image.read(max_pixels)
        except DataError as error:
            reasons.append(str(error))
            continue
        return image
    reason = reasons[0] if reasons else "there is none"
    raise DataError(f"none of the {len(images)} images can be read: {reason}")


def open_images(
    folder: Place | str,
    config: Config,
    model_white: float | None = None,
    role: str = "target images",
) -> tuple[list[ImageFile], list[str]]:
    """Return all images below a folder, sorted by id, and notes for the user.

    The notes name the files that are not images and the white level of images of more than 8 bits.

    Args:
        folder: Its subfolders are searched too.
        config: `white_level` and `compute.cache_gb` are used.
        model_white: White level of the images that the model was adapted to, for images of more
            than 8 bits; None if unknown.
        role: The role of the folder, named in messages.

    Raises:
        DataError: see `list_images` and `with_white`.
    """
    set_limit(config.compute.cache_gb)
    notes: list[str] = []
    images = list_images(folder, role, notes=notes.append)
    images, white_notes = with_white(images, config.white_level, model_white)
    return images, notes + white_notes
