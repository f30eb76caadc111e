"""Names of label files: the image that a label belongs to, and the encoding that its name states.

Data sets of street scenes name a label after its image by exchanging the last part of the name:
a_leftImg8bit.png has a_gtFine_labelIds.png, b_rgb_anon.png has b_gt_labelTrainIds.png. Other pictures of
the same labels (colours, instances) lie beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TRAIN_IDS = "train_ids"


@dataclass(frozen=True)
class Encoding:
    """What the end of a label's name states."""

    name: str
    """As in the file name: labelIds; empty for names without such an end."""
    format: str | None = None
    """The format of its ids; None: the name does not state it."""
    note: str = ""
    """Why it is preferred to others."""


PLAIN = Encoding("")
ENCODINGS = (
    Encoding("labelIds", "cityscapes_label_ids", "as the official scorer of Cityscapes does"),
    PLAIN,
    Encoding("labellevel3Ids", "idd_level3", "as the official scorer of IDD does"),
    Encoding("labelids", "idd_ids"),
    Encoding("labelcsIds", "cityscapes_label_ids"),
    Encoding("labelcsTrainIds", TRAIN_IDS),
    Encoding("labelTrainIds", TRAIN_IDS),
    Encoding("train_id", TRAIN_IDS),
    Encoding("L"),
    Encoding("P"),
)
"""Those that are read, in the order of preference where an image has several."""
_BY_NAME = {encoding.name: encoding for encoding in ENCODINGS if encoding.name}
_LABEL = re.compile(
    r"(?P<stem>.+?)_(?:gtFine_|gtCoarse_|gt_(?P<ref>ref_)?)?(?P<name>" + "|".join(_BY_NAME) + ")"
)
_OTHER = re.compile(
    r".+?_(?:gtFine_|gtCoarse_|gt_(?:ref_)?)?"
    r"(color|labelColors?|colormap|train_color|instance\w*|panoptic\w*|invGray|invIds|polygons|disparity"
    r"|label[lL]evel[124]Ids)"
)
_IMAGE = re.compile(r"(?P<stem>.+)_(?:leftImg8bit(?:_[^/]*)?|rgb(?P<ref>_ref)?(?:_anon)?)")
_CERTAIN_LABEL = re.compile(
    r".+(_gt(Fine|Coarse)_(color|instance\w*|label\w+)|_gt_(ref_)?(label\w+|invGray|invIds)"
    r"|_labelIds|_labelTrainIds|_instanceTrainIds)"
)


def is_label_name(image_id: str) -> bool:
    """Whether a file of this name cannot be an image of a data set."""
    return _CERTAIN_LABEL.fullmatch(image_id) is not None


def is_other_picture(label_id: str) -> bool:
    """Whether the name is that of a picture that lies beside labels: colours, instances, disparities."""
    return _OTHER.fullmatch(label_id) is not None


def encoding_of(label_id: str) -> Encoding:
    """The encoding that a name states; PLAIN where it states none."""
    match = _LABEL.fullmatch(label_id)
    return _BY_NAME[match["name"]] if match else PLAIN


def _label_key(label_id: str) -> str | None:
    match = _LABEL.fullmatch(label_id)
    return match["stem"] + ("_ref" if match["ref"] else "") if match else None


def _image_key(image_id: str) -> str:
    match = _IMAGE.fullmatch(image_id)
    return match["stem"] + (match["ref"] or "") if match else image_id


@dataclass(frozen=True)
class NamePairs:
    """Which label belongs to which image, by name."""

    label_of: dict[str, str]
    """Image id -> label id; several images may share a label."""
    spare: list[str]
    """Labels of no image."""
    notes: list[str] = field(default_factory=list)
    """What was chosen among several encodings, a line each."""


def pair_names(
    images: Collection[str], labels: Collection[str], format_name: str = "auto"
) -> NamePairs:
    """Pair images and labels: by equal names, or by the naming of the known data sets.

    All pairs have one encoding: the one that the most images have, the preferred one of several such.
    format_name: encodings of another format than this one do not count.
    """
    found = _labels_by_encoding(images, labels)
    options = {image: _fitting(encodings, format_name) for image, encodings in found.items()}
    chosen = _chosen(options)
    label_of = {i: fitting[chosen] for i, fitting in options.items() if chosen in fitting}
    keys = {_image_key(i) for i in images} | set(images)
    spare = set(labels) - set(label_of.values()) - set(images)
    return NamePairs(
        label_of,
        sorted(i for i in spare if _label_key(i) not in keys),
        _notes(found, chosen, format_name),
    )


_Found = dict[str, dict[Encoding, str]]


def _labels_by_encoding(images: Collection[str], labels: Collection[str]) -> _Found:
    """Image id -> its labels."""
    wanted, names = set(images), set(labels)
    by_key: _Found = {}
    for label in sorted(names - wanted):  # a label named like an image is that image's alone
        key = _label_key(label)
        if key is not None:
            same_key = by_key.setdefault(key, {})
            encoding = encoding_of(label)
            if "_gtCoarse_" not in label or encoding not in same_key:  # the fine one of two
                same_key[encoding] = label
    return {
        image: ({PLAIN: image} if image in names else {})
        | by_key.get(image, {})
        | by_key.get(_image_key(image), {})
        for image in images
    }


def _fitting(found: Mapping[Encoding, str], format_name: str) -> Mapping[Encoding, str]:
    """Those of an image's labels that a named format can read: first those whose name states it."""
    if format_name == "auto":
        return found
    same = {format_name, "cityscapes_label_ids"} if format_name == "gta5" else {format_name}
    stated = {e: label for e, label in found.items() if e.format in same}
    return stated or {e: label for e, label in found.items() if e.format is None}


def _chosen(options: Mapping[str, Mapping[Encoding, str]]) -> Encoding:
    count = Counter(encoding for found in options.values() for encoding in found)
    most = max(count.values(), default=0)
    return next((e for e in ENCODINGS if count[e] == most), PLAIN)


def _notes(found: _Found, chosen: Encoding, format_name: str) -> list[str]:
    """A line for every encoding that was not taken, unless a format was named."""
    lines = []
    for other in ENCODINGS:
        if other is chosen:
            continue
        both = sum(chosen in labels and other in labels for labels in found.values())
        alone = sum(chosen not in labels and other in labels for labels in found.values())
        if both and format_name == "auto":
            lines.append(_both(both, chosen, other))
        if alone and format_name == "auto":
            lines.append(
                f"{alone} images have no {_shown(chosen)}, only {_shown(other)}: labels of two encodings"
                " are not mixed"
            )
        elif alone:
            lines.append(
                f"{alone} images have only {_shown(other)}, which is not labels_format {format_name}"
            )
    return lines


def _both(count: int, chosen: Encoding, other: Encoding) -> str:
    reason = f", {chosen.note}" if chosen.note else ""
    named = other.format and other.format != chosen.format
    advice = f" (labels_format {other.format} takes the {_shown(other)})" if named else ""
    return (
        f"{count} images have {_shown(chosen)} and {_shown(other)}: the {_shown(chosen)} are"
        f" taken{reason}{advice}"
    )


_SPLIT = re.compile(r"train|val|test|trainval|train_extra|demoVideo|\w+_ref")


def absent_splits(ids: Collection[str], other: Path) -> dict[str, int]:
    """Splits such as `fog/test` that hold some of these ids and are no folder in `other`: their counts.

    Test splits come without labels, and reference images beside those that have labels.
    """
    count = Counter(splits[0] for i in ids if (splits := _splits_of(i)))
    return {split: n for split, n in sorted(count.items()) if not (other / split).is_dir()}


def in_split(file_id: str, splits: Collection[str]) -> bool:
    """Whether an id lies in one of these splits."""
    return any(split in splits for split in _splits_of(file_id)[:1])


def _splits_of(file_id: str) -> list[str]:
    """Those of its folders that are named like a split, each as the path from the top."""
    folders = file_id.split("/")[:-1]
    return ["/".join(folders[: n + 1]) for n, f in enumerate(folders) if _SPLIT.fullmatch(f)]


def _shown(encoding: Encoding) -> str:
    if encoding.name in ("L", "P"):
        return f"files named *_{encoding.name}"
    return encoding.name or "files of the image's name"
