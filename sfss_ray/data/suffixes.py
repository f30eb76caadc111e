"""Which files of a folder count as images: by suffix, as far as the installed Pillow decodes them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

from PIL import Image, features

from sfss_ray.data.pillow import open_image

BASIC_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
"""Read by every Pillow."""
_FURTHER_SUFFIXES = (
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
"""Pillow's format -> the library that a build of Pillow may lack."""
_SIDE_FILES = (
    *(".txt", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".lst"),
    *(".md", ".rst", ".html", ".htm", ".log", ".db", ".py", ".sh", ".m", ".md5", ".sha256"),
)
"""Lists and notes that often lie among images: no word about them."""


@cache
def image_suffixes() -> tuple[str, ...]:
    """Suffixes of files that count as images, in lower case."""
    known = Image.registered_extensions()  # of Pillow's own plugins, and of others once imported
    return BASIC_SUFFIXES + tuple(s for s in _FURTHER_SUFFIXES if _is_decoded(known.get(s)))


def _is_decoded(name: str | None) -> bool:
    if name is None or name not in Image.OPEN:
        return False
    decoder = _DECODERS.get(name)
    available = features.get_supported_modules() + features.get_supported_codecs()
    return decoder is None or decoder in available


def is_basic(path: Path) -> bool:
    """Whether a file has one of the common suffixes."""
    return path.suffix.lower() in BASIC_SUFFIXES


def is_still_image(path: Path | str) -> bool:
    """Whether a file with an image's suffix is one picture: an animated GIF is several."""
    if not str(path).lower().endswith(".gif"):
        return True
    try:
        with open_image(path) as image:
            return not getattr(image, "is_animated", False)
    except Exception:  # damaged files are named when they are read
        return True


class LeftOut:
    """Counts files that lie in an image folder and are not taken as images, by suffix."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count a file by its name; lists and notes such as classes.txt do not count."""
        suffix = Path(name).suffix.lower()
        if suffix not in _SIDE_FILES:
            self._count[suffix or "without suffix"] += 1

    def add_animated(self) -> None:
        """Count an animated GIF."""
        self._count[".gif (animated)"] += 1

    def line(self) -> str:
        """'3 files left out by suffix: 2 .heic, 1 .svg'; empty when there is none."""
        total = self._count.total()
        if not total:
            return ""
        kinds = sorted(self._count.items(), key=lambda entry: (-entry[1], entry[0]))
        files = "file" if total == 1 else "files"
        shown = ", ".join(f"{number} {kind}" for kind, number in kinds)
        return f"{total} {files} left out by suffix: {shown}"
