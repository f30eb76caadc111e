"""The report on a folder of masks, as values and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.inspection.report_lines import case_lines

MASK_VALUES = ("area_share", "predicted_iou", "stability_score")
"""Statistics with a value per mask."""
IMAGE_VALUES = ("masks_per_image", "coverage", "overlap")
"""Statistics with a value per image."""
_UNREADABLE = "no whole shard of masks; run the command that made the masks again"


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of a statistic."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of the values that are not NaN; None where all are."""
        array = np.asarray(values, float)
        array = array[~np.isnan(array)]
        if not array.size:
            return None
        return cls(float(array.min()), float(np.median(array)), float(array.max()))


@dataclass(frozen=True)
class MaskReport:
    """Findings on a folder of masks. Lists and mappings hold every case; `lines` shows the first."""

    folder: Path
    source: str
    """Region source, as recorded in the shards."""
    note: str
    """The source in plain words."""
    recipe: dict[str, Any]
    """Everything that the shards record of how they were made."""
    images: int
    masks: int
    errors: dict[str, str]
    """image_id -> why it has no masks."""
    damaged: dict[str, str]
    """image_id -> the fault of its masks."""
    unreadable_files: list[str]
    """Names of files in the folder that are not whole shards; their images are not counted."""
    without_masks: list[str]
    """Ids of images that could be read but have no mask."""
    spreads: dict[str, Spread]
    """masks_per_image; coverage, overlap and area_share as shares of the image's pixels, 0 to 1;
    predicted_iou and stability_score where the source has them."""
    sheet: Path | None = None
    """The contact sheet."""
    pictures: int = 1
    """Images that the contact sheet was to have at most; 0 for no sheet."""
    not_shown: dict[str, str] = field(default_factory=dict)
    """image_id -> why it is not on the contact sheet."""

    @property
    def sound(self) -> bool:
        """Whether every file can be read and every image has a row without an error."""
        return not (self.errors or self.damaged or self.unreadable_files)

    def lines(self) -> list[str]:
        """Return the report for people."""
        lines = [f"{self.folder}: {self.images} images, {self.masks} masks"]
        lines.append(f"regions: {self.source} ({self.note})")
        facts = _recipe_facts(self.recipe)
        lines += [f"made with: {', '.join(facts)}"] if facts else []

        unreadable = [f"{name}: {_UNREADABLE}" for name in self.unreadable_files]
        lines += case_lines("unreadable files", unreadable)
        lines += case_lines("images with an error", _with_reasons(self.errors))
        lines += case_lines("images with damaged masks", _with_reasons(self.damaged))
        lines += case_lines("images without a mask", self.without_masks)

        lines += ["", f"{'':18}{'min':>10}{'median':>10}{'max':>10}"]
        names = (*IMAGE_VALUES, *MASK_VALUES)
        lines += [_spread_line(name, self.spreads.get(name)) for name in names]
        if not self.pictures:
            return lines
        lines.append("")
        if self.not_shown:
            lines += case_lines("images not on the contact sheet", _with_reasons(self.not_shown))
        lines.append(f"contact sheet: {self.sheet or 'none: no image could be drawn'}")
        return lines


def _recipe_facts(recipe: Mapping[str, Any]) -> list[str]:
    """Return 'NAME VALUE' for everything in a recipe that has a value, knobs last."""
    plain = {name: value for name, value in recipe.items() if name not in ("knobs", "source")}
    facts = plain | recipe.get("knobs", {})
    return [f"{name} {value}" for name, value in facts.items() if value not in ("", None)]


def _with_reasons(reasons: Mapping[str, str]) -> list[str]:
    return [f"{image_id}: {reason}" for image_id, reason in reasons.items()]


def _spread_line(name: str, spread: Spread | None) -> str:
    if spread is None:
        return f"{name:18}{'unknown':>10}"
    values = (spread.minimum, spread.median, spread.maximum)
    if name == "masks_per_image":
        return f"{name:18}" + "".join(f"{value:>10g}" for value in values)
    digits = 5 if name == "area_share" else 3
    return f"{name:18}" + "".join(f"{value:>10.{digits}f}" for value in values)
