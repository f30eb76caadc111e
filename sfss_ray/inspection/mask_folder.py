"""`sfss-ray masks inspect`: what a folder of masks holds, in numbers and in one picture."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.config import Config
from sfss_ray.data.decoding import read_image
from sfss_ray.errors import ConfigError, DataError, SfssError
from sfss_ray.masks.bank.run_lengths import from_coco_string
from sfss_ray.masks.bank.schema import parquet_files, read_recipe
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import NOTES, white_in
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.storage.files import require_lasting

SHEET = "inspect.png"
MOST_PICTURES = 200
_SHOWN = 5
_UNREADABLE = "no whole shard of masks; the command that made the masks makes it again"
_TILE_HEIGHT = 220
_COLUMNS = 4
_MASK_VALUES = ("area_share", "predicted_iou", "stability_score")
_IMAGE_VALUES = ("masks_per_image", "coverage", "overlap")


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some values."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of the values that are numbers; None where there is none."""
        known = np.asarray(values, float)
        known = known[~np.isnan(known)]
        if not known.size:
            return None
        return cls(float(known.min()), float(np.median(known)), float(known.max()))


@dataclass(frozen=True)
class MaskReport:
    """What was found. Lists and mappings hold every case; `lines` shows the first of each."""

    folder: Path
    source: str
    """Region source, as the shards say."""
    note: str
    """The source in plain words."""
    recipe: dict[str, Any]
    """Everything the shards say of how they were made."""
    images: int
    masks: int
    errors: dict[str, str]
    """image_id -> why it has no masks."""
    damaged: dict[str, str]
    """image_id -> what is wrong with its masks."""
    unreadable_files: list[str]
    """Names of files of the folder that are no whole shards; their images are not counted."""
    without_masks: list[str]
    """Ids of images that were read and in which no mask was found."""
    spreads: dict[str, Spread]
    """masks_per_image; coverage, overlap and area_share of the image's pixels, 0 to 1;
    predicted_iou and stability_score where they are known."""
    sheet: Path | None = None
    """The contact sheet."""
    not_shown: dict[str, str] = field(default_factory=dict)
    """image_id -> why it is not on the contact sheet."""

    @property
    def sound(self) -> bool:
        """Whether every file can be read and every image has a row without an error."""
        return not (self.errors or self.damaged or self.unreadable_files)

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [f"{self.folder}: {self.images} images, {self.masks} masks"]
        lines.append(f"regions: {self.source} ({self.note})")
        made = [f"{name} {value}" for name, value in _facts(self.recipe) if value not in ("", None)]
        lines += [f"made with: {', '.join(made)}"] if made else []
        lines += _some("unreadable files", dict.fromkeys(self.unreadable_files, _UNREADABLE))
        lines += _some("images with an error", self.errors)
        lines += _some("images with damaged masks", self.damaged)
        lines += _some("images without a mask", dict.fromkeys(self.without_masks, ""))
        lines += ["", f"{'':18}{'min':>10}{'median':>10}{'max':>10}"]
        lines += [_spread_line(name, self.spreads.get(name)) for name in _IMAGE_VALUES]
        lines += [_spread_line(name, self.spreads.get(name)) for name in _MASK_VALUES]
        lines.append("")
        lines += _some("images not on the contact sheet", self.not_shown) if self.not_shown else []
        lines.append(f"contact sheet: {self.sheet or 'none: no image could be drawn'}")
        return lines


def _facts(recipe: dict[str, Any]) -> list[tuple[str, Any]]:
    flat = {k: v for k, v in recipe.items() if k not in ("knobs", "source")}
    return [*flat.items(), *recipe.get("knobs", {}).items()]


def _some(what: str, cases: dict[str, str]) -> list[str]:
    lines = [f"{what}: {len(cases) or 'none'}"]
    for image_id, reason in list(cases.items())[:_SHOWN]:
        lines.append(f"  {image_id}: {reason}" if reason else f"  {image_id}")
    return lines + ([f"  and {len(cases) - _SHOWN} more"] if len(cases) > _SHOWN else [])


def _spread_line(name: str, spread: Spread | None) -> str:
    if spread is None:
        return f"{name:18}{'unknown':>10}"
    values = (spread.least, spread.median, spread.most)
    if name == "masks_per_image":
        return f"{name:18}" + "".join(f"{value:>10g}" for value in values)
    digits = 5 if name == "area_share" else 3
    return f"{name:18}" + "".join(f"{value:>10.{digits}f}" for value in values)


def inspect_masks(
    folder: Path | str,
    *,
    output_file: Path | str | None = None,
    pictures: int = 12,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> MaskReport:
    """Say what a folder of masks holds, and draw some of them over their images.

    Args:
        folder: Folder of masks made by `generate_masks` or `import_masks`.
        output_file: The contact sheet's PNG file; default inspect.png in the folder.
        pictures: Images on the contact sheet; 0 draws none.
        config: `seed` picks the images of the contact sheet.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, images with errors, how the masks were made, and how values are spread.

    Raises:
        DataError: no such folder, no masks in it, a shard whose index is damaged, or a contact sheet
            that cannot be written, or would lie among the images.
        ConfigError: `pictures` is negative or more than 200.
    """
    if not 0 <= pictures <= MOST_PICTURES:
        raise ConfigError(f"pictures is {pictures}: allowed is 0 to {MOST_PICTURES}; choose fewer")
    unreadable = _unreadable_files(Path(folder))
    store = MaskStore(folder)
    sheet_file = Path(output_file or Path(folder) / SHEET)
    if pictures:
        _refuse_among_images(sheet_file, store)
    seen = _look(store, progress)
    chosen = _choose(seen.drawable, pictures, (config or Config()).seed)
    sheet, not_shown = _draw(store, chosen, sheet_file)
    source = str(store.recipe.get("source", "unknown"))
    return MaskReport(
        folder=Path(folder),
        source=source,
        note=NOTES.get(source, "a source that this version does not know"),
        recipe=store.recipe,
        images=len(store),
        masks=store.num_masks,
        errors=dict(sorted(store.errors.items())),
        damaged=seen.damaged,
        unreadable_files=unreadable,
        without_masks=seen.without_masks,
        spreads={k: s for k, v in seen.values.items() if (s := Spread.of(v)) is not None},
        sheet=sheet,
        not_shown=not_shown,
    )


def _unreadable_files(folder: Path) -> list[str]:
    """Names of files that are no shards. DataError when there is nothing else."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"masks folder {str(folder)!r} {what}; give a folder of masks")
    files = parquet_files(folder)
    names = [file.name for file in files if read_recipe(file) is None]
    if names and len(names) == len(files):
        raise DataError(
            f"no readable masks in {str(folder)!r}: {len(names)} files, the first is {names[0]!r}, are"
            " no whole shards; make the masks again"
        )
    return names


def _refuse_among_images(sheet: Path, store: MaskStore) -> None:
    """Whoever lists the images next would take the sheet for one of them."""
    images = _folder_of_images(store)
    if images is not None and sheet.resolve().is_relative_to(images):
        raise DataError(
            f"contact sheet {str(sheet)!r} lies in the folder of the images, {str(images)!r}, and would"
            " count as one of them: give another output_file"
        )


def _folder_of_images(store: MaskStore) -> Path | None:
    """Told by the first image's path and id; None where no row can be read."""
    for image_id in store.ids():
        if image_id in store.errors:
            continue
        with contextlib.suppress(DataError, IndexError):
            return Path(store.load(image_id)["path"]).parents[image_id.count("/")].resolve()
    return None


@dataclass
class _Seen:
    damaged: dict[str, str] = field(default_factory=dict)
    without_masks: list[str] = field(default_factory=list)
    drawable: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in (*_IMAGE_VALUES, *_MASK_VALUES)}
    )


def _look(store: MaskStore, progress: ProgressSink) -> _Seen:
    """Read every row once; images with an error count in no spread."""
    seen, bar = _Seen(), Progress("looked at", len(store), progress)
    for image_id in store.ids():
        if image_id not in store.errors:
            _look_at(store, image_id, seen)
        bar.advance(1)
    return seen


def _look_at(store: MaskStore, image_id: str, seen: _Seen) -> None:
    try:
        row = store.load(image_id)
        masks, pixels = row["masks"], row["height"] * row["width"]
        depth = mask_depth([mask["counts"] for mask in masks], pixels)
    except DataError as error:
        seen.damaged[image_id] = str(error)
        return
    seen.drawable.append(image_id)
    if not masks:
        seen.without_masks.append(image_id)
    values = seen.values
    values["masks_per_image"].append(len(masks))
    values["coverage"].append(float((depth > 0).mean()))
    values["overlap"].append(float((depth > 1).mean()))
    values["area_share"] += [mask["area"] / pixels for mask in masks]
    for name in ("predicted_iou", "stability_score"):
        values[name] += [mask[name] for mask in masks]


def mask_depth(counts: Sequence[str], pixels: int) -> np.ndarray:
    """How many masks lie over each pixel: int64 (pixels,), column by column.

    counts: COCO RLE strings of masks of `pixels` pixels each. DataError when one is not.
    """
    change = np.zeros(pixels + 1, np.int64)
    for text in counts:
        runs = from_coco_string(text)
        ends = np.cumsum(runs)
        if not len(runs) or (runs < 0).any() or ends[-1] != pixels:
            raise DataError(
                f"a mask's runs cover {int(runs.sum())} pixels, its image has {pixels}: make the"
                " masks of this image again"
            )
        np.add.at(change, ends[0::2], 1)  # where background ends
        np.add.at(change, ends[1::2], -1)
    return np.cumsum(change)[:pixels]


def _choose(image_ids: list[str], number: int, seed: int) -> list[str]:
    """Some of the ids, in their order; another seed picks others."""
    order = np.random.default_rng(seed).permutation(len(image_ids))[:number]
    return [image_ids[place] for place in sorted(order)]


def _draw(
    store: MaskStore, image_ids: list[str], output: Path
) -> tuple[Path | None, dict[str, str]]:
    """Write the contact sheet; returns where (None: nothing to draw), and what is not on it."""
    from sfss_ray.report.pictures import contact_sheet, save_png

    tiles, not_shown = [], {}
    for image_id in image_ids:
        try:
            tiles.append(_tile(store, image_id))
        except SfssError as error:
            not_shown[image_id] = str(error)
    if not tiles:
        return None, not_shown
    path = require_lasting(output, "contact sheet")
    return save_png(path, contact_sheet(tiles, _COLUMNS)), not_shown


def _tile(store: MaskStore, image_id: str) -> np.ndarray:
    """An image under its id with its masks over it, the smallest on top."""
    from sfss_ray.report.pictures import mask_tile

    row = store.load(image_id)
    image = read_image(row["path"], white=white_in(store.recipe))
    if image.shape[:2] != (row["height"], row["width"]):
        raise DataError(
            f"image {row['path']!r} is {image.shape[1]}x{image.shape[0]}, its masks are"
            f" {row['width']}x{row['height']}: it was changed since"
        )
    detail = f"{len(row['masks'])} masks"
    return mask_tile(image_id, detail, image, store.id_map(image_id), _TILE_HEIGHT)
