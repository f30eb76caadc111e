"""The JSON record of a study: its rows, and what produced them.

A record states the command, the commit, the device and the library versions, so that a reader can
repeat it. Each row stands on one line, and floats are rounded to three decimals.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sfss_ray.storage.files import write_text

SCHEMA_VERSION = 1
DECIMALS = 3
_LIBRARIES = ("torch", "numpy", "opencv-python", "scikit-image")


def write_record(
    path: Path,
    command: str,
    device: str,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the record of a study, whole or not at all.

    Args:
        path: the JSON file.
        command: the command line that repeats the study.
        device: "cpu" or a CUDA device. The name of the hardware is added.
        rows: plain values, one dictionary for each line of the table.
        facts: further plain values about the whole study.
    """
    header = {
        "schema_version": SCHEMA_VERSION,
        "study": path.stem,
        "command": command,
        "commit": current_commit(),
        "device": device_name(device),
        "versions": library_versions(),
    }
    write_text(path, format_record(header | dict(facts or {}), rows))


def format_record(header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the record as JSON with one line for each entry of the header and each row."""
    entries = [f" {json.dumps(name)}: {json.dumps(_rounded(header[name]))}" for name in header]
    lines = ",\n".join(f"  {json.dumps(_rounded(row))}" for row in rows)
    return "{\n" + ",\n".join([*entries, f' "rows": [\n{lines}\n ]']) + "\n}\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a record.

    Raises:
        ValueError: for a record of another schema version.
    """
    record = json.loads(path.read_text())
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {record.get('schema_version')}, this code reads"
            f" {SCHEMA_VERSION}: run the study again"
        )
    return record["rows"]


def current_commit() -> str:
    """Return the short hash of the checked-out commit, with `+` when files differ from it."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    process = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return process.stdout.strip()


def device_name(device: str) -> str:
    """Return the name of a CUDA device, or that of the processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU ({names[0] if names else platform.machine()})"


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def _rounded(value: Any) -> Any:
    """Round floats at any depth. JSON has no NaN, so None stands for it."""
    if isinstance(value, float):
        return round(value, DECIMALS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
