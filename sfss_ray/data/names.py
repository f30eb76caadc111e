"""Names of files as text that can be written anywhere."""

from __future__ import annotations

import os
from pathlib import PurePath


def printable(path: PurePath | str) -> str:
    r"""A path as valid UTF-8, which Parquet, JSON and terminals ask for.

    Bytes of a name that are no UTF-8 become \xNN; a path without any stays as it is.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
