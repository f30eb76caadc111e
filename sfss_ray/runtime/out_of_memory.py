"""Explains a lack of memory, of the machine or of its GPU, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sfss_ray.errors import DataError, SfssError

_MARKERS = ("out of memory", "allocate", "ALLOC_FAILED", "Insufficient memory")
"""In the errors of torch on a CPU and on a GPU, of cuDNN and cuBLAS, and of OpenCV."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a library's error means that an allocation failed."""
    if isinstance(error, SfssError):  # it says what to do already
        return False
    return isinstance(error, MemoryError) or any(marker in str(error) for marker in _MARKERS)


@contextlib.contextmanager
def enough_memory(content: str, advice: str) -> Iterator[None]:
    """Turn a failed allocation inside the block into one line.

    Args:
        content: What needs the memory, in the plural, such as '512x512 pixels'.
        advice: What to do about it.

    Raises:
        DataError: the memory is too small.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(f"{content} are too many for the memory: {advice}") from error
