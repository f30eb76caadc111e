"""The contact sheet of a folder of masks: some images with their masks drawn over them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfss_ray.data.decoding import read_image
from sfss_ray.errors import DataError, SfssError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import white_in

_TILE_HEIGHT = 220
_COLUMNS = 4


def choose_images(image_ids: Sequence[str], count: int, seed: int) -> list[str]:
    """Choose up to `count` of the ids at random, in their order."""
    order = np.random.default_rng(seed).permutation(len(image_ids))[:count]
    indices: list[int] = sorted(order.tolist())
    return [image_ids[index] for index in indices]


def draw_sheet(
    store: MaskStore, image_ids: Sequence[str], file: Path
) -> tuple[Path | None, dict[str, str]]:
    """Draw the masks of images and write them as a PNG.

    Returns:
        The path of the file, None where no image could be drawn, and image_id -> why an image is not
        on the sheet.

    Raises:
        OutputError: the file cannot be written.
    """
    from sfss_ray.report.pictures import contact_sheet, save_png

    tiles, not_shown = [], {}
    for image_id in image_ids:
        try:
            tiles.append(_draw_tile(store, image_id))
        except SfssError as error:
            not_shown[image_id] = str(error)
    if not tiles:
        return None, not_shown
    save_png(file, contact_sheet(tiles, _COLUMNS))
    return file, not_shown


def _draw_tile(store: MaskStore, image_id: str) -> np.ndarray:
    """Draw one image with its masks, the smallest on top, below its id."""
    from sfss_ray.report.pictures import mask_tile

    row = store.load(image_id)
    image = read_image(row["path"], white=white_in(store.recipe))
    if image.shape[:2] != (row["height"], row["width"]):
        raise DataError(
            f"image {row['path']!r} is {image.shape[1]}x{image.shape[0]}, its masks are"
            f" {row['width']}x{row['height']}: it was changed since they were made"
        )
    detail = f"{len(row['masks'])} masks"
    return mask_tile(image_id, detail, image, store.id_map(image_id), _TILE_HEIGHT)


def refuse_among_images(sheet: Path, store: MaskStore) -> None:
    """Refuse a contact sheet in the folder of the images, where it would be listed as one of them.

    Raises:
        DataError: the sheet lies in that folder.
    """
    images = _folder_of_images(store)
    if images is not None and sheet.resolve().is_relative_to(images):
        raise DataError(
            f"contact sheet {str(sheet)!r} lies in the folder of the images, {str(images)!r}, and would"
            " count as one of them: give another path (output_file)"
        )


def _folder_of_images(store: MaskStore) -> Path | None:
    """Return the folder of the images, from the first readable row's path and id; None without one."""
    for image_id in store.ids():
        if image_id in store.errors:
            continue
        with contextlib.suppress(DataError, IndexError):
            return Path(store.load(image_id)["path"]).parents[image_id.count("/")].resolve()
    return None
