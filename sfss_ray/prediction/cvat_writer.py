"""An annotation file for CVAT, written image by image: its XML format "CVAT for images", version 1.1.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/ describes the elements. A mask has its
run lengths row by row inside its box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO
from xml.sax.saxutils import escape, quoteattr

from sfss_ray.data.class_sets import ClassSet
from sfss_ray.prediction.class_regions import ClassRegion
from sfss_ray.storage.files import whole_file
from sfss_ray.storage.places import Place


@dataclass
class CvatWriter:
    """Appends images with the regions of their classes; see `writing_cvat`."""

    file: IO[str]
    classes: ClassSet
    num_images: int = 0

    def add(self, name: str, size: tuple[int, int], masks: Sequence[str]) -> None:
        """Add an image.

        Args:
            name: of the image's file, as the task in CVAT has it.
            size: (height, width) in pixels.
            masks: elements from `cvat_mask`.
        """
        head = f'id="{self.num_images}" name={_quoted(name)} width="{size[1]}" height="{size[0]}"'
        lines = [f"  <image {head}>", *(f"    {mask}" for mask in masks), "  </image>"]
        self.file.write("\n".join(lines) + "\n")
        self.num_images += 1


def cvat_mask(region: ClassRegion, classes: ClassSet) -> str:
    """Return a region as an element of CVAT."""
    x, y, width, height = region.box
    runs = ", ".join(map(str, region.cvat_counts))
    label = _quoted(classes.classes[region.class_index])
    return (
        f'<mask label={label} source="auto" occluded="0" rle="{runs}" left="{x}" top="{y}"'
        f' width="{width}" height="{height}" z_order="0"></mask>'
    )


@contextmanager
def writing_cvat(path: Place, classes: ClassSet) -> Iterator[CvatWriter]:
    """Yield a writer of a CVAT file, which appears whole at the end of the block or not at all.

    Args:
        path: of the file; an existing one is replaced.
        classes: become the labels, with their colours.

    Raises:
        OutputError: the file cannot be written.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        file.write("  <version>1.1</version>\n  <meta>\n    <task>\n      <labels>\n")
        for name, colour in zip(classes.classes, classes.palette, strict=True):
            file.write(_label(name, colour))
        file.write("      </labels>\n    </task>\n  </meta>\n")
        yield CvatWriter(file, classes)
        file.write("</annotations>\n")


def _label(name: str, colour: tuple[int, int, int]) -> str:
    hexadecimal = "#" + "".join(f"{channel:02x}" for channel in colour)
    return (
        f"        <label><name>{escape(_printable(name))}</name><color>{hexadecimal}</color>"
        "<type>mask</type><attributes></attributes></label>\n"
    )


def _quoted(text: str) -> str:
    return quoteattr(_printable(text))


def _printable(text: str) -> str:
    """Return text without the control characters that XML cannot contain."""
    return "".join(c if c >= " " or c in "\t\n\r" else "\ufffd" for c in text)
