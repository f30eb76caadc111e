"""Image files for tests, as bytes and on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(height: int = 6, width: int = 9) -> np.ndarray:
    """Return uint8 (H, W, 3) random pixels, the same in every call."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: np.ndarray | Image.Image, file_format: str = "PNG", **options) -> bytes:
    """Return the bytes of an image file."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def rotated(image: np.ndarray, orientation: int) -> bytes:
    """Return the bytes of a PNG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


def put(path: Path, content: np.ndarray | bytes | None = None) -> Path:
    """Write an image file (noise by default) and create its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = noise()
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def put_all(folder: Path, *names: str) -> Path:
    """Write images of noise below a folder and return the folder."""
    for name in names:
        put(folder / name)
    return folder


def label_map(*rows: list[int]) -> np.ndarray:
    """Return a uint8 (H, W) label map of the given rows."""
    return np.array(rows, np.uint8)
