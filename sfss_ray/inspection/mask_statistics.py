"""Statistics over all masks of a folder: counts, coverage, overlap, areas and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sfss_ray.errors import DataError
from sfss_ray.inspection.mask_report import IMAGE_VALUES, MASK_VALUES, Spread
from sfss_ray.masks.bank.run_lengths import from_coco_string
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.runtime.progress import Progress, ProgressSink


@dataclass
class MaskStatistics:
    """Statistics of the images of a store that have no error."""

    damaged: dict[str, str] = field(default_factory=dict)
    """image_id -> the fault of its masks."""
    without_masks: list[str] = field(default_factory=list)
    """Ids of images without a mask."""
    drawable: list[str] = field(default_factory=list)
    """Ids of images whose masks can be decoded."""
    values: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in (*IMAGE_VALUES, *MASK_VALUES)}
    )
    """Values of each statistic, one per image or per mask."""

    @classmethod
    def of_store(cls, store: MaskStore, progress: ProgressSink) -> MaskStatistics:
        """Read every row of a store once; images with an error are left out."""
        statistics = cls()
        with Progress("inspected", len(store), progress) as bar:
            for image_id in store.ids():
                if image_id not in store.errors:
                    statistics.add(store, image_id)
                bar.advance(1)
        return statistics

    def add(self, store: MaskStore, image_id: str) -> None:
        """Add the masks of one image."""
        try:
            row = store.load(image_id)
            masks, pixels = row["masks"], row["height"] * row["width"]
            depth = mask_depth([mask["counts"] for mask in masks], pixels)
        except DataError as error:
            self.damaged[image_id] = str(error)
            return
        self.drawable.append(image_id)
        if not masks:
            self.without_masks.append(image_id)
        values = self.values
        values["masks_per_image"].append(len(masks))
        values["coverage"].append(float((depth > 0).mean()))
        values["overlap"].append(float((depth > 1).mean()))
        values["area_share"] += [mask["area"] / pixels for mask in masks]
        for name in ("predicted_iou", "stability_score"):
            values[name] += [mask[name] for mask in masks]

    def spreads(self) -> dict[str, Spread]:
        """Return the spread of each statistic that has a value."""
        spreads = {name: Spread.of(values) for name, values in self.values.items()}
        return {name: spread for name, spread in spreads.items() if spread is not None}


def mask_depth(counts: Sequence[str], pixels: int) -> np.ndarray:
    """Count the masks over each pixel of an image.

    Args:
        counts: COCO RLE strings of masks, each of `pixels` pixels.
        pixels: Pixels of the image.

    Returns:
        int64 (pixels,), column by column as COCO orders pixels.

    Raises:
        DataError: a string does not decode to `pixels` pixels.
    """
    # A mask adds 1 where a run of background ends and removes it where the run of mask ends.
    change = np.zeros(pixels + 1, np.int64)
    for string in counts:
        runs = from_coco_string(string)
        ends = np.cumsum(runs)
        if not len(runs) or (runs < 0).any() or ends[-1] != pixels:
            raise DataError(
                f"a mask's runs cover {int(runs.sum())} pixels, its image has {pixels}: make the"
                " masks of this image again"
            )
        np.add.at(change, ends[0::2], 1)
        np.add.at(change, ends[1::2], -1)
    return np.cumsum(change)[:pixels]
