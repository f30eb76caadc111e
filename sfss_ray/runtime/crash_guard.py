"""What processes of a pool were at when they died: the kernel's kill or a fault raises no error.

Ray starts lost actors and their tasks again without end. So a process leaves a file in the stage's
folder while it loads its network, and one that names the images of its item that it has begun; both go
when the work is done. No Ray here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST_DEATHS = 3
"""Of processes at one thing before it is given up; one that is lost by chance costs one."""
_STARTS = ".start-"
_BEGUN = ".begun-"

_DIED = "its process died"
DIED = (
    f"{_DIED} {MOST_DEATHS} times: out of memory, or a fault in a decoder; shrink or replace"
    " the image"
)


def killed_its_process(error: str | None) -> bool:
    """Whether an image's error says so, in the words of any release."""
    return error is not None and error.startswith(_DIED)


@contextlib.contextmanager
def started(folder: Path, pool: int) -> Iterator[None]:
    """While a process loads its network; a file stays in `folder` where it dies of that.

    Ray starts an actor again without end whose process dies, but not one that raises.

    Raises:
        RuntimeError: so many processes died that it is no chance; of `pool` that start at the same
            time each has a file, too.
    """
    if len(list(folder.glob(f"{_STARTS}*"))) >= pool - 1 + MOST_DEATHS:
        raise RuntimeError(
            f"{MOST_DEATHS} processes died while they loaded the network: out of memory, or a fault in"
            " a driver; fewer of them at a time (compute.mask_actors, compute.predict_actors) need less"
        )
    file = folder / f"{_STARTS}{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # a full disk is told of by what is written next
        file.touch()
    try:
        yield
    finally:  # also where it raises: that is told by the error
        _remove(file)


class Attempts:
    """Images of an item of work that were begun and not ended."""

    def __init__(self, folder: Path, image_ids: Iterable[str]):
        """
        Args:
            folder: where the stage writes.
            image_ids: of the item.
        """
        item = hashlib.sha256(json.dumps(list(image_ids)).encode()).hexdigest()[:16]
        self._file = folder / f"{_BEGUN}{item}"
        self._begun = Counter[str]()
        with contextlib.suppress(OSError, ValueError):  # none yet, or cut short with its process
            self._begun.update(json.loads(self._file.read_text()))

    def begin(self, image_id: str) -> bool:
        """Note that an image is begun; False where too many processes have died of it."""
        if self._begun[image_id] >= MOST_DEATHS:
            return False
        self._begun[image_id] += 1
        with contextlib.suppress(OSError):  # a full disk is told of by what is written next
            self._file.write_text(json.dumps(self._begun))
        return True

    def end(self, image_id: str) -> None:
        """The image did no harm."""
        del self._begun[image_id]

    def forget(self) -> None:
        """The item is done."""
        _remove(self._file)


def forget_deaths(folder: Path) -> None:
    """Remove what processes left that died, of this run or one before."""
    for kind in (_STARTS, _BEGUN):
        for file in folder.glob(f"{kind}*"):
            _remove(file)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # never made, or a folder that may only be read
        file.unlink()
