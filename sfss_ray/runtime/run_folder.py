"""The output folder of a run: which run it belongs to, and whether this call may resume it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sfss_ray.config import differences
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.runtime.run_claim import CLAIM_FILE, LOCK_FILE
from sfss_ray.storage.files import lasting_place, write_text, writing
from sfss_ray.storage.places import ObjectPath, Place, to_place

RECORD_FILE = "config.json"


def write_json(path: Place, content: Any) -> None:
    """Write an indented JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def refuse_inside(output_dir: Place | str, images: Place | str) -> None:
    """Refuse an output folder whose pictures a repeated call would take for images.

    Raises:
        DataError: the output folder lies in the folder of images, or is that folder.
    """
    output, folder = to_place(output_dir), to_place(images)
    if isinstance(output, ObjectPath) or isinstance(folder, ObjectPath):
        is_inside = str(output).startswith(f"{folder}/") or output == folder
    else:
        is_inside = output.resolve().is_relative_to(folder.resolve())
    if is_inside:
        raise DataError(
            f"output folder {str(output_dir)!r} lies in the folder of images {str(images)!r}: give one"
            " beside it"
        )


def refuse_other_run(folder: Place | str, record: Mapping[str, Any]) -> bool:
    """Refuse a folder that belongs to another run, without writing anything.

    Returns:
        True where the folder holds a run with this record, which can be resumed; False where it is
        new or empty.

    Raises:
        ResumeError: the folder belongs to a run with another record (the message names the
            differences), or holds files but no record.
        OutputError: an address cannot be reached.
    """
    folder = to_place(folder)
    if isinstance(folder, ObjectPath):
        with writing(folder):
            return _refuse_other_run(folder, record)
    return _refuse_other_run(folder, record)


def _refuse_other_run(folder: Place, record: Mapping[str, Any]) -> bool:
    path = folder / RECORD_FILE
    if path.exists():
        changed = differences(_read(path), _as_json(record))
        if changed:
            more = f" and {len(changed) - 4} more" if changed[4:] else ""
            raise ResumeError(
                f"{str(folder)!r} holds another run ({'; '.join(changed[:4])}{more}): give the same"
                " settings to resume it, or another output folder"
            )
        return True
    if folder.is_file() or (folder.is_dir() and _has_files(folder)):
        raise ResumeError(
            f"output folder {str(folder)!r} holds files of something else: give a new or empty folder"
        )
    return False


def _has_files(folder: Place) -> bool:
    """Return whether a folder holds anything but the claim of a run that is about to begin."""
    return any(child.name not in (CLAIM_FILE, LOCK_FILE) for child in folder.iterdir())


def claim(folder: Place | str, record: Mapping[str, Any]) -> Place:
    """Claim `folder` for this run, or resume the same run in it.

    Args:
        folder: The output folder, a path or an address; it is created where it is missing.
        record: Everything that decides the result: the flattened config without `compute`, the
            inputs and their hashes. It is written to config.json.

    Returns:
        The folder, an absolute path or an address.

    Raises:
        ResumeError: see `refuse_other_run`.
        OutputError: the folder cannot be written, or Ray deletes it after the job that runs here.
    """
    folder = lasting_place(folder)
    if not refuse_other_run(folder, record):
        write_json(folder / RECORD_FILE, _as_json(record))
    return folder


def _as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record as it is read back from JSON: tuples become lists."""
    return json.loads(json.dumps(dict(record)))


def _read(path: Place) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        if isinstance(path, ObjectPath) and isinstance(error, OSError):
            raise
        raise ResumeError(f"{str(path)!r} is damaged: give another output folder") from error
    if not isinstance(record, dict):
        raise ResumeError(f"{str(path)!r} is not the record of a run: give another output folder")
    return record
