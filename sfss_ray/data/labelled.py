"""Labelled folders, ready for training or scoring: paired, decoded into the wanted classes, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfss_ray.config import Config
from sfss_ray.data.class_sets import (
    IGNORE_INDEX,
    ClassSet,
    class_set_of,
    matched_names,
    parse_classes,
    synonyms_in,
    synonyms_line,
)
from sfss_ray.data.depth import with_white
from sfss_ray.data.folders import LabelledImage, match_labels, refuse_unpaired
from sfss_ray.data.label_formats import FORMATS, TRAIN_IDS, as_named, make_decoding, recognise
from sfss_ray.data.scan import PairFacts, scan_pairs
from sfss_ray.errors import DataError
from sfss_ray.runtime.progress import Progress, ProgressSink, silent
from sfss_ray.storage.text import read_text

CLASS_LIST = "classes.txt"
UNNAMED = "unnamed"
"""Class set of train ids of which no class list is known."""


@dataclass(frozen=True)
class LabelledFolder:
    """Pairs with their decoding, and how that was found."""

    pairs: tuple[LabelledImage, ...]
    format: str
    reason: str
    label_classes: ClassSet
    skipped: tuple[str, ...] = ()
    """Ids of pairs left out because image and labels differ in size."""
    notes: tuple[str, ...] = ()
    """What was chosen among several encodings, left out, or found of the images, a line each."""

    def describe(self, wanted: ClassSet) -> list[str]:
        """What was taken for what, in lines for people."""
        lines = [f"labels: {FORMATS[self.format].what} ({self.format}: {self.reason})", *self.notes]
        matched = matched_names(self.label_classes, wanted)
        synonyms = synonyms_in(matched)
        lacking = [c for c in wanted.classes if c not in matched.values()]
        foreign = [c for c in self.label_classes.classes if c not in matched]
        if synonyms:
            lines.append(synonyms_line(synonyms))
        if lacking:
            lines.append(f"classes that the labels cannot show: {', '.join(lacking)}")
        if foreign:
            lines.append(f"classes of the labels that are ignored: {', '.join(foreign)}")
        if self.skipped:
            lines.append(
                f"{len(self.skipped)} pairs skipped: image and labels differ in size (first:"
                f" {self.skipped[0]!r})"
            )
        return lines


def class_list(labels: Path | str) -> ClassSet | None:
    """Classes from a classes.txt (a name per line) in the labels' folder or the one above."""
    for folder in (Path(labels).absolute(), Path(labels).absolute().parent):
        path = folder / CLASS_LIST
        if path.is_file():
            names = [line.strip() for line in read_text(path).splitlines()]
            return class_set_of([n for n in names if n and not n.startswith("#")])
    return None


def decoded(
    pairs: Sequence[LabelledImage],
    labels: Path | str,
    wanted: ClassSet | None,
    format_name: str = "auto",
    classes: str = "",
) -> LabelledFolder:
    """Pairs whose labels are read as indices into `wanted` (None: the labels' own classes).

    format_name: a name of FORMATS, or auto. classes: of train ids, where they are not `wanted`.
    """
    files = [pair.label_path for pair in pairs]
    found = recognise(files) if format_name == "auto" else as_named(format_name, files)
    listed = parse_classes(classes) if classes else found.classes or class_list(labels)
    wanted = wanted or _own_classes(found.format, listed)
    decoding = make_decoding(found.format, wanted, listed)
    if not matched_names(decoding.label_classes, wanted):
        raise DataError(
            f"labels {str(labels)!r} ({found.format}: {', '.join(decoding.label_classes.classes)}) share"
            f" no class name with {wanted.name} ({', '.join(wanted.classes)}): give labels with names of"
            " the model's classes"
        )
    ready = tuple(dataclasses.replace(pair, decoding=decoding) for pair in pairs)
    return LabelledFolder(ready, found.format, found.reason, decoding.label_classes)


def _own_classes(format_name: str, listed: ClassSet | None) -> ClassSet:
    known = FORMATS[format_name].classes if format_name in FORMATS else None
    if known or listed:
        return known or listed  # pyright: ignore[reportReturnType]
    return class_set_of([f"class {i}" for i in range(254)], UNNAMED)


def load_labelled(
    images: Path | str,
    labels: Path | str,
    wanted: ClassSet,
    config: Config | None = None,
    *,
    what: str = "val",
    skip_unequal: bool = False,
    named: bool = True,
    white_of_model: float | None = None,
    progress: ProgressSink | None = None,
) -> LabelledFolder:
    """Pair, decode and check two folders.

    skip_unequal: leave pairs of unequal size out (training) rather than refuse them (scoring).
    named: whether `config.labels_format` and `labels_classes` speak of these labels.
    white_of_model: what was white in the images of more than 8 bits that the model was adapted to.

    Raises DataError naming the file: an id that the format has not, sizes that differ, a label map
    that cannot be read, images or labels without the other.
    """
    config = config or Config()
    format_name = config.labels_format if named else "auto"
    classes = config.labels_classes if named else ""
    matching = match_labels(images, labels, what, format_name)
    refuse_unpaired(matching, images, labels, what)
    pairs, notes = with_white(matching.pairs, config.white_level, white_of_model)
    folder = decoded(pairs, labels, wanted, format_name, classes)
    kept, skipped, raw = [], [], np.zeros(256, np.int64)
    bar = Progress(f"checked {what} labels", len(pairs), progress or silent)
    for facts in scan_pairs(folder.pairs):
        _refuse_damaged(facts, wanted)
        if facts.unequal and not skip_unequal:
            raise DataError(_unequal(facts))
        (skipped if facts.unequal else kept).append(facts.item)
        raw += facts.histogram
        bar.advance(1)
    if not kept:
        raise DataError(
            f"{what} images: every pair differs in size; give labels of the images' size"
        )
    notes += matching.lines()
    binary = binary_masks(folder, raw)
    if binary and format_name == "auto":
        raise DataError(f"{what} labels {str(labels)!r}: {binary}")
    notes += [binary] if binary else []
    _refuse_void(folder, raw, f"{what} labels {str(labels)!r}")
    return dataclasses.replace(
        folder,
        pairs=tuple(kept),
        skipped=tuple(i.image_id for i in skipped),
        notes=tuple(notes),
    )


def _refuse_void(folder: LabelledFolder, pixels: np.ndarray, where: str) -> None:
    """DataError when no pixel has a class: every score would be NaN."""
    decoding = folder.pairs[0].decoding
    assert decoding is not None
    labelled = np.frombuffer(decoding.table, np.uint8) != IGNORE_INDEX
    if not pixels[labelled].any():
        ids = ", ".join(map(str, pixels.nonzero()[0][:5]))
        raise DataError(
            f"{where}: no pixel of {len(folder.pairs)} label maps has a class, all are ignored (ids"
            f" {ids}; read as {folder.format}): give labels of the model's classes, or name their"
            " labels_format"
        )


def binary_masks(folder: LabelledFolder, pixels: np.ndarray) -> str:
    """What is wrong with train ids of two classes that are 0 and 255 alone; empty for others.

    pixels: (256,) pixels per raw id in all labels of the folder.
    """
    classes = folder.label_classes
    if folder.format != TRAIN_IDS or pixels.nonzero()[0].tolist() != [0, 255]:
        return ""
    found = "the ids are 0 and 255 alone, and 255 is ignored"
    if classes.name == UNNAMED:
        return f"{found}: if 255 is an object, save its pixels as 1"
    if len(classes) != 2:
        return ""
    first, second = classes.classes
    return (
        f"{found}, so that no pixel is {second!r}: save the pixels of {second!r} as 1 ({first!r} is 0);"
        f" if 255 is meant to be ignored, name labels_format {TRAIN_IDS}"
    )


def _refuse_damaged(facts: PairFacts, wanted: ClassSet) -> None:
    if facts.errors:
        raise DataError(facts.errors[0])
    decoding, path = facts.item.decoding, str(facts.item.label_path)
    assert decoding is not None
    strange = decoding.strange(facts.histogram.nonzero()[0].tolist())
    if not strange:
        return
    if decoding.format != TRAIN_IDS:
        raise DataError(
            f"labels {path!r} hold id {strange[0]}, which {decoding.format} has not: name their real"
            f" labels_format ({', '.join(FORMATS)})"
        )
    classes = decoding.label_classes
    whose = "the model has" if classes == wanted else "their class set has"
    raise DataError(
        f"labels {path!r} hold id {strange[0]}, but {whose} {len(classes)} classes ({classes.name}: 0"
        f" to {len(classes) - 1}, 255 ignored); give labels of the model's classes, name their encoding"
        f" (labels_format: {', '.join(FORMATS)}) or their classes (labels_classes)"
    )


def _unequal(facts: PairFacts) -> str:
    assert facts.image_size is not None
    assert facts.label_size is not None
    (height, width), (image_height, image_width) = facts.label_size, facts.image_size
    return (
        f"labels {str(facts.item.label_path)!r} are {width}x{height} but their image is"
        f" {image_width}x{image_height}: give pairs of one size (or remove the pair)"
    )
