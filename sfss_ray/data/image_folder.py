"""Opening a folder of images with its white level settled, as every command does."""

from __future__ import annotations

from sfss_ray.config import Config
from sfss_ray.data.depth import with_white
from sfss_ray.data.folders import ImageFile, list_images
from sfss_ray.storage.object_cache import set_limit
from sfss_ray.storage.places import Place


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
