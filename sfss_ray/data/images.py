"""A folder of images as every verb opens it: listed, and with one rule for what is white."""

from __future__ import annotations

from pathlib import Path

from sfss_ray.config import Config
from sfss_ray.data.depth import with_white
from sfss_ray.data.folders import ImageFile, list_images


def open_images(
    folder: Path | str,
    config: Config,
    white_of_model: float | None = None,
    what: str = "target images",
) -> tuple[list[ImageFile], list[str]]:
    """All images below a folder, sorted by id, and lines for people on how they are read.

    Args:
        folder: Its folders are searched too.
        config: `white_level` is used.
        white_of_model: What was white in the images of more than 8 bits that the model was adapted to.
        what: The folder's role, for messages.

    Raises:
        DataError: see `list_images` and `with_white`.
    """
    images, notes = with_white(list_images(folder, what), config.white_level, white_of_model)
    return images, notes
