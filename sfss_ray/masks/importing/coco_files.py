"""COCO JSON files: the masks of many images in one file.

A data set is `{"images": [...], "annotations": [...], "categories": [...]}`. Results of a detector are
a list of annotations with `image_id`, and with `file_name` where ultralytics wrote them. Categories are
not read: masks say which pixels belong together, not what they are. Crowds are masks like all others.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.json_files import check_declared_size, read_entry
from sfss_ray.masks.importing.name_matching import name_of_file
from sfss_ray.masks.importing.records import reason_of


@dataclass(frozen=True)
class CocoImage:
    """An image in a COCO file with its annotations."""

    path: Path
    """Of the COCO file."""
    file_name: str
    """Of the image, as the file states it."""
    image: Mapping[str, Any] = field(default_factory=dict)
    """Its entry in the file; empty in results."""
    annotations: list[Mapping[str, Any]] = field(default_factory=list)

    def read(self, size: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the mask records of the image of this size (height, width).

        Raises:
            DataError: the entry states another size, or an annotation has no mask of it.
        """
        name = f"{str(self.path)!r}: image {self.file_name!r}"
        check_declared_size(self.image, size, name)
        return [
            read_entry(annotation, f"{name}: {_annotation_name(annotation, k)}", size)
            for k, annotation in enumerate(self.annotations)
        ]

    def stamp(self) -> str:
        """Return a hash of all that the file says about the image."""
        text = json.dumps([self.file_name, self.image, self.annotations])
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _annotation_name(annotation: Mapping[str, Any], k: int) -> str:
    return f"annotation {annotation['id']}" if "id" in annotation else f"result {k}"


@dataclass(frozen=True)
class CocoFile:
    """The content of a COCO file by names of images, as `match_names` compares them."""

    images: dict[str, CocoImage]
    duplicates: dict[str, str]
    """Name of an image that has two entries -> which."""
    strays: int = 0
    """Annotations of images that are not listed."""


def parse_coco(path: Path, content: Any, image_ids: Iterable[str]) -> CocoFile:
    """Return the images and annotations of a COCO file.

    Args:
        path: of the file, for errors.
        content: of the file.
        image_ids: of the target images, because results state numbers: 42 is 000042.jpg.

    Raises:
        DataError: the content is not COCO's.
    """
    try:
        if isinstance(content, list):
            return _parse_results(path, _entries("results", content, ("image_id",)), image_ids)
        if not isinstance(content, Mapping):
            raise DataError("it has neither images nor results")
        images = _entries("images", content.get("images"), ("id", "file_name"))
        annotations = _entries("annotations", content.get("annotations"), ("image_id",))
        return _parse_data_set(path, images, annotations)
    except DataError as error:
        raise DataError(f"{str(path)!r} is not a valid COCO file: {error}") from error
    except TypeError as error:  # an id that is a list
        raise DataError(f"{str(path)!r} is not a valid COCO file: {reason_of(error)}") from error


def _entries(name: str, entries: Any, keys: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Return a list of a COCO file after a check that each entry has some keys."""
    if not isinstance(entries, list):
        raise DataError(f"its {name} are {str(entries)[:40]}: allowed is a list")
    if entries and isinstance(entries[0], Mapping) and "segments_info" in entries[0]:
        raise DataError(
            "it is COCO's panoptic form, whose masks lie in PNG files: import their folder instead"
        )
    for k, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, Mapping) or entry.get(key) is None]
        if missing:
            raise DataError(f"entry {k} of its {name} has no {missing[0]!r}")
    return entries


def _parse_data_set(
    path: Path, images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]
) -> CocoFile:
    by_id: dict[Any, CocoImage] = {}
    by_name: dict[str, CocoImage] = {}
    duplicates: dict[str, str] = {}
    for image in images:
        entry = CocoImage(path, str(image["file_name"]), image)
        former = by_id.setdefault(image["id"], entry)
        if former is not entry:
            raise DataError(
                f"{former.file_name!r} and {entry.file_name!r} have the same id {image['id']!r}: give"
                " every image one of its own"
            )
        name = name_of_file(entry.file_name)
        former = by_name.setdefault(name, entry)
        if former is not entry:
            duplicates[name] = (
                f"{str(path)!r} has two entries for it, {former.file_name!r} (id {former.image['id']!r})"
                f" and {entry.file_name!r} (id {image['id']!r}): keep one of them"
            )
    strays = 0
    for annotation in annotations:
        if (entry := by_id.get(annotation["image_id"])) is None:
            strays += 1
        else:
            entry.annotations.append(annotation)
    return CocoFile(by_name, duplicates, strays)


def _parse_results(
    path: Path, results: Sequence[Mapping[str, Any]], image_ids: Iterable[str]
) -> CocoFile:
    numbered = _by_number(image_ids)
    images: dict[str, CocoImage] = {}
    for result in results:
        file_name = str(result.get("file_name") or result["image_id"])
        name = name_of_file(file_name)
        if "file_name" not in result and isinstance(result["image_id"], int):
            same_number = numbered.get(result["image_id"], [])
            name = same_number[0] if len(same_number) == 1 else name
        images.setdefault(name, CocoImage(path, file_name)).annotations.append(result)
    return CocoFile(images, {})


def _by_number(image_ids: Iterable[str]) -> dict[int, list[str]]:
    """Return the image ids whose file names are numbers, by number."""
    numbered: dict[int, list[str]] = defaultdict(list)
    for image_id in image_ids:
        name = image_id.rpartition("/")[2]
        if name.isascii() and name.isdigit():
            numbered[int(name)].append(image_id)
    return numbered
