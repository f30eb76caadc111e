"""Output folders by what went into them: a run is resumed with the same record and the same files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfss_ray.data.content import Content, read_contents, read_manifest, write_manifest
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import ResumeError
from sfss_ray.runtime.progress import ProgressSink, silent
from sfss_ray.runtime.run_folder import claim, refuse_other_run
from sfss_ray.storage.files import require_lasting

MANIFEST_FILE = "inputs.parquet"
"""Size, time and hash of every input file of a run, beside its record."""


def hash_of_ids(images: Sequence[ImageFile | LabelledImage]) -> str:
    """SHA-256 of the sorted image ids."""
    return hash_of_names(image.image_id for image in images)


def hash_of_names(names: Iterable[str]) -> str:
    """SHA-256 of sorted names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def labelled_files(what: str, pairs: Sequence[LabelledImage]) -> dict[str, Path]:
    """Files of labelled images by name."""
    images = {f"{what} images/{pair.image_id}": pair.path for pair in pairs}
    return images | {f"{what} labels/{pair.image_id}": pair.label_path for pair in pairs}


def unchanged_contents(
    folder: Path, files: Mapping[str, Path], progress: ProgressSink = silent
) -> dict[str, Content]:
    """The contents of a run's input files, which are those that the run in `folder` began with.

    Raises:
        ResumeError: files were replaced since then; their number and the first name.
    """
    known = read_manifest(folder / MANIFEST_FILE)
    found = read_contents(files, known, progress)
    replaced = [n for n in found if n in known and found[n].sha256 != known[n].sha256]
    if replaced:
        raise ResumeError(
            f"{len(replaced)} of {len(files)} input files were changed since the run in {str(folder)!r}"
            f" began (first: {replaced[0]!r}): give another output folder, or put the former files back"
        )
    return found


def claim_run(
    output_dir: Path | str,
    record: Mapping[str, Any],
    files: Mapping[str, Path],
    found: Mapping[str, Content] | None = None,
    progress: ProgressSink = silent,
) -> Path:
    """Make a folder this run's own, or resume in it: same record and same contents of input files.

    Args:
        output_dir: The run's folder.
        record: What decides the result, apart from contents.
        files: Input files by name.
        found: Their contents, where they are known already.
        progress: Called with a line of text while many files are read.

    Raises:
        ResumeError, OutputError: see `claim` and `unchanged_contents`.
    """
    folder = require_lasting(output_dir)
    refuse_other_run(folder, record)
    if found is None:
        found = unchanged_contents(folder, files, progress)
    folder = claim(folder, record)
    if found != read_manifest(folder / MANIFEST_FILE):
        write_manifest(folder / MANIFEST_FILE, found)
    return folder
