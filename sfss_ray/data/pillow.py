"""Opening image files with Pillow, without Pillow's own limit on the number of pixels."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO

from PIL import Image

_PIXEL_LIMIT_LOCK = threading.Lock()


def open_image(source: Path | str | IO[bytes]) -> Image.Image:
    """Open an image file; only its header is read until pixels are needed.

    Pillow's limit is a global of the process and may be lower than `max_pixels`. It is lifted while
    the file is opened; callers check the size themselves.
    """
    with _PIXEL_LIMIT_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
