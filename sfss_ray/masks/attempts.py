"""What a process was at when it died: the kernel's kill or a decoder's fault raises no error."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MOST_DEATHS = 3
"""Of processes at one image, or before their first; one that is lost by chance costs one."""
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


_STARTS = ".start-"


@contextlib.contextmanager
def started(folder: Path, pool: int) -> Iterator[None]:
    """While a process loads its network; a file stays behind where it dies of that.

    Ray starts an actor again without end whose process dies, but not one that raises.

    Raises:
        RuntimeError: so many processes died that it is no chance; of `pool` that start at the same
            time each has a file, too.
    """
    if len(list(folder.glob(f"{_STARTS}*"))) >= pool - 1 + MOST_DEATHS:
        raise RuntimeError(
            f"{MOST_DEATHS} processes died while they loaded the network: out of memory, or a fault in"
            " a driver; fewer of them at a time (compute.mask_actors) need less"
        )
    file = folder / f"{_STARTS}{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # a full disk is told of by the first shard
        file.touch()
    try:
        yield
    finally:  # also where it raises: that is told by the error
        _remove(file)


def forget_starts(folder: Path) -> None:
    """Remove what processes left that died, of this run or one before."""
    for file in folder.glob(f"{_STARTS}*"):
        _remove(file)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # never made, or a folder that may only be read
        file.unlink()
