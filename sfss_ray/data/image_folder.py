"""Opening a folder of images with its white level settled, as every command does."""

from __future__ import annotations

from pathlib import Path

from sfss_ray.config import Config
from sfss_ray.data.depth import with_white
from sfss_ray.data.folders import ImageFile, list_images


def open_images(
    folder: Path | str,
    config: Config,
    model_white: float | None = None,
    role: str = "target images",
) -> tuple[list[ImageFile], list[str]]:
    """Return all images below a folder, sorted by id, and notes for the user.

    The notes name the files that are not images and the white level of images of more than 8 bits.

    Args:
        folder: Its subfolders are searched too.
        config: Only `white_level` is used.
        model_white: White level of the images that the model was adapted to, for images of more
            than 8 bits; None if unknown.
        role: The role of the folder, named in messages.

    Raises:
        DataError: see `list_images` and `with_white`.
    """
    notes: list[str] = []
    images = list_images(folder, role, notes=notes.append)
    images, white_notes = with_white(images, config.white_level, model_white)
    return images, notes + white_notes
