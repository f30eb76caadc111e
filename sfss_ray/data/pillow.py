"""Opening image files with Pillow, whatever their size: the limit of pixels is ours to set."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO

from PIL import Image

_LIMIT = threading.Lock()


def open_image(source: Path | str | IO[bytes]) -> Image.Image:
    """The image, nothing but its header read yet.

    Pillow's own limit, one for the whole process and lower than `max_pixels` may be, is lifted for
    that moment.
    """
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
