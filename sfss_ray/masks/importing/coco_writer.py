"""A COCO JSON file written image by image, so that its length does not matter to the memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from sfss_ray.storage.files import whole_file
from sfss_ray.storage.places import Place
from sfss_ray.version import __version__


@dataclass
class CocoWriter:
    """Appends images with their annotations to an open file; see `writing_coco`."""

    file: IO[str]
    """The COCO file, inside its list of annotations."""
    images: IO[str]
    """A temporary file with the entries of the images, which follow the annotations."""
    num_images: int = 0
    num_annotations: int = 0

    def add(self, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> None:
        """Add an image and its annotations; ids are counted from 1."""
        self.num_images += 1
        self.images.write(_separator(self.num_images))
        self.images.write(_json({"id": self.num_images, **image}))
        for annotation in annotations:
            self.num_annotations += 1
            self.file.write(_separator(self.num_annotations))
            ids = {"id": self.num_annotations, "image_id": self.num_images}
            self.file.write(_json({**ids, **annotation}))


def _separator(number: int) -> str:
    return "\n" if number == 1 else ",\n"


def _json(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False)


@contextmanager
def writing_coco(path: Place, categories: Sequence[Mapping[str, Any]]) -> Iterator[CocoWriter]:
    """Yield a writer of a COCO file, which appears whole at the end of the block or not at all.

    Args:
        path: of the file; an existing one is replaced.
        categories: the entries of its categories.

    Raises:
        OutputError: the file cannot be written.
    """
    with (
        whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=temporary.parent) as images,
    ):
        info = {"description": f"written by sfss_ray {__version__}"}
        file.write(f'{{"info": {_json(info)}, "licenses": [],\n')
        file.write(f'"categories": {json.dumps(list(categories))},\n"annotations": [')
        writer = CocoWriter(file, images)
        yield writer
        file.write('],\n"images": [')
        images.seek(0)
        while part := images.read(2**20):
            file.write(part)
        file.write("]}\n")
