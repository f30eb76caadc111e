"""Label file names: which image a label map belongs to, and which encoding its name states.

Street-scene data sets derive the name of a label map from its image by replacing the last part:
a_leftImg8bit.png has a_gtFine_labelIds.png, b_rgb_anon.png has b_gt_labelTrainIds.png. The same folder
also holds other renderings of the labels, such as colours and instances.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sfss_ray.storage.places import Place

TRAIN_IDS = "train_ids"


@dataclass(frozen=True)
class Encoding:
    """An encoding of labels, as stated by the ending of file names."""

    name: str
    """The ending, for example labelIds; empty for names without a known ending."""
    format: str | None = None
    """The label format of the ids; None if the name does not state it."""
    reason: str = ""
    """Why this encoding is preferred to others."""


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
"""Supported encodings; where an image has several, the first is preferred."""
_ENCODING_BY_NAME = {encoding.name: encoding for encoding in ENCODINGS if encoding.name}
_LABEL_NAME = re.compile(
    r"(?P<stem>.+?)_(?:gtFine_|gtCoarse_|gt_(?P<ref>ref_)?)?(?P<name>"
    + "|".join(_ENCODING_BY_NAME)
    + ")"
)
_AUXILIARY_NAME = re.compile(
    r".+?_(?:gtFine_|gtCoarse_|gt_(?:ref_)?)?"
    r"(color|labelColors?|colormap|train_color|instance\w*|panoptic\w*|invGray|invIds|polygons|disparity"
    r"|label[lL]evel[124]Ids)"
)
_IMAGE_NAME = re.compile(r"(?P<stem>.+)_(?:leftImg8bit(?:_[^/]*)?|rgb(?P<ref>_ref)?(?:_anon)?)")
_CERTAIN_LABEL_NAME = re.compile(
    r".+(_gt(Fine|Coarse)_(color|instance\w*|label\w+)|_gt_(ref_)?(label\w+|invGray|invIds)"
    r"|_labelIds|_labelTrainIds|_instanceTrainIds)"
)


def is_label_name(image_id: str) -> bool:
    """Return whether a name marks a label map of a known data set, so that it cannot be an image."""
    return _CERTAIN_LABEL_NAME.fullmatch(image_id) is not None


def is_auxiliary_name(label_id: str) -> bool:
    """Return whether a name marks another rendering: colours, instances, panoptics, disparities."""
    return _AUXILIARY_NAME.fullmatch(label_id) is not None


def encoding_of(label_id: str) -> Encoding:
    """Return the encoding that a name states, or PLAIN if it states none."""
    match = _LABEL_NAME.fullmatch(label_id)
    return _ENCODING_BY_NAME[match["name"]] if match else PLAIN


def _label_key(label_id: str) -> str | None:
    """Return the part of a label name that it shares with its image, or None."""
    match = _LABEL_NAME.fullmatch(label_id)
    return match["stem"] + ("_ref" if match["ref"] else "") if match else None


def _image_key(image_id: str) -> str:
    """Return the part of an image name that it shares with its label maps."""
    match = _IMAGE_NAME.fullmatch(image_id)
    return match["stem"] + (match["ref"] or "") if match else image_id


@dataclass(frozen=True)
class NamePairs:
    """Images and labels paired by name."""

    label_of: dict[str, str]
    """Image id -> label id; several images may share a label."""
    spare_labels: list[str]
    """Ids of labels without an image."""
    notes: list[str] = field(default_factory=list)
    """One line for each encoding that was not used."""


def pair_names(
    images: Collection[str], labels: Collection[str], format_name: str = "auto"
) -> NamePairs:
    """Pair images and labels by equal names, or by the naming schemes of known data sets.

    All pairs use one encoding: the one that most images have, and of several such the first in
    `ENCODINGS`.

    Args:
        images: Ids of images.
        labels: Ids of label maps.
        format_name: A label format; labels in encodings of other formats are ignored. "auto" allows
            all formats.
    """
    labels_of = _labels_by_encoding(images, labels)
    readable = {
        image_id: _in_format(encodings, format_name) for image_id, encodings in labels_of.items()
    }
    chosen = _most_common(readable)
    label_of = {
        image_id: encodings[chosen]
        for image_id, encodings in readable.items()
        if chosen in encodings
    }
    image_keys = {_image_key(image_id) for image_id in images} | set(images)
    unused = set(labels) - set(label_of.values()) - set(images)
    spare_labels = sorted(label_id for label_id in unused if _label_key(label_id) not in image_keys)
    return NamePairs(label_of, spare_labels, _describe_choice(labels_of, chosen, format_name))


_LabelsOfImages = dict[str, dict[Encoding, str]]


def _labels_by_encoding(images: Collection[str], labels: Collection[str]) -> _LabelsOfImages:
    """Return the labels of each image id, by encoding."""
    image_ids, label_ids = set(images), set(labels)
    by_key: _LabelsOfImages = {}
    # A label with exactly the name of an image belongs to that image only, whatever its ending.
    for label_id in sorted(label_ids - image_ids):
        key = _label_key(label_id)
        if key is None:
            continue
        same_key = by_key.setdefault(key, {})
        encoding = encoding_of(label_id)
        # gtFine is preferred to gtCoarse.
        if "_gtCoarse_" not in label_id or encoding not in same_key:
            same_key[encoding] = label_id
    return {
        image_id: ({PLAIN: image_id} if image_id in label_ids else {})
        | by_key.get(image_id, {})
        | by_key.get(_image_key(image_id), {})
        for image_id in images
    }


def _in_format(encodings: Mapping[Encoding, str], format_name: str) -> Mapping[Encoding, str]:
    """Return the labels of an image that a format can read; stated formats come first."""
    if format_name == "auto":
        return encodings
    # GTA5 stores Cityscapes labelIds.
    formats = {format_name, "cityscapes_label_ids"} if format_name == "gta5" else {format_name}
    stated = {
        encoding: label for encoding, label in encodings.items() if encoding.format in formats
    }
    return stated or {
        encoding: label for encoding, label in encodings.items() if encoding.format is None
    }


def _most_common(readable: Mapping[str, Mapping[Encoding, str]]) -> Encoding:
    count = Counter(encoding for encodings in readable.values() for encoding in encodings)
    highest = max(count.values(), default=0)
    return next((encoding for encoding in ENCODINGS if count[encoding] == highest), PLAIN)


def _describe_choice(labels_of: _LabelsOfImages, chosen: Encoding, format_name: str) -> list[str]:
    """Return a line for each encoding that was not used, unless the user named the format."""
    lines = []
    for encoding in ENCODINGS:
        if encoding is chosen:
            continue
        with_both = sum(chosen in labels and encoding in labels for labels in labels_of.values())
        without_chosen = sum(
            chosen not in labels and encoding in labels for labels in labels_of.values()
        )
        if with_both and format_name == "auto":
            lines.append(_describe_preference(with_both, chosen, encoding))
        if without_chosen and format_name == "auto":
            lines.append(
                f"{without_chosen} images have no {_title(chosen)}, only {_title(encoding)}: labels of"
                " two encodings are not mixed"
            )
        elif without_chosen:
            lines.append(
                f"{without_chosen} images have only {_title(encoding)}, which is not labels_format"
                f" {format_name}"
            )
    return lines


def _describe_preference(count: int, chosen: Encoding, unused: Encoding) -> str:
    reason = f", {chosen.reason}" if chosen.reason else ""
    has_own_format = unused.format and unused.format != chosen.format
    advice = f" (labels_format {unused.format} uses the {_title(unused)})" if has_own_format else ""
    return (
        f"{count} images have {_title(chosen)} and {_title(unused)}: the {_title(chosen)} are"
        f" used{reason}{advice}"
    )


def _title(encoding: Encoding) -> str:
    """Return an encoding as messages name it."""
    if encoding.name in ("L", "P"):
        return f"files named *_{encoding.name}"
    return encoding.name or "files of the image's name"


_SPLIT = re.compile(r"train|val|test|trainval|train_extra|demoVideo|\w+_ref")


def count_missing_splits(ids: Collection[str], other_folder: Place) -> dict[str, int]:
    """Return splits, such as `fog/test`, that contain some of the ids but are missing in another folder.

    Test splits come without labels, and so do the reference images of ACDC and Dark Zurich.

    Returns:
        Split -> number of ids in it, in alphabetical order.
    """
    count = Counter(splits[0] for file_id in ids if (splits := _splits_of(file_id)))
    return {split: n for split, n in sorted(count.items()) if not (other_folder / split).is_dir()}


def in_split(file_id: str, splits: Collection[str]) -> bool:
    """Return whether an id belongs to one of the splits."""
    return any(split in splits for split in _splits_of(file_id)[:1])


def _splits_of(file_id: str) -> list[str]:
    """Return the parent folders of an id that have the name of a split, as paths from the root."""
    folders = file_id.split("/")[:-1]
    return [
        "/".join(folders[: depth + 1])
        for depth, folder in enumerate(folders)
        if _SPLIT.fullmatch(folder)
    ]
