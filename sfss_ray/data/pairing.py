"""Pairing of images with their label maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sfss_ray.data.folders import (
    LabelledImage,
    index_by_id,
    list_images,
    require_folder,
    walk_images,
)
from sfss_ray.data.label_names import count_missing_splits, in_split, is_auxiliary_name, pair_names
from sfss_ray.data.suffixes import SkippedFiles
from sfss_ray.errors import DataError
from sfss_ray.storage.places import Place, to_place


@dataclass(frozen=True)
class Matching:
    """Images paired with labels, and the files of either folder without a partner."""

    pairs: list[LabelledImage]
    images_alone: list[str]
    """Ids of images without labels."""
    labels_alone: list[str]
    """Ids of labels without an image."""
    image_splits: dict[str, int] = field(default_factory=dict)
    """Splits that only the image folder has, such as test, with their number of images."""
    label_splits: dict[str, int] = field(default_factory=dict)
    """Splits that only the label folder has, with their number of label maps."""
    notes: list[str] = field(default_factory=list)
    """One line for each encoding that was not used and for files skipped by suffix."""

    def lines(self) -> list[str]:
        """Return the notes and one line per skipped split."""
        skipped_splits = [
            f"{count} {files} of {split}/ are left out: the {partners} have no such folder"
            for files, partners, splits in (
                ("images", "labels", self.image_splits),
                ("labels", "images", self.label_splits),
            )
            for split, count in splits.items()
        ]
        return self.notes + skipped_splits


def match_labels(
    images: Place | str, labels: Place | str, role: str = "val", format_name: str = "auto"
) -> Matching:
    """Pair images with label maps by id, or by the naming schemes of known data sets.

    Args:
        images: Folder of images.
        labels: Folder of label maps.
        role: The role of the folders, named in messages.
        format_name: If labels exist in several encodings, use those of this format.

    Raises:
        DataError: see `list_images`; or the label folder holds no label map.
    """
    notes: list[str] = []
    image_files = list_images(images, f"{role} images", notes.append)
    image_paths = {file.image_id: file.path for file in image_files}
    label_paths = _list_labels(labels, role, image_paths, notes)
    names = pair_names(image_paths, label_paths, format_name)
    pairs = [
        LabelledImage(image_id, image_paths[image_id], label_paths[label_id])
        for image_id, label_id in names.label_of.items()
    ]
    images_alone = [image_id for image_id in image_paths if image_id not in names.label_of]
    # Test splits come without labels. Where nothing pairs at all, every file is reported instead.
    image_splits = count_missing_splits(images_alone, to_place(labels)) if pairs else {}
    label_splits = count_missing_splits(names.spare_labels, to_place(images)) if pairs else {}
    return Matching(
        pairs,
        [image_id for image_id in images_alone if not in_split(image_id, image_splits)],
        [label_id for label_id in names.spare_labels if not in_split(label_id, label_splits)],
        image_splits,
        label_splits,
        names.notes + notes,
    )


def pair_labels(
    images: Place | str, labels: Place | str, role: str = "val", format_name: str = "auto"
) -> list[LabelledImage]:
    """Return every image with its label map, paired as in `match_labels`.

    Raises:
        DataError: images without labels or labels without images; names the first of them.
    """
    matching = match_labels(images, labels, role, format_name)
    refuse_unpaired(matching, images, labels, role)
    return matching.pairs


def refuse_unpaired(
    matching: Matching, images: Place | str, labels: Place | str, role: str = "val"
) -> None:
    """Raise a DataError that names the first images without labels or labels without images."""
    if matching.images_alone:
        notes = "".join(f" ({note})" for note in matching.notes)
        raise DataError(
            f"{role} images without labels: {_first_names(matching.images_alone)}; {str(labels)!r}"
            f" needs a file of the same name for each image (or remove the images){notes}"
        )
    if matching.labels_alone:
        raise DataError(
            f"{role} labels without images: {_first_names(matching.labels_alone)}; {str(images)!r}"
            " needs a file of the same name for each label (or remove the labels)"
        )


def _list_labels(
    labels: Place | str, role: str, image_ids: Collection[str], notes: list[str]
) -> dict[str, Place]:
    """Return label maps by id, and add a note on files skipped because of their suffix.

    Renderings of labels (colours, instances) count only if an image has exactly the same name.
    """
    root, skipped = require_folder(labels, f"{role} labels"), SkippedFiles()
    files = [
        (label_id, path)
        for label_id, path in walk_images(root, skipped)
        if label_id in image_ids or not is_auxiliary_name(label_id)
    ]
    paths = index_by_id(files, f"{role} labels", skipped)
    note = skipped.summary()
    if not paths:
        raise DataError(
            f"{role} labels: no label map in {str(root)!r}; give a folder of PNG files"
            f"{f' ({note})' if note else ''}"
        )
    if note:
        notes.append(f"{role} labels: {note}")
    return paths


def _first_names(names: Sequence[str]) -> str:
    first = ", ".join(repr(name) for name in names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
