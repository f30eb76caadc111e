"""What a folder of masks holds of some images, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import NOTES

_SAM_CUTS = "lower masks.pred_iou_thresh or masks.stability_score_thresh, in another folder"
LOWER = {
    "sam": _SAM_CUTS,
    "small_sam": _SAM_CUTS,
    "felzenszwalb": "lower masks.felzenszwalb_min_size, in another folder",
}


@dataclass(frozen=True)
class MaskSummary:
    """What a folder of masks holds after a run."""

    folder: Path | str
    """Folder, or its address."""
    source: str
    """Region source: sam, small_sam, felzenszwalb or imported."""
    note: str
    """The source in plain words."""
    images: int
    masks: int
    made: int
    """Images whose masks were made by this call; the rest were there."""
    seconds: float
    errors: dict[str, str] = field(default_factory=dict)
    """image_id -> why it has no masks."""

    @property
    def exit_code(self) -> int:
        """Of the command: 0, or 10 and the number of images without masks (99: 89 or more)."""
        return 10 + min(len(self.errors), 89) if self.errors else 0

    def require_all(self) -> None:
        """DataError when an image has no masks because it could not be read."""
        if not self.errors:
            return
        first, reason = min(self.errors.items())
        raise DataError(
            f"{len(self.errors)} of {self.images} images have no masks (first: {first!r}: {reason}):"
            " mend or remove them and run again; all others are done"
        )


def summarise(
    store: MaskStore, images: Sequence[ImageFile], source: str, made: int, seconds: float
) -> MaskSummary:
    """What a folder holds of these images, which it may have besides others.

    DataError when not one of them has masks.
    """
    wanted = {image.image_id for image in images}
    errors = {i: reason for i, reason in sorted(store.errors.items()) if i in wanted}
    if len(errors) == len(wanted):
        first, reason = next(iter(errors.items()))
        raise DataError(f"none of the {len(wanted)} images has masks; {first!r}: {reason}")
    return MaskSummary(
        folder=store.folder,
        source=source,
        note=NOTES.get(source, "a source that this version does not know"),
        images=len(wanted),
        masks=store.count(wanted),
        made=made,
        seconds=seconds,
        errors=errors,
    )
