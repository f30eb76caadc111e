"""Annotation files of a folder of predictions, which people load into a tool and correct.

They are made from the PNGs of train ids, so it does not matter which process or node predicted an image.
A few images are in memory at a time, however many there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.file_names import printable
from sfss_ray.data.folders import ImageFile
from sfss_ray.data.pillow import open_image
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.importing.coco_writer import writing_coco
from sfss_ray.prediction.class_regions import ClassRegion, regions_of_classes
from sfss_ray.prediction.cvat_writer import cvat_mask, writing_cvat
from sfss_ray.prediction.outputs import TRAIN_IDS, PredictionFolder
from sfss_ray.runtime.progress import Progress, ProgressSink
from sfss_ray.storage.object_cache import read_copy
from sfss_ray.storage.places import Place

AnnotationFormat = Literal["coco", "cvat"]
FILE_NAMES: dict[str, str] = {"coco": "coco.json", "cvat": "cvat.xml"}
"""Format -> name of its file in the folder of predictions."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Return the formats, each once.

    Raises:
        ConfigError: one of them is unknown.
    """
    names = formats.split(",") if isinstance(formats, str) else formats
    unknown = [name for name in names if name not in FILE_NAMES]
    if unknown:
        raise ConfigError(
            f"formats contains {unknown[0]!r}: allowed are {' and '.join(map(repr, FILE_NAMES))}"
        )
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class _Encoded:
    """The regions of an image in all formats that are written."""

    name: str
    size: tuple[int, int]
    entries: dict[str, list[Any]]


def write_annotations(
    folder: PredictionFolder,
    files: Sequence[ImageFile],
    formats: Sequence[str],
    progress: ProgressSink,
) -> tuple[Place, ...]:
    """Write a file of each format with one mask per class and image; return their paths.

    Args:
        folder: of the predictions.
        files: images that have predictions.
        formats: from `check_formats`.
        progress: Called with a line of text as work goes on.

    Raises:
        DataError: a prediction cannot be read.
        OutputError: a file cannot be written.
    """
    if not formats:
        return ()
    paths = tuple(folder.root / FILE_NAMES[name] for name in formats)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(_writing(name, path, folder.classes))
            for name, path in zip(formats, paths, strict=True)
        ]
        bar = stack.enter_context(Progress("annotated", len(files), progress))
        for image in _in_order(lambda file: _encode(folder, file, formats), files):
            for add in writers:
                add(image)
            bar.advance(1)
    return paths


@contextmanager
def _writing(
    format_name: str, path: Place, classes: ClassSet
) -> Iterator[Callable[[_Encoded], None]]:
    """Yield a function that adds an image to the file of a format."""
    if format_name == "coco":
        categories = [
            {"id": index, "name": name, "supercategory": ""}
            for index, name in enumerate(classes.classes, start=1)
        ]
        with writing_coco(path, categories) as coco:
            yield lambda image: coco.add(
                {"file_name": image.name, "width": image.size[1], "height": image.size[0]},
                image.entries["coco"],
            )
    else:
        with writing_cvat(path, classes) as cvat:
            yield lambda image: cvat.add(image.name, image.size, image.entries["cvat"])


def _encode(folder: PredictionFolder, file: ImageFile, formats: Sequence[str]) -> _Encoded:
    """Read the train ids of an image and encode the regions of their classes.

    Raises:
        DataError: they cannot be read.
    """
    path = folder.path(TRAIN_IDS, file.image_id)
    try:
        with read_copy(path, open_image) as picture:
            train_ids = np.asarray(picture)
    except (OSError, SyntaxError) as error:
        raise DataError(
            f"prediction {str(path)!r} cannot be read ({error}): remove it, and predict again"
        ) from error
    regions = regions_of_classes(train_ids)
    encoders = {"coco": _annotation, "cvat": lambda region: cvat_mask(region, folder.classes)}
    entries = {name: [encoders[name](region) for region in regions] for name in formats}
    height, width = train_ids.shape
    return _Encoded(f"{file.image_id}{printable(file.path.suffix)}", (height, width), entries)


def _annotation(region: ClassRegion) -> dict[str, Any]:
    """Return a region as an annotation of COCO; the category is the index of the class plus 1."""
    return {
        "category_id": region.class_index + 1,
        "segmentation": {"size": list(region.size), "counts": region.coco_counts},
        "area": region.area,
        "bbox": list(region.box),
        "iscrowd": 0,
    }


def _in_order(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results of a function in order, computed by threads that run a little ahead."""
    workers = os.cpu_count() or 1
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
