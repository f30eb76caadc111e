"""The formats of masks that other tools write, and which of them a file or folder has.

The format is recognised from the content of the first files, preferably of those with the name of an
image.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sfss_ray.data.file_names import printable
from sfss_ray.errors import DataError
from sfss_ray.masks.importing.amg_files import METADATA
from sfss_ray.masks.importing.json_files import PICKLE_ADVICE, kind_of_json, load_json

MaskFormat = Literal[
    "auto", "amg", "arrays", "coco", "id_map", "sa1b", "transformers", "ultralytics"
]
LABELS = {
    "amg": "segment-anything's amg.py, or lists of its records",
    "arrays": "numpy arrays",
    "coco": "COCO JSON",
    "id_map": "an id per pixel",
    "sa1b": "SA-1B",
    "transformers": "transformers' mask-generation pipeline",
    "ultralytics": "results of ultralytics",
}
"""Format -> its description for people."""
FOLDER, JSON, TEXT = "", ".json", ".txt"
ID_MAPS = (".png", ".tif", ".tiff")
ARRAYS = (".npz", ".npy")
SUFFIXES = {
    "amg": (JSON, FOLDER),
    "arrays": ARRAYS,
    "coco": (JSON,),
    "id_map": ID_MAPS,
    "sa1b": (JSON,),
    "transformers": (JSON, ".npz"),
    "ultralytics": (JSON, TEXT),
}
"""Format -> suffixes of its files; FOLDER is a folder of PNG files. The first is preferred."""
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
_KNOWN_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes if suffix}
_KNOWN_SUFFIXES.update(_PICKLES)
_MAX_UNKNOWN = 20  # JSON files that are opened to find one of a known format


@dataclass(frozen=True)
class SourceFiles:
    """The files of a mask source that may contain masks."""

    root: Path
    by_suffix: dict[str, dict[str, Path]]
    """Suffix -> name (path below `root` without suffix) -> path; FOLDER for folders of amg.py."""

    @classmethod
    def list(cls, root: Path) -> SourceFiles:
        """List a folder with its subfolders, or a single file."""
        by_suffix: dict[str, dict[str, Path]] = defaultdict(dict)
        for path, is_folder in _walk(root) if root.is_dir() else [(root, False)]:
            suffix = FOLDER if is_folder else path.suffix.lower()
            if path == root and suffix not in _KNOWN_SUFFIXES:
                suffix = JSON  # a single file is opened, whatever its name
            relative = Path(path.name) if path == root else path.relative_to(root)
            name = printable(relative if is_folder else relative.with_suffix(""))
            by_suffix[suffix][name.replace(os.sep, "/")] = path
        return cls(root, dict(by_suffix))

    def entries(self, format_name: str) -> dict[str, Path]:
        """Return the files of a format by name."""
        entries: dict[str, Path] = {}
        for suffix in SUFFIXES[format_name]:
            entries = self.by_suffix.get(suffix, {}) | entries
        return entries


def _walk(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield (path, is a folder of amg.py) below a folder, without hidden ones."""
    visited, amg_folders = {root.resolve()}, set()
    for parent, folders, names in os.walk(root, onerror=_raise_unlistable, followlinks=True):
        inner = []
        for name in sorted(folders):
            path = Path(parent, name)
            if name.startswith(".") or (path.is_symlink() and path.resolve() in visited):
                continue
            if _is_amg_folder(path):
                amg_folders.add(path)
                yield path, True
            inner.append(name)
            visited.add(path.resolve())
        folders[:] = inner
        for name in [] if Path(parent) in amg_folders else sorted(names):
            if not name.startswith("."):
                yield Path(parent, name), False


def _raise_unlistable(error: OSError) -> None:
    """Raise a DataError, because `os.walk` would silently skip a folder that it cannot list."""
    raise DataError(
        f"masks to import: {error.filename!r} cannot be listed ({error.strerror or error}): grant this"
        " user read permission"
    ) from error


def _is_amg_folder(path: Path) -> bool:
    """Return whether a folder is output of amg.py; one without a table must contain a mask."""
    return (path / METADATA).exists() or (path / "0.png").exists()


@dataclass(frozen=True)
class Recognised:
    """The format of a mask source."""

    format: str
    content: Any = None
    """Content of the COCO file."""
    path: Path | None = None
    """The COCO file."""


def recognise(
    files: SourceFiles, image_ids: Collection[str], format_name: MaskFormat = "auto"
) -> Recognised | None:
    """Return the format of a mask source; None if no file can contain masks.

    Args:
        files: of the source.
        image_ids: of the images.
        format_name: the format that the user states, or "auto".

    Raises:
        DataError: the files are pickles, damaged, or of no known format; there are several COCO files.
    """
    if format_name == "coco":
        return _single_coco(files)
    if format_name != "auto":
        return Recognised(format_name)
    if files.by_suffix.get(FOLDER):
        return Recognised("amg")
    error = None
    if files.by_suffix.get(JSON):
        try:
            return _recognise_json(files, image_ids)
        except DataError as caught:
            error = caught
    by_suffix = dict.fromkeys(ARRAYS, "arrays") | dict.fromkeys(ID_MAPS, "id_map")
    for suffix, name in (by_suffix | {TEXT: "ultralytics"}).items():
        if files.by_suffix.get(suffix):
            return Recognised(name)
    if error is not None:
        raise error
    pickle = next((s for s in _PICKLES if files.by_suffix.get(s)), None)
    if pickle is not None:
        path = min(files.by_suffix[pickle].values())
        raise DataError(f"masks to import: {str(path)!r} is a pickle; {PICKLE_ADVICE}")
    return None


def _recognise_json(files: SourceFiles, image_ids: Collection[str]) -> Recognised:
    """Open JSON files until one has a known format.

    Raises:
        DataError: none of the first files has.
    """
    candidates = files.by_suffix[JSON]
    first_error, num_unknown, is_empty = None, 0, False
    for name in sorted(candidates, key=lambda name: (name not in image_ids, name)):
        try:
            content = load_json(candidates[name])
        except DataError as error:
            content, kind, first_error = None, None, first_error or error
        else:
            kind = kind_of_json(content)
        if kind == "coco":
            return _single_coco(files)
        if kind == "empty":
            is_empty = True
            continue
        if kind is not None:
            return Recognised(kind)
        if _is_batch(content):
            raise DataError(
                f"masks to import: {str(candidates[name])!r} lists the masks of several images without"
                " their names: save the result of each image in a file NAME.json"
            )
        num_unknown += 1
        if num_unknown == _MAX_UNKNOWN:
            break
    if is_empty:
        return Recognised("amg")
    if first_error is not None:
        raise DataError(f"masks to import: {first_error}") from first_error
    path = str(min(candidates.values()))
    raise DataError(
        f"masks to import: {path!r} is JSON of no known form: allowed are COCO, SA-1B, lists of records"
        " with 'segmentation', and dumps of transformers and ultralytics"
    )


def _is_batch(content: Any) -> bool:
    """Return whether a pipeline of transformers was called with a list of images."""
    return isinstance(content, list) and kind_of_json(content[0]) == "transformers"


def _single_coco(files: SourceFiles) -> Recognised:
    paths = sorted(files.by_suffix.get(JSON, {}).values())
    if len(paths) != 1:
        first = f", the first is {paths[0].name!r}" if paths else ""
        raise DataError(
            f"masks to import: {str(files.root)!r} contains {len(paths)} JSON files{first}: give one"
            " file of COCO JSON"
        )
    return Recognised("coco", load_json(paths[0]), paths[0])
