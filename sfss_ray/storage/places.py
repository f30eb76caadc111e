"""Places: files on disks, and objects at addresses that pyarrow.fs opens, such as `s3://bucket/folder`.

A place on a disk is a `pathlib.Path`. An object is an `ObjectPath`, which has the part of pathlib's
interface that this package uses, with the same errors. Code that is handed a place needs no other case.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

from sfss_ray.errors import DataError
from sfss_ray.storage.addresses import has_password, is_address, split_address, without_secret
from sfss_ray.storage.object_errors import is_missing_bucket, meaning_of, patiently

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# pyarrow is imported where an address is used: a config is read without it.
_FILE, _FOLDER, _NOT_FOUND = "File", "Directory", "NotFound"
"""Names of pyarrow.fs.FileType."""
_Given = TypeVar("_Given")
_GOOGLE = ("gs", "gcs")
_GOOGLE_RETRY_SECONDS = 30
"""Google's client reports missing credentials after 15 minutes of retries by default."""


class ObjectStatus(NamedTuple):
    """Size and modification time of an object, named as in `os.stat_result`."""

    st_size: int
    """In bytes."""
    st_mtime_ns: int
    """Nanoseconds since the epoch."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """A file or a folder in object storage. It is a text, so that it can be sent to other processes.

    A folder is a prefix of names and exists where an object has it. An object is written by one
    upload, so that readers see all of it or nothing. The methods raise OSError as pathlib's do:
    FileNotFoundError for an object that is missing.
    """

    root: str
    """Scheme and bucket as given, which may contain a secret: 's3://bucket'."""
    key: str
    """Name inside the bucket, '' for the bucket itself: 'runs/first/config.json'."""
    options: str = ""
    """Options of pyarrow.fs after the '?' of the address: 'region=eu-central-1'."""
    listed: ObjectStatus | None = field(default=None, compare=False)
    """Size and time of the object as a listing reported them; None where it was not listed."""

    @property
    def address(self) -> str:
        """The address as pyarrow.fs reads it. It may contain a secret."""
        return f"{self._folder_address}{f'?{self.options}' if self.options else ''}"

    @property
    def _folder_address(self) -> str:
        return f"{self.root}/{quote(self.key)}" if self.key else self.root

    def __str__(self) -> str:
        """Return the address for messages and records: without user, password and options."""
        root = without_secret(self.root)
        return f"{root}/{self.key}" if self.key else root

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    @property
    def has_password(self) -> bool:
        """Whether the address itself holds a user and a password."""
        return has_password(self.root)

    def __truediv__(self, name: str) -> ObjectPath:
        return replace(self, key=str(PurePosixPath(self.key, name)), listed=None)

    @property
    def name(self) -> str:
        """Last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """Last part of the key without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """Suffix of the last part of the key, with its dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """The folder that contains it; the bucket is its own parent."""
        parent = str(PurePosixPath(self.key).parent)
        return replace(self, key="" if parent == "." else parent, listed=None)

    def with_name(self, name: str) -> ObjectPath:
        """Return the place beside this one with another name."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """Return itself: an address is always absolute."""
        return self

    def exists(self) -> bool:
        """Return whether there is such an object or folder."""
        return self._info().type.name != _NOT_FOUND

    def is_file(self) -> bool:
        """Return whether there is such an object."""
        return self._info().type.name == _FILE

    def is_dir(self) -> bool:
        """Return whether there is an object below this name."""
        return self._info().type.name == _FOLDER

    def require_bucket(self) -> None:
        """Raise OSError if the bucket is missing; one that may not be listed counts as there."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(_open_bucket(self.root, self.options)[1])
        try:
            patiently(lambda: self.filesystem.get_file_info(selector))
        except OSError as error:
            if is_missing_bucket(error):
                raise

    def stat(self) -> ObjectStatus:
        """Return size and modification time of an object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        info = self._info()
        if info.type.name != _FILE:
            raise FileNotFoundError(f"there is no object {str(self)!r}")
        return _status(info)

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield the objects and folders directly in this folder, by name."""
        for info in self._list(recursive=False):
            child = self / info.base_name
            is_object = info.type.name == _FILE
            yield replace(child, listed=_status(info)) if is_object else child

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the objects and folders directly in this folder whose name matches the pattern."""
        return (child for child in self.iterdir() if fnmatch.fnmatchcase(child.name, pattern))

    def files(self) -> Iterator[tuple[ObjectPath, ObjectStatus]]:
        """Yield all objects below this folder by name, with their status, from one listing."""
        bucket_length = len(_open_bucket(self.root, self.options)[1]) + 1
        for info in self._list(recursive=True):
            if info.type.name == _FILE:
                key, status = info.path[bucket_length:], _status(info)
                yield ObjectPath(self.root, key, self.options, status), status

    def open_input(self) -> Any:
        """Open the object for reading at any position; a pyarrow.NativeFile.

        Raises:
            OSError: it is missing, or cannot be read.
        """
        return patiently(lambda: self.filesystem.open_input_file(self._path))

    def read_bytes(self) -> bytes:
        """Return the content of the object.

        Raises:
            OSError: it is missing, or cannot be read.
        """
        return patiently(self._read)

    def _read(self) -> bytes:
        with self.filesystem.open_input_stream(self._path) as stream:
            return stream.read()

    def read_text(self) -> str:
        """Return the content of the object as UTF-8 text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> int:
        """Write the object, whole or not at all, and return its size.

        Raises:
            OSError: it cannot be written.
        """
        patiently(lambda: self._write(data))
        return len(data)

    def _write(self, data: bytes) -> None:
        with self.filesystem.open_output_stream(self._path) as stream:
            stream.write(data)

    def upload(self, file: Path) -> None:
        """Write the object from a file on this machine, whole or not at all.

        Raises:
            OSError: the file cannot be read, or the object cannot be written.
        """
        from pyarrow.fs import copy_files

        patiently(lambda: copy_files(str(file), self._path, destination_filesystem=self.filesystem))

    def download(self, file: Path) -> None:
        """Write the content of the object to a file on this machine.

        Raises:
            OSError: the object cannot be read, or the file cannot be written.
        """
        patiently(lambda: self._download(file))

    def _download(self, file: Path) -> None:
        with self.filesystem.open_input_stream(self._path) as stream, open(file, "wb") as output:
            while block := stream.read(2**20):
                output.write(block)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists as soon as an object lies in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object.

        Raises:
            FileNotFoundError: there is none, and `missing_ok` is False.
        """
        try:
            patiently(lambda: self.filesystem.delete_file(self._path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    @property
    def filesystem(self) -> FileSystem:
        """The file system of the bucket.

        Raises:
            DataError: pyarrow.fs cannot open addresses of this kind.
        """
        return _open_bucket(self.root, self.options)[0]

    @property
    def filesystem_path(self) -> str:
        """The name by which the file system knows it: bucket and key."""
        return self._path

    @property
    def _path(self) -> str:
        bucket = _open_bucket(self.root, self.options)[1]
        return f"{bucket}/{self.key}" if self.key else bucket

    def _info(self) -> FileInfo:
        return patiently(lambda: self.filesystem.get_file_info(self._path))

    def _list(self, recursive: bool) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path, allow_not_found=True, recursive=recursive)
        infos = patiently(lambda: self.filesystem.get_file_info(selector))
        return sorted(infos, key=lambda info: info.path)


Place = Path | ObjectPath
"""A file or a folder: on a disk, or in object storage."""


def to_place(address: Place | str) -> Place:
    """Return the place of an absolute or relative path, or of an address.

    Args:
        address: A path, or an address that pyarrow.fs opens. `file:///folder` is a path.

    Raises:
        DataError: an address names no bucket.
    """
    if isinstance(address, ObjectPath):
        return address
    text = os.fspath(address)
    parts = split_address(text)
    if parts is None:
        return Path(text).absolute()
    if parts.scheme == "file":
        return Path("/", parts.key)
    return ObjectPath(parts.root, parts.key, parts.options)


def parsed(address: _Given) -> _Given | Place:
    """Return the place of an address; a path and anything else stays as it was given.

    Raises:
        DataError: an address names no bucket.
    """
    if isinstance(address, str | Path) and is_address(os.fspath(address)):
        return to_place(address)
    return address


def address_of(location: Place) -> str:
    """Return the text that `to_place` turns into the same place. It may contain a secret."""
    return location.address if isinstance(location, ObjectPath) else str(location)


def to_text(location: Place) -> str:
    """Return a place as text with its listed status, for other processes. It may contain a secret."""
    if not isinstance(location, ObjectPath):
        return str(location)
    return json.dumps([location.root, location.key, location.options, location.listed])


def from_text(text: str) -> Place:
    """Return the place of a text of `to_text`."""
    if not text.startswith("["):
        return Path(text)
    root, key, options, listed = json.loads(text)
    return ObjectPath(root, key, options, ObjectStatus(*listed) if listed else None)


@contextlib.contextmanager
def reaching(location: Place | str, role: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a DataError that names the place and the reason.

    Args:
        location: What the block reads.
        role: What the place is, for the error: 'target images'.

    Raises:
        DataError: the storage does not answer, the bucket is missing, or access is denied.
    """
    try:
        yield
    except OSError as error:
        raise unreachable(location, error, role) from error


def unreachable(location: Place | str, error: Exception, role: str = "") -> DataError:
    """Return the error for a place that cannot be read."""
    return DataError(
        f"{f'{role}: ' if role else ''}{without_secret(str(location))!r} cannot be reached"
        f" ({without_secret(meaning_of(error, 400))}): check the address, the network and this machine's"
        " credentials"
    )


def _status(info: FileInfo) -> ObjectStatus:
    return ObjectStatus(info.size or 0, info.mtime_ns or 0)


@lru_cache(maxsize=64)
def _open_bucket(root: str, options: str) -> tuple[FileSystem, str]:
    """Return the file system of a bucket, and the bucket's path in it."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    scheme = root.partition(":")[0]
    if scheme in _GOOGLE and "retry_limit_seconds=" not in options:
        options = "&".join(filter(None, (options, f"retry_limit_seconds={_GOOGLE_RETRY_SECONDS}")))
    try:
        return FileSystem.from_uri(f"{root}{f'?{options}' if options else ''}")
    except OSError as error:
        raise unreachable(root, error) from error
    except (pa.ArrowException, ValueError) as error:
        # The text may contain the whole address.
        reason = without_secret(str(error).replace(f"?{options}", ""))
        raise DataError(
            f"{without_secret(root)!r}: unknown kind of address ({reason}); give a path, or an address"
            " that begins with s3://, gs:// or file://"
        ) from error
