"""Guards against work that crashes its process again and again. No Ray here.

Ray restarts lost actors and repeats their tasks without end. A kill by the kernel or a fault in a
library raises no error that could be counted. So a process leaves files in the stage's folder: one
while it loads its network, and one that names the images it has begun. It removes them when the work
is done, and files that remain are counted as crashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from sfss_ray.storage.places import Place

_Result = TypeVar("_Result")

MAX_CRASHES = 3
"""Crashes allowed per image, and while loading, before it is skipped; one may be a lost machine's."""
_LOADING_PREFIX = ".start-"
_BEGUN_PREFIX = ".begun-"

_REASON_PREFIX = "its process died"
CRASH_REASON = (
    f"{_REASON_PREFIX} {MAX_CRASHES} times: out of memory, or a fault in a decoder; shrink or replace"
    " the image"
)


def killed_its_process(error: str | None) -> bool:
    """Return whether an image's stored error says that it crashed its process, in any release's text."""
    return error is not None and error.startswith(_REASON_PREFIX)


@contextlib.contextmanager
def loading_network(folder: Place, pool_size: int) -> Iterator[None]:
    """Keep a file in `folder` while a process loads its network; a crash leaves it there.

    Ray restarts an actor whose process crashes without end, but not one that raises.

    Args:
        folder: Where the stage writes.
        pool_size: Processes that load at the same time; each has a file.

    Raises:
        RuntimeError: too many processes crashed while they loaded.
    """
    if len(list(folder.glob(f"{_LOADING_PREFIX}*"))) >= pool_size - 1 + MAX_CRASHES:
        raise RuntimeError(
            f"{MAX_CRASHES} processes died while they loaded the network: out of memory, or a fault in"
            " a driver; fewer of them at a time (compute.mask_actors, compute.predict_actors) need less"
        )
    file = folder / f"{_LOADING_PREFIX}{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # the next file that is written reports a full disk
        _write(file, "")
    try:
        yield
    finally:  # also after an exception, which Ray reports
        _remove(file)


class Attempts:
    """Counts how often processes began each image of an item of work without finishing it."""

    def __init__(self, folder: Place, image_ids: Iterable[str], stage: str = ""):
        """
        Args:
            folder: Where the processes' results are written.
            image_ids: Ids of the item's images.
            stage: What the process does with the images, where others do the rest: 'decode'. Several
                stages may work on an item, and each counts its own crashes.
        """
        item = hashlib.sha256(json.dumps(list(image_ids)).encode()).hexdigest()[:16]
        self._file = folder / f"{_BEGUN_PREFIX}{item}{stage and f'-{stage}'}"
        self._counts = Counter[str]()
        # There is no file yet, or a crash has cut it short.
        with contextlib.suppress(OSError, ValueError):
            self._counts.update(json.loads(self._file.read_text()))

    def begin(self, image_id: str) -> bool:
        """Record that an image is begun; False where it has crashed too many processes."""
        if self._counts[image_id] >= MAX_CRASHES:
            return False
        self._counts[image_id] += 1
        with contextlib.suppress(OSError):  # the next file that is written reports a full disk
            _write(self._file, json.dumps(self._counts))
        return True

    def end(self, image_id: str) -> None:
        """Record that an image was finished without a crash."""
        del self._counts[image_id]

    def guard(
        self, image_id: str, work: Callable[[], _Result], skip: Callable[[], _Result]
    ) -> _Result:
        """Return what `work` makes of an image, or `skip` where it has crashed too many processes."""
        if not self.begin(image_id):
            return skip()
        result = work()
        self.end(image_id)
        return result

    def forget(self) -> None:
        """Remove the counts of a finished item."""
        _remove(self._file)


@contextlib.contextmanager
def writing_item(folder: Place, image_ids: Sequence[str]) -> Iterator[None]:
    """Count the processes that die while they write an item of work.

    Raises:
        RuntimeError: too many of them died.
    """
    attempts = Attempts(folder, image_ids, "write")
    if not attempts.begin(image_ids[0]):
        raise RuntimeError(
            f"{MAX_CRASHES} processes died while they wrote the results of {image_ids[0]!r} and the"
            f" {len(image_ids) - 1} images after it: out of memory; use nodes with more of it"
        )
    yield
    attempts.forget()


def forget_crashes(folder: Place) -> None:
    """Remove the files of crashed processes, of this run or an earlier one."""
    for prefix in (_LOADING_PREFIX, _BEGUN_PREFIX):
        for file in folder.glob(f"{prefix}*"):
            _remove(file)


def _write(file: Place, text: str) -> None:
    file.write_bytes(text.encode())


def _remove(file: Place) -> None:
    with contextlib.suppress(OSError):  # it was never written, or the folder is read-only
        file.unlink()
