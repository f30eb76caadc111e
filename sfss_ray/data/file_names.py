"""File names as text that any writer accepts."""

from __future__ import annotations

import os
from pathlib import PurePath

from sfss_ray.storage.places import ObjectPath


def printable(path: PurePath | ObjectPath | str) -> str:
    r"""Return a path as valid UTF-8, which Parquet, JSON and terminals require.

    Bytes that are not valid UTF-8 become \xNN. All other paths are returned unchanged.
    """
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")
