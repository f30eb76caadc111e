"""Checkpoints in object storage, as files on this machine under their own names."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sfss_ray.errors import CheckpointError, SfssError
from sfss_ray.storage.object_cache import cache_folder, read_copy
from sfss_ray.storage.object_errors import meaning_of
from sfss_ray.storage.places import ObjectPath, Place, parsed


@contextlib.contextmanager
def checkpoint_on_disk(checkpoint: Place | str) -> Iterator[Path | str]:
    """Yield a checkpoint for readers that need a path.

    A path, or a name on the Hugging Face Hub, is yielded as it is. Of an address all objects below it
    are copied. Where it is an object, the JSON files beside it are copied too, which may describe it.
    Errors that the block raises name the address in place of the copy.

    Raises:
        CheckpointError: there is no such object, or it cannot be read.
    """
    location = parsed(checkpoint)
    if not isinstance(location, ObjectPath):
        yield location
        return
    objects = _objects_of(location)
    cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".view-", dir=cache_folder()) as folder:
        top = Path(folder, location.name or "checkpoint")
        root = top if location not in objects.values() else top.parent
        with _naming(location):
            for name, item in objects.items():
                _place_copy(item, root / name)
        try:
            yield top
        except SfssError as error:
            text = str(error).replace(str(top), str(location))
            raise type(error)(text.replace(str(top.parent), str(location.parent))) from error


def _objects_of(location: ObjectPath) -> dict[str, ObjectPath]:
    """Return the objects of a checkpoint by their names on the disk."""
    with _naming(location):
        below = {item.key[len(location.key) :].lstrip("/"): item for item, _ in location.files()}
        if below:
            return below
        if not location.is_file():
            location.require_bucket()
            raise CheckpointError(
                f"source model {str(location)!r} does not exist; give the address of a model file"
            )
        beside = {item.name: item for item in location.parent.glob("*.json")}
        return beside | {location.name: location}


@contextlib.contextmanager
def _naming(location: ObjectPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"source model {str(location)!r} cannot be read ({meaning_of(error)}): check the address,"
            " the network and this machine's credentials"
        ) from error


def _place_copy(item: ObjectPath, file: Path) -> None:
    """Make a file of an object's copy; a link, so that the copy stays as long as it is needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        read_copy(item, lambda copy: os.link(copy, file))
    except FileExistsError:
        raise
    except OSError:  # a disk without links
        read_copy(item, lambda copy: shutil.copyfile(copy, file))
