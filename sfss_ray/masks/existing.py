"""Use of an existing folder of masks: checks that it belongs to the images, and counts its masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfss_ray.data.content import changed_files
from sfss_ray.data.decoding import image_size
from sfss_ray.data.file_names import printable
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.summary import MaskSummary, summarise
from sfss_ray.storage.places import ObjectPath, Place

_NUM_COMPARED = 16  # images whose size is compared: most images of another folder differ
_NUM_NAMED = 3


def open_masks(folder: Place | str, images: Sequence[ImageFile]) -> MaskStore:
    """Open a folder of masks after checking that they belong to these images.

    Raises:
        DataError: the folder has no masks, some images have no row (the first are named) or were
            changed after their masks were made, or an image differs in size from its masks.
    """
    store = MaskStore(folder)
    missing = [image.image_id for image in images if image.image_id not in store]
    if missing:
        names = ", ".join(repr(image_id) for image_id in missing[:_NUM_NAMED])
        more = f" and {len(missing) - _NUM_NAMED} more" if len(missing) > _NUM_NAMED else ""
        raise DataError(
            f"{len(missing)} of {len(images)} images have no masks in {str(folder)!r}: {names}{more};"
            " make them with `sfss-ray masks` or `sfss-ray masks import`, or give the images of these"
            " masks"
        )
    _require_unchanged(store, images)
    readable = [image for image in images if image.image_id not in store.errors]
    for image in evenly_spread(readable, _NUM_COMPARED):
        _require_same_size(image, store)
    return store


def _require_unchanged(store: MaskStore, images: Sequence[ImageFile]) -> None:
    files = {image.image_id: image.path for image in images}
    contents = {i: content for i, content in store.contents.items() if i not in store.errors}
    changed_ids = changed_files(files, contents)
    if changed_ids:
        raise DataError(
            f"{len(changed_ids)} of {len(images)} images were changed since their masks in"
            f" {str(store.location)!r} were made (first: {changed_ids[0]!r}): make or import these masks"
            " again, or give the images of these masks"
        )


def _require_same_size(image: ImageFile, store: MaskStore) -> None:
    row, (height, width) = store.load(image.image_id), image_size(image.path)
    if (row["height"], row["width"]) != (height, width):
        raise DataError(
            f"image {image.image_id!r} is {width}x{height}, its masks in {str(store.location)!r} are"
            f" {row['width']}x{row['height']}: give masks that were made from these images"
        )


def summarise_existing(store: MaskStore, images: Sequence[ImageFile]) -> MaskSummary:
    """Return a summary of the masks of these images.

    Raises:
        DataError: every image has an error.
    """
    source = str(store.recipe.get("source", "unknown"))
    return summarise(store, images, source, num_made=0, seconds=0.0)


def has_masks_of(store: MaskStore, image: ImageFile) -> bool:
    """Return whether the store has masks made from this very file; other folders share its ids."""
    if image.image_id not in store:
        return False
    row = store.load(image.image_id)
    return row["error"] is None and _resolved(row["path"]) == _resolved(image.path)


def _resolved(path: Place | str) -> str:
    if isinstance(path, ObjectPath):
        return str(path)
    return printable(Path(path).resolve())
