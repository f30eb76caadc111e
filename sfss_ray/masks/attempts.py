"""Which image a process was at when it died: the kernel's kill or a decoder's fault raises no error."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path

from sfss_ray.pool import MOST_DEATHS

_DIED = "its process died"
DIED = (
    f"{_DIED} {MOST_DEATHS} times: out of memory, or a fault in a decoder; shrink or replace"
    " the image (it is tried again once its file is newer than its masks)"
)


def killed_its_process(error: str | None) -> bool:
    """Whether a row's error says so, in the words of any release."""
    return error is not None and error.startswith(_DIED)


class Attempts:
    """Images of a shard that were begun and not ended, kept beside the shard until it is there.

    Ray starts lost actors and their tasks again without end, so an image that kills its process
    would do so for ever.
    """

    def __init__(self, shard: Path):
        self._file = shard.with_name(f".{shard.name}.begun")
        self._begun = Counter[str]()
        with contextlib.suppress(OSError, ValueError):  # none yet, or cut short with its process
            self._begun.update(json.loads(self._file.read_text()))

    def begin(self, image_id: str) -> bool:
        """Note that an image is begun; False where too many processes have died of it."""
        if self._begun[image_id] >= MOST_DEATHS:
            return False
        self._begun[image_id] += 1
        with contextlib.suppress(OSError):  # a full disk is told of by the shard
            self._file.write_text(json.dumps(self._begun))
        return True

    def end(self, image_id: str) -> None:
        """The image did no harm."""
        del self._begun[image_id]

    def forget(self) -> None:
        """The shard is there."""
        self._file.unlink(missing_ok=True)
