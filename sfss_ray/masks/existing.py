"""A folder of masks that is there already: whether it is of some images, and what it holds of them."""

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

_COMPARED = 16  # images whose size is compared: a folder of other images differs in most of them
_NAMED = 3


def open_masks(folder: Path | str, images: Sequence[ImageFile]) -> MaskStore:
    """The masks of a folder, after a look whether they are those of these images.

    Raises:
        DataError: no masks there, images without a row (the first are named), images that were changed
            since their masks were made, or an image of another size than its masks.
    """
    store = MaskStore(folder)
    absent = [image.image_id for image in images if image.image_id not in store]
    if absent:
        named = ", ".join(repr(image_id) for image_id in absent[:_NAMED])
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        raise DataError(
            f"{len(absent)} of {len(images)} images have no masks in {str(folder)!r}: {named}{more};"
            " make them with `sfss-ray masks` or `sfss-ray masks import`, or give the images of these"
            " masks"
        )
    _refuse_changed(store, images)
    readable = [image for image in images if image.image_id not in store.errors]
    for image in evenly_spread(readable, _COMPARED):
        _compare_size(image, store)
    return store


def _refuse_changed(store: MaskStore, images: Sequence[ImageFile]) -> None:
    files = {image.image_id: image.path for image in images}
    known = {i: content for i, content in store.contents.items() if i not in store.errors}
    altered = changed_files(files, known)
    if altered:
        raise DataError(
            f"{len(altered)} of {len(images)} images were changed since their masks in"
            f" {store.folder!r} were made (first: {altered[0]!r}): make or import these masks again, or"
            " give the images of these masks"
        )


def _compare_size(image: ImageFile, store: MaskStore) -> None:
    row, (height, width) = store.load(image.image_id), image_size(image.path)
    if (row["height"], row["width"]) != (height, width):
        raise DataError(
            f"image {image.image_id!r} is {width}x{height}, its masks in {store.folder!r} are"
            f" {row['width']}x{row['height']}: give masks that were made of these images"
        )


def describe_masks(store: MaskStore, images: Sequence[ImageFile]) -> MaskSummary:
    """What a folder of masks holds of these images. DataError when each of them has an error."""
    source = str(store.recipe.get("source", "unknown"))
    return summarise(store, images, source, 0, 0.0)


def is_of_file(store: MaskStore, image: ImageFile) -> bool:
    """Whether the masks of this id were made of this very file: other folders use the same ids."""
    if image.image_id not in store:
        return False
    row = store.load(image.image_id)
    return row["error"] is None and _resolved(row["path"]) == _resolved(image.path)


def _resolved(path: Path | str) -> str:
    return printable(Path(path).resolve())
