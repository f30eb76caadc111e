"""Loading of labelled folders for training or scoring: paired, decoded to a class set, and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sfss_ray.config import Config
from sfss_ray.data.class_sets import (
    IGNORE_INDEX,
    ClassSet,
    class_set_of,
    joined_in,
    joined_line,
    matched_names,
    parse_classes,
    synonyms_in,
    synonyms_line,
)
from sfss_ray.data.depth import with_white
from sfss_ray.data.folders import LabelledImage
from sfss_ray.data.format_detection import detect_format, named_format
from sfss_ray.data.label_formats import FORMATS, TRAIN_IDS, make_decoding
from sfss_ray.data.pairing import match_labels, refuse_unpaired
from sfss_ray.data.scan import PairFacts, scan_pairs
from sfss_ray.errors import DataError
from sfss_ray.runtime.progress import Progress, ProgressSink, silent
from sfss_ray.storage.places import Place, to_place
from sfss_ray.storage.text import read_text

CLASS_LIST = "classes.txt"
UNNAMED = "unnamed"
"""Name of the class set of train ids without a class list."""


@dataclass(frozen=True)
class LabelledFolder:
    """Labelled images with their decoding, and how that was chosen."""

    pairs: tuple[LabelledImage, ...]
    format: str
    reason: str
    """Why this format was chosen."""
    label_classes: ClassSet
    skipped: tuple[str, ...] = ()
    """Ids of pairs that were skipped because image and labels differ in size."""
    notes: tuple[str, ...] = ()
    """Notes for the user on encodings, skipped files and the white level, one line each."""

    def describe(self, target: ClassSet) -> list[str]:
        """Return lines for the user on the format and on how its classes map to `target`."""
        label_format = FORMATS[self.format]
        lines = [
            f"labels: {label_format.description} ({self.format}: {self.reason})",
            *self.notes,
        ]
        matched = matched_names(self.label_classes, target)
        synonyms, joined = synonyms_in(matched, target), joined_in(matched, target)
        missing = [name for name in target.classes if name not in matched.values()]
        ignored = [name for name in self.label_classes.classes if name not in matched]
        if synonyms:
            lines.append(synonyms_line(synonyms))
        if joined:
            lines.append(joined_line(joined))
        if missing:
            lines.append(f"classes that the labels cannot show: {', '.join(missing)}")
        if ignored:
            lines.append(f"classes of the labels that are ignored: {', '.join(ignored)}")
        if self.skipped:
            lines.append(
                f"{len(self.skipped)} pairs skipped: image and labels differ in size (first:"
                f" {self.skipped[0]!r})"
            )
        return lines


@dataclass(frozen=True)
class PairOptions:
    """How `load_labelled` treats the pairs of a folder, apart from the config."""

    role: str = "val"
    """Role of the folder in messages, for example val or training."""
    skip_unequal: bool = False
    """Skip pairs whose sizes differ (for training) instead of refusing them (for scoring)."""
    model_white: float | None = None
    """White level of the images the model was adapted to, for images of more than 8 bits."""


def class_list(labels: Place | str) -> ClassSet | None:
    """Return the classes of a classes.txt, one name per line, or None without such a file.

    The file is searched in the folder of the labels, then in its parent.
    """
    folder = to_place(labels)
    for path in (folder / CLASS_LIST, folder.parent / CLASS_LIST):
        if path.is_file():
            names = [line.strip() for line in read_text(path).splitlines()]
            return class_set_of([name for name in names if name and not name.startswith("#")])
    return None


def with_decoding(
    pairs: Sequence[LabelledImage],
    labels: Place | str,
    target: ClassSet | None,
    format_name: str = "auto",
    classes: str = "",
) -> LabelledFolder:
    """Return pairs whose labels are read as indices into a target class set.

    Args:
        pairs: Images with label maps of one format.
        labels: Folder of the label maps, searched for a class list.
        target: The target class set; None for the classes of the labels themselves.
        format_name: A key of `FORMATS`, or auto to detect the format.
        classes: Classes that train ids index, if they are not the target; see `parse_classes`.

    Raises:
        DataError: the labels share no class with the target, or their format is unclear.
    """
    files = [pair.label_path for pair in pairs]
    detected = detect_format(files) if format_name == "auto" else named_format(format_name, files)
    listed_classes = parse_classes(classes) if classes else detected.classes or class_list(labels)
    target = target or _classes_of_labels(detected.format, listed_classes)
    decoding = make_decoding(detected.format, target, listed_classes)
    if not matched_names(decoding.label_classes, target):
        raise DataError(
            f"labels {str(labels)!r} ({detected.format}: {', '.join(decoding.label_classes.classes)})"
            f" share no class name with {target.name} ({', '.join(target.classes)}): give labels with"
            " names of the model's classes"
        )
    decoded_pairs = tuple(dataclasses.replace(pair, decoding=decoding) for pair in pairs)
    return LabelledFolder(decoded_pairs, detected.format, detected.reason, decoding.label_classes)


def _classes_of_labels(format_name: str, listed_classes: ClassSet | None) -> ClassSet:
    """Return the classes of the format or of the list, else a class per possible id."""
    classes = FORMATS[format_name].classes if format_name in FORMATS else None
    return classes or listed_classes or class_set_of([f"class {i}" for i in range(254)], UNNAMED)


def load_labelled(
    images: Place | str,
    labels: Place | str,
    target: ClassSet,
    config: Config | None = None,
    options: PairOptions | None = None,
    progress: ProgressSink | None = None,
) -> LabelledFolder:
    """Pair, decode and check the images and label maps of two folders.

    Args:
        images: Folder of images.
        labels: Folder of label maps.
        target: The class set of the decoded labels.
        config: `labels_format`, `labels_classes` and `white_level` are used.
        options: The role of the folders, and what to do with pairs whose sizes differ.
        progress: Called with a line of text as the pairs are checked.

    Raises:
        DataError: names the file with an invalid id, a different size, or damaged contents; or the
            images or labels without a partner.
    """
    config, options = config or Config(), options or PairOptions()
    labels_name = f"{options.role} labels"
    matching = match_labels(images, labels, options.role, config.labels_format)
    refuse_unpaired(matching, images, labels, options.role)
    pairs, notes = with_white(matching.pairs, config.white_level, options.model_white)
    folder = with_decoding(pairs, labels, target, config.labels_format, config.labels_classes)
    checked = _check_pairs(folder, target, options, progress or silent)
    notes += matching.lines()

    # Without a named format, 255 may be an object's value as well as the ignored one.
    binary_warning = warn_of_binary_labels(folder, checked.histogram)
    if binary_warning and config.labels_format == "auto":
        raise DataError(f"{labels_name} {str(labels)!r}: {binary_warning}")
    notes += [binary_warning] if binary_warning else []
    _refuse_void(folder, checked.histogram, f"{labels_name} {str(labels)!r}")
    return dataclasses.replace(
        folder, pairs=tuple(checked.pairs), skipped=tuple(checked.skipped), notes=tuple(notes)
    )


@dataclass
class _CheckedPairs:
    pairs: list[LabelledImage] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Ids of pairs whose sizes differ."""
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    """(256,) pixels per raw id in all label maps."""


def _check_pairs(
    folder: LabelledFolder, target: ClassSet, options: PairOptions, progress: ProgressSink
) -> _CheckedPairs:
    """Read all images and label maps, and check ids and sizes.

    A damaged image must be found here: a training that meets it hours later cannot be resumed with a
    repaired one.
    """
    checked = _CheckedPairs()
    bar = Progress(f"checked {options.role} images and labels", len(folder.pairs), progress)
    for facts in scan_pairs(folder.pairs, read_pixels=True):
        _refuse_damaged(facts, target)
        if not facts.sizes_differ:
            checked.pairs.append(facts.pair)
        elif options.skip_unequal:
            checked.skipped.append(facts.pair.image_id)
        else:
            raise DataError(_size_error(facts))
        checked.histogram += facts.histogram
        bar.advance(1)
    if not checked.pairs:
        raise DataError(
            f"{options.role} images: every pair differs in size; give labels of the images' size"
        )
    return checked


def _refuse_void(folder: LabelledFolder, histogram: np.ndarray, labels_name: str) -> None:
    """Raise a DataError if no pixel has a class, since every score would be NaN."""
    decoding = folder.pairs[0].decoding
    assert decoding is not None
    has_class = np.frombuffer(decoding.table, np.uint8) != IGNORE_INDEX
    if not histogram[has_class].any():
        ids = ", ".join(map(str, histogram.nonzero()[0][:5]))
        raise DataError(
            f"{labels_name}: no pixel of {len(folder.pairs)} label maps has a class, all are ignored"
            f" (ids {ids}; read as {folder.format}): give labels of the model's classes, or name their"
            " labels_format"
        )


def warn_of_binary_labels(folder: LabelledFolder, histogram: np.ndarray) -> str:
    """Return a warning if train ids are only 0 and 255, of which 255 is probably an object's value.

    Args:
        folder: The labels.
        histogram: (256,) pixels per raw id in all label maps.

    Returns:
        One line, or '' if the labels have other ids or may be intended.
    """
    classes = folder.label_classes
    if folder.format != TRAIN_IDS or histogram.nonzero()[0].tolist() != [0, 255]:
        return ""
    problem = "the ids are only 0 and 255, and 255 is ignored"
    if classes.name == UNNAMED:
        return f"{problem}: if 255 is an object, save its pixels as 1"
    if len(classes) != 2:
        return ""
    first, second = classes.classes
    return (
        f"{problem}, so that no pixel is {second!r}: save the pixels of {second!r} as 1 ({first!r} is"
        f" 0); if 255 is meant to be ignored, name labels_format {TRAIN_IDS}"
    )


def _refuse_damaged(facts: PairFacts, target: ClassSet) -> None:
    """Raise a DataError for a pair that cannot be read or whose labels contain an invalid id."""
    if facts.errors:
        raise DataError(f"{facts.errors[0]}: repair the file, or remove it and its partner")
    decoding, path = facts.pair.decoding, str(facts.pair.label_path)
    assert decoding is not None
    unknown_ids = decoding.unknown_ids(facts.histogram.nonzero()[0].tolist())
    if not unknown_ids:
        return
    if decoding.format != TRAIN_IDS:
        raise DataError(
            f"labels {path!r} contain id {unknown_ids[0]}, which is not a {decoding.format} id: name"
            f" the real labels_format ({', '.join(FORMATS)})"
        )
    classes = decoding.label_classes
    owner = "the model has" if classes == target else "their class set has"
    hint = ", such as cityscapes-19 for ids of the outputs" if classes.members else ""
    raise DataError(
        f"labels {path!r} contain id {unknown_ids[0]}, but {owner} {len(classes)} classes"
        f" ({classes.name}: 0 to {len(classes) - 1}, 255 ignored); give labels of the model's classes,"
        f" name their encoding (labels_format: {', '.join(FORMATS)}) or their classes"
        f" (labels_classes{hint})"
    )


def _size_error(facts: PairFacts) -> str:
    assert facts.image_size is not None
    assert facts.label_size is not None
    (height, width), (image_height, image_width) = facts.label_size, facts.image_size
    return (
        f"labels {str(facts.pair.label_path)!r} are {width}x{height} but their image is"
        f" {image_width}x{image_height}: give pairs of one size (or remove the pair)"
    )
