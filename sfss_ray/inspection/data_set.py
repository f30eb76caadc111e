"""`sfss-ray data check`: the layout and encoding of a labelled data set, and its faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sfss_ray.config import Config
from sfss_ray.data.class_sets import parse_classes
from sfss_ray.data.depth import with_white
from sfss_ray.data.label_formats import FORMATS, LabelFormat
from sfss_ray.data.labelled import UNNAMED, LabelledFolder, warn_of_binary_labels, with_decoding
from sfss_ray.data.layouts import Folders, find_layout
from sfss_ray.data.pairing import Matching, match_labels
from sfss_ray.data.scan import PairFacts, scan_pairs
from sfss_ray.errors import DataError
from sfss_ray.inspection.report_lines import MAX_LISTED, case_lines
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.storage.places import Place, parsed


@dataclass
class DatasetReport:
    """Findings on a data set. Lists hold every case; `lines` shows the first of each."""

    layout: str
    folder: Place
    labels_format: str
    format_reason: str
    class_set: str
    pairs: int = 0
    images_without_labels: list[str] = field(default_factory=list)
    labels_without_images: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Lines on the choice among several encodings, and on files that were left out."""
    binary: str = ""
    """Why labels of 0 and 255 alone are not labels of two classes; empty for other labels."""
    unequal: list[str] = field(default_factory=list)
    """'ID: image WxH, labels WxH'."""
    unreadable: list[str] = field(default_factory=list)
    """Errors of files that cannot be read."""
    unknown_ids: dict[int, int] = field(default_factory=dict)
    """Raw id that the format does not define -> pixels."""
    files_of_unknown_id: dict[int, str] = field(default_factory=dict)
    """Raw id -> the first label file that contains it."""
    image_sizes: dict[str, int] = field(default_factory=dict)
    """'WxH' -> images."""
    class_share: dict[str, float] = field(default_factory=dict)
    """Class -> percent of the labelled pixels."""
    ignored_share: float = 0.0
    """Percent of all pixels that belong to no class."""

    @property
    def sound(self) -> bool:
        """Whether nothing is missing, unequal, unreadable or unknown."""
        return not any(
            (
                self.images_without_labels,
                self.labels_without_images,
                self.unequal,
                self.unreadable,
                self.unknown_ids,
                self.binary,
            )
        )

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 for a sound data set, else 1."""
        return 0 if self.sound else 1

    def lines(self) -> list[str]:
        """Return the report for people."""
        lines = [
            f"{self.folder}: {self.layout}",
            f"labels: {FORMATS[self.labels_format].description} ({self.labels_format}:"
            f" {self.format_reason}), class set {self.class_set}",
            f"pairs: {self.pairs}",
            *self.notes,
            f"image sizes: {_sizes(self.image_sizes)}",
        ]
        lines += case_lines("images without labels", self.images_without_labels)
        lines += case_lines("labels without images", self.labels_without_images)
        lines += case_lines("pairs of unequal size", self.unequal)
        lines += case_lines("unreadable files", self.unreadable)
        lines += case_lines("unknown ids", self._unknown_id_lines())
        lines += ["", f"{'class':16}{'pixels %':>10}"]
        for name, share in self.class_share.items():
            lines.append(f"{name:16}{f'{share:.2f}' if share else 'absent':>10}")
        if self.binary:
            lines += ["", self.binary]
        lines += [f"{'(ignored)':16}{self.ignored_share:>10.2f}  of all pixels", ""]
        lines.append("sound" if self.sound else "not sound: see above")
        return lines

    def _unknown_id_lines(self) -> list[str]:
        return [
            f"id {i}: {pixels} pixels, first in {self.files_of_unknown_id[i]}"
            for i, pixels in sorted(self.unknown_ids.items())
        ]


def _sizes(sizes: dict[str, int]) -> str:
    common = sorted(sizes.items(), key=lambda entry: -entry[1])
    listed = ", ".join(f"{size} ({count})" for size, count in common[:MAX_LISTED])
    hidden = len(common) - MAX_LISTED
    return f"{listed} and {hidden} more sizes" if hidden > 0 else listed


def check_dataset(
    folder: Place | str,
    *,
    labels: Place | str | None = None,
    classes: str = "",
    headers_only: bool = False,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> DatasetReport:
    """Report the layout of a data set and everything missing, unequal, unreadable or unknown in it.

    Args:
        folder: Root of Cityscapes (with its coarse labels or fog), ACDC, Dark Zurich, GTA5, IDD,
            BDD100K, SYNTHIA-RAND-CITYSCAPES or CamVid, or of a folder with images/ and labels/ (and
            classes.txt); with `labels` the folder of the images.
        labels: Folder of the label maps.
        classes: Class set of train ids (cityscapes-19), or class names separated by commas.
        headers_only: Read only the headers of images: faster, but damaged pixels are not noticed.
        config: `labels_format` names the encoding of labels where it is not recognised.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, class shares and every case of each fault.

    Raises:
        DataError: no such folder, or no known layout (the message has the expected layouts and the
            folder's content).
    """
    config = config or Config()
    folder, labels = parsed(folder), parsed(labels)
    layout = find_layout(folder, labels)
    matchings = [match_labels(*pair, "data set", config.labels_format) for pair in layout.folders]
    pairs = [pair for matching in matchings for pair in matching.pairs]
    pairs, notes = with_white(pairs, config.white_level)
    for note in notes:
        progress(note)
    if not pairs:
        raise DataError(_no_pairs_message(folder, matchings))
    classes = classes or config.labels_classes
    class_set = parse_classes(classes) if classes else None
    dataset = with_decoding(pairs, layout.folders[0][1], class_set, config.labels_format, classes)
    report = DatasetReport(
        layout.name_with(dataset.format, pairs[0].label_path.stem),
        Path(folder) if isinstance(folder, str) else folder,
        dataset.format,
        dataset.reason,
        _class_set_name(dataset),
        len(pairs),
        [i for m in matchings for i in m.images_alone],
        [i for m in matchings for i in m.labels_alone],
        _matching_lines(layout.folders, matchings),
    )
    _scan(dataset, report, not headers_only, progress)
    # With a named format, or with no class list, 0 and 255 may be meant: 255 is ignored then.
    is_intended = config.labels_format != "auto" or dataset.label_classes.name == UNNAMED
    if report.binary and is_intended:
        report.notes, report.binary = [*report.notes, report.binary], ""
    return report


def _matching_lines(folders: Sequence[Folders], matchings: Sequence[Matching]) -> list[str]:
    """Return the lines of the matchings, without splits whose images are paired with other labels."""
    lines, image_folders = [], {images for images, _ in folders}
    for (images, labels), matching in zip(folders, matchings, strict=True):
        paired = {split for split in matching.image_splits if images / split in image_folders}
        unpaired = {s: n for s, n in matching.image_splits.items() if s not in paired}
        if len(folders) > 1:
            lines.append(f"  {images.name}/ with {labels.name}/: {len(matching.pairs)} pairs")
        lines += dataclasses.replace(matching, image_splits=unpaired).lines()
    return lines


def _class_set_name(dataset: LabelledFolder) -> str:
    name = dataset.label_classes.name
    return (
        f"{name} (no class list was given: ids are counted as they are)"
        if name == UNNAMED
        else name
    )


def _no_pairs_message(folder: Place | str, matchings: list[Matching]) -> str:
    images, labels = matchings[0].images_alone, matchings[0].labels_alone
    example = f"images such as {images[0]!r}" if images else "no images"
    example += f", labels such as {labels[0]!r}" if labels else ", no labels"
    return (
        f"data set {str(folder)!r}: no image has labels of its name. Found: {example}. Expected: equal"
        " names, or NAME_leftImg8bit with NAME_gtFine_labelIds or NAME_gtFine_labelTrainIds, or"
        " NAME_rgb_anon with NAME_gt_labelIds or NAME_gt_labelTrainIds"
    )


def _scan(
    dataset: LabelledFolder, report: DatasetReport, pixels: bool, progress: ProgressSink
) -> None:
    """Read every pair and add its faults and pixels to the report."""
    raw = np.zeros(256, np.int64)
    with Progress("checked", len(dataset.pairs), progress) as bar:
        for facts in scan_pairs(dataset.pairs, pixels):
            raw += facts.histogram
            _add_pair(facts, report)
            bar.advance(1)
    decoding = dataset.pairs[0].decoding
    assert decoding is not None
    report.unknown_ids = {i: int(raw[i]) for i in decoding.unknown_ids(raw.nonzero()[0].tolist())}
    report.class_share, report.ignored_share = _class_shares(raw, dataset, FORMATS[dataset.format])
    report.binary = warn_of_binary_labels(dataset, raw)


def _add_pair(facts: PairFacts, report: DatasetReport) -> None:
    report.unreadable += facts.errors
    if facts.image_size:
        height, width = facts.image_size
        name = f"{width}x{height}"
        report.image_sizes[name] = report.image_sizes.get(name, 0) + 1
        if facts.sizes_differ and facts.label_size:
            size = f"{facts.label_size[1]}x{facts.label_size[0]}"
            report.unequal.append(f"{facts.pair.image_id}: image {name}, labels {size}")
    assert facts.pair.decoding is not None
    for raw_id in facts.pair.decoding.unknown_ids(facts.histogram.nonzero()[0].tolist()):
        report.files_of_unknown_id.setdefault(raw_id, str(facts.pair.label_path))


def _class_shares(
    raw: np.ndarray, dataset: LabelledFolder, label_format: LabelFormat
) -> tuple[dict[str, float], float]:
    """Return the percent of labelled pixels per class, and the percent of ignored pixels.

    Args:
        raw: (256,) pixels per raw id.
        dataset: The pairs, whose class set orders the classes.
        label_format: The encoding of the labels.
    """
    names = (
        label_format.names
        if label_format.classes
        else dict(enumerate(dataset.label_classes.classes))
    )
    pixels = dict.fromkeys(names.values(), 0)
    for raw_id, name in names.items():  # several ids may be one class
        pixels[name] += int(raw[raw_id])
    labelled, total = sum(pixels.values()), int(raw.sum())
    shares = {name: 100 * pixels[name] / max(labelled, 1) for name in dataset.label_classes.classes}
    if dataset.label_classes.name == UNNAMED:  # any id may be a class: list those that occur
        shares = {name: share for name, share in shares.items() if share}
    return shares, 100 * (total - labelled) / max(total, 1)
