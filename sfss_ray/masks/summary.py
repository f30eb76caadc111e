"""A summary of a folder of masks after a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import note_of

_SAM_ADVICE = "lower masks.pred_iou_thresh or masks.stability_score_thresh, in another folder"
HOW_TO_GET_MASKS = {
    "sam": _SAM_ADVICE,
    "small_sam": _SAM_ADVICE,
    "felzenszwalb": "lower masks.felzenszwalb_min_size, in another folder",
}
"""Advice for a run that found no mask, by region source."""


@dataclass(frozen=True)
class MaskSummary:
    """Numbers of images and masks in a folder after a run."""

    folder: Path | str
    """Folder, or its address."""
    source: str
    """Region source: sam, small_sam, felzenszwalb or imported."""
    note: str
    """The source in plain words."""
    images: int
    masks: int
    made: int
    """Images whose masks were made by this call; the others were done already."""
    seconds: float
    errors: dict[str, str] = field(default_factory=dict)
    """image_id -> why it has no masks."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0, or 10 plus the number of failed images (99 = 89 or more)."""
        return 10 + min(len(self.errors), 89) if self.errors else 0

    def require_all(self) -> None:
        """Raise DataError if an image has no masks because it could not be read."""
        if not self.errors:
            return
        image_id, reason = min(self.errors.items())
        raise DataError(
            f"{len(self.errors)} of {self.images} images have no masks (first: {image_id!r}: {reason}):"
            " repair or remove them and run again; all other images are done"
        )


def summarise(
    store: MaskStore, images: Sequence[ImageFile], source: str, num_made: int, seconds: float
) -> MaskSummary:
    """Return a summary of these images; the folder may contain more.

    Args:
        store: the folder.
        images: of the run.
        source: region source.
        num_made: images whose masks were made by this run.
        seconds: of the run.

    Raises:
        DataError: none of the images has masks.
    """
    image_ids = {image.image_id for image in images}
    errors = {i: reason for i, reason in sorted(store.errors.items()) if i in image_ids}
    if len(errors) == len(image_ids):
        image_id, reason = next(iter(errors.items()))
        raise DataError(f"none of the {len(image_ids)} images has masks; {image_id!r}: {reason}")
    return MaskSummary(
        folder=str(store.location),
        source=source,
        note=note_of({**store.recipe, "source": source}),
        images=len(image_ids),
        masks=store.count(image_ids),
        made=num_made,
        seconds=seconds,
        errors=errors,
    )
