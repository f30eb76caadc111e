"""Images as bytes and as files, good and bad."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(height: int = 6, width: int = 9) -> np.ndarray:
    """uint8 (H, W, 3) of random pixels."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(image: np.ndarray, orientation: int) -> bytes:
    """A PNG whose EXIF data says how a viewer has to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


def put(path: Path, content: np.ndarray | bytes | None = None) -> Path:
    """Write an image file (noise by default), with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = noise()
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def put_all(folder: Path, *names: str) -> Path:
    """Files of noise below a folder."""
    for name in names:
        put(folder / name)
    return folder


def label_map(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)
