"""A folder of images as every verb opens it: listed, what is left out counted, one rule for white."""

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
    """All images below a folder, sorted by id, and lines for people.

    The lines say what was left out and how images are read, where there is something to say.

    Args:
        folder: Its folders are searched too.
        config: `white_level` is used.
        white_of_model: What was white in the images of more than 8 bits that the model was adapted to.
        what: The folder's role, for messages.

    Raises:
        DataError: see `list_images` and `with_white`.
    """
    notes: list[str] = []
    listed = list_images(folder, what, notes=notes.append)
    images, lines = with_white(listed, config.white_level, white_of_model)
    return images, notes + lines
