"""Items of decoded images: what a task on a CPU reads for the process of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from sfss_ray.data.content import Content, read_with_content
from sfss_ray.data.decoding import decode_image, image_size
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.errors import DataError
from sfss_ray.runtime.crash_guard import CRASH_REASON, Attempts
from sfss_ray.storage.places import Place

_Result = TypeVar("_Result")

_SAMPLED = 16  # images whose sizes decide how many one item holds
_CHANNELS = 3


@dataclass(frozen=True)
class DecodedImage:
    """An image on its way to a network."""

    file: ImageFile
    pixels: np.ndarray | None = None
    """uint8 (H, W, 3) RGB. None where it has an error, or where the network's process decodes it."""
    content: Content | None = None
    """Of the image file, once it was read."""
    error: str | None = None
    """Why it cannot be used."""

    @property
    def is_pending(self) -> bool:
        """Whether it still has to be decoded."""
        return self.pixels is None and self.error is None

    def decode(
        self, max_pixels: int | None, explain: Callable[[ImageFile, Exception], str]
    ) -> DecodedImage:
        """Return the image read and decoded, or with an error.

        Args:
            max_pixels: Images with more pixels are refused; None allows any number.
            explain: Returns the text of an error, or raises it again if it is not the image's.
        """
        content = None
        try:
            data, content = read_with_content(self.file.path)
            pixels = decode_image(data, max_pixels, self.file.white)
        except Exception as error:  # decoders of damaged files raise many types
            return DecodedImage(self.file, content=content, error=explain(self.file, error))
        return DecodedImage(self.file, pixels, content)


def decode_images(
    files: Sequence[ImageFile],
    attempts: Attempts,
    max_bytes: int,
    decode: Callable[[DecodedImage], DecodedImage],
    crash_reason: str = CRASH_REASON,
) -> list[DecodedImage]:
    """Return the images of an item in their order.

    Args:
        files: Of the item.
        attempts: Counts the crashes of decoders. An image with too many is not tried again.
        max_bytes: Memory of the item. Images for which it has no room are left pending.
        decode: Reads and decodes a pending image.
        crash_reason: Error of an image that crashed too many processes.
    """
    images, size = [], 0
    for file in files:
        image = DecodedImage(file)
        if size >= max_bytes:
            images.append(image)
            continue
        image = attempts.guard(
            file.image_id,
            partial(decode, image),
            partial(DecodedImage, file, error=crash_reason),
        )
        size += 0 if image.pixels is None else image.pixels.nbytes
        images.append(image)
    attempts.forget()
    return images


def run_network(
    images: Sequence[DecodedImage],
    folder: Place,
    work: Callable[[DecodedImage], _Result],
    skip: Callable[[DecodedImage], _Result],
) -> list[_Result]:
    """Return what the process of a network makes of each image of an item, in their order.

    Args:
        images: Of the item, as `decode_images` returns them.
        folder: Where the counts of crashed processes are kept.
        work: Returns the result of an image.
        skip: Returns that of an image which crashed too many processes.
    """
    attempts = Attempts(folder, [image.file.image_id for image in images], "network")
    results = [
        attempts.guard(image.file.image_id, partial(work, image), partial(skip, image))
        for image in images
    ]
    attempts.forget()
    return results


def images_that_fit(files: Sequence[ImageFile], max_bytes: int) -> int:
    """Return how many decoded images an item has room for, at least one, by the sizes of a sample.

    Args:
        files: All images of a run.
        max_bytes: Memory of an item.
    """
    sizes = [_decoded_bytes(file) for file in evenly_spread(list(files), _SAMPLED)]
    return max(1, max_bytes // max(sizes, default=1))


def _decoded_bytes(file: ImageFile) -> int:
    try:
        height, width = image_size(file.path)
    except DataError:  # its row will say why
        return 1
    return max(1, height * width * _CHANNELS)
