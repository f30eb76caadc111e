"""The output folder of a run: whose it is, and whether this call may go on in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfss_ray.config import differences
from sfss_ray.errors import ResumeError

RECORD_FILE = "config.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def claim(folder: Path | str, record: Mapping[str, Any]) -> Path:
    """Make `folder` this run's own, or go on in it when the same run made it.

    `record` is what decides the result: the flattened config without `compute`, the inputs and
    their hashes. It is kept as config.json.

    Raises:
        ResumeError: the folder belongs to a run with another record (the differences are named), or
            holds files but no record, or cannot be written.
    """
    folder = Path(folder).absolute()
    path = folder / RECORD_FILE
    wanted = json.loads(json.dumps(dict(record)))
    if path.exists():
        changed = differences(_read(path), wanted)
        if changed:
            shown = "; ".join(changed[:4]) + (
                f" and {len(changed) - 4} more" if changed[4:] else ""
            )
            raise ResumeError(
                f"{str(folder)!r} holds another run ({shown}): give the same settings to go on with"
                " it, or another output folder"
            )
        return folder
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ResumeError(
            f"output folder {str(folder)!r} holds files of something else: give a new or empty folder"
        )
    try:
        write_json(path, wanted)
    except OSError as error:
        raise ResumeError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror or error}): give a"
            " folder that you may write"
        ) from error
    return folder


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResumeError(f"{str(path)!r} is damaged: give another output folder") from error
    if not isinstance(record, dict):
        raise ResumeError(f"{str(path)!r} is no record of a run: give another output folder")
    return record
