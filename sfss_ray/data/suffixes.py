"""Which files of a folder are images, judged by their suffix and by what Pillow can decode."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

from PIL import Image, features

from sfss_ray.data.pillow import open_image
from sfss_ray.storage.object_cache import read_copy
from sfss_ray.storage.places import Place

BASIC_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
"""Suffixes that every build of Pillow decodes."""
_OPTIONAL_SUFFIXES = (
    ".jfif",
    ".jpe",
    ".pgm",
    ".pnm",
    ".gif",
    ".jp2",
    ".j2k",
    ".avif",
    ".heic",
    ".heif",
)
_DECODERS = {"JPEG2000": "jpg_2000", "AVIF": "avif"}
"""Pillow format -> the library that a build of Pillow may lack."""
_COMPANION_SUFFIXES = (
    *(".txt", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".lst"),
    *(".md", ".rst", ".html", ".htm", ".log", ".db", ".py", ".sh", ".m", ".md5", ".sha256"),
)
"""Lists and notes that often lie among images; they are skipped without being reported."""


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the lower-case suffixes of files that count as images."""
    # Packages such as pillow_heif register further extensions when they are imported.
    formats = Image.registered_extensions()
    return BASIC_SUFFIXES + tuple(s for s in _OPTIONAL_SUFFIXES if _is_decodable(formats.get(s)))


def _is_decodable(pillow_format: str | None) -> bool:
    if pillow_format is None or pillow_format not in Image.OPEN:
        return False
    decoder = _DECODERS.get(pillow_format)
    available = features.get_supported_modules() + features.get_supported_codecs()
    return decoder is None or decoder in available


def is_basic(path: Place) -> bool:
    """Return whether a file has one of the `BASIC_SUFFIXES`."""
    return path.suffix.lower() in BASIC_SUFFIXES


def is_still_image(path: Place | str) -> bool:
    """Return whether a file with an image suffix holds a single picture; animated GIFs do not."""
    if not str(path).lower().endswith(".gif"):
        return True
    try:
        with read_copy(path, open_image) as image:
            return not getattr(image, "is_animated", False)
    except Exception:  # a damaged file is reported when it is read
        return True


class SkippedFiles:
    """Counts the files of an image folder that are not used as images, by suffix."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count a file by its name, except lists and notes such as classes.txt."""
        suffix = Path(name).suffix.lower()
        if suffix not in _COMPANION_SUFFIXES:
            self._count[suffix or "without suffix"] += 1

    def add_animated(self) -> None:
        """Count an animated GIF."""
        self._count[".gif (animated)"] += 1

    def summary(self) -> str:
        """Return '3 files left out by suffix: 2 .heic, 1 .svg', or '' if none was skipped."""
        total = self._count.total()
        if not total:
            return ""
        by_count = sorted(self._count.items(), key=lambda entry: (-entry[1], entry[0]))
        files = "file" if total == 1 else "files"
        counts = ", ".join(f"{count} {suffix}" for suffix, count in by_count)
        return f"{total} {files} left out by suffix: {counts}"
