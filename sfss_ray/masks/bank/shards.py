"""Shards of masks in a folder, or at an address that pyarrow.fs opens."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from sfss_ray.errors import DataError
from sfss_ray.storage.files import require_lasting

_URI = re.compile(r"^([a-z][a-z0-9]+):/+")
_GOOGLE_RETRY_SECONDS = 30


class DamagedShardError(DataError):
    """A readable file is not a whole Parquet file."""


class MovedRowError(DataError):
    """A row is no longer where it was when its folder was listed, because its shard was rewritten."""


@dataclass(frozen=True)
class Shard:
    """A file of masks as it was listed; after a rewrite the same path is a different shard."""

    folder: str
    """Address of its folder."""
    path: str
    mtime_ns: int
    size: int
    """In bytes."""

    @classmethod
    def from_path(cls, path: Path) -> Shard:
        """Return the shard of a local file."""
        status = path.stat()
        return cls(str(path.parent.absolute()), str(path), status.st_mtime_ns, status.st_size)

    @contextlib.contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Open the file for reading; errors of Arrow become a DataError that names the file.

        Raises:
            DamagedShardError: its bytes are not those of a Parquet file.
            MovedRowError: the file no longer exists.
            DataError: it cannot be read because of its permissions or its disk.
        """
        filesystem = _open_filesystem(self.folder)[0]
        try:
            footer = _footer(self) if self._is_unchanged() else None
            with pq.ParquetFile(
                self.path, filesystem=filesystem, metadata=footer, page_checksum_verification=True
            ) as parquet:
                yield parquet
        except FileNotFoundError as error:
            raise MovedRowError(
                f"masks file {self.path!r} is gone: make its masks again"
            ) from error
        except OSError as error:
            # Arrow also raises OSError for bytes that it cannot parse. Disk errors have a number.
            if error.errno is None and not is_address(self.folder):
                raise _damaged(self.path, error) from error
            raise DataError(
                f"masks file {self.path!r} cannot be read ({_reason(error)}): make it readable, or"
                " remove it and make its masks again"
            ) from error
        except pa.ArrowException as error:
            raise _damaged(self.path, error) from error

    def _is_unchanged(self) -> bool:
        status = _open_filesystem(self.folder)[0].get_file_info(self.path)
        return (status.mtime_ns or 0, status.size or 0) == (self.mtime_ns, self.size)


@lru_cache(maxsize=128)
def _footer(shard: Shard) -> pq.FileMetaData:
    """Return the positions of the rows in the file; reading them takes longer than reading a row."""
    with pq.ParquetFile(shard.path, filesystem=_open_filesystem(shard.folder)[0]) as parquet:
        return parquet.metadata


def _damaged(path: str, error: Exception) -> DamagedShardError:
    return DamagedShardError(
        f"masks file {path!r} is damaged ({_reason(error)}): remove it and make its masks again"
    )


def _reason(error: Exception, length: int = 120) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:length]


def folder_address(folder: Path | str) -> str:
    """Return an absolute path, or an address as pyarrow.fs reads it."""
    text = os.fspath(folder)
    scheme = _URI.match(text)
    if scheme is None:
        return str(Path(text).absolute())
    # A Path made from an address has lost slashes: s3:/bucket, file:/folder.
    slashes = ":///" if scheme[1] == "file" else "://"
    return scheme[1] + slashes + text[scheme.end() :]


def is_address(folder: str) -> bool:
    """Return whether a folder is an address as pyarrow.fs reads it, not a path."""
    return _URI.match(folder) is not None


def local_folder(folder: Path | str) -> Path:
    """Return the folder as an absolute path.

    Raises:
        DataError: the folder is an address, not a path.
    """
    address = folder_address(folder)
    if is_address(address):
        raise DataError(
            f"masks are written to a folder, not to {without_secret(address)!r}: give a path on a disk"
            " that all nodes share, and copy the finished files there"
        )
    return require_lasting(address)


def without_secret(address: str) -> str:
    """Return the address without user and password, for messages."""
    return re.sub(r"://[^/@]*@", "://", address)


def unreachable(address: str, error: Exception) -> DataError:
    """Return the error for a folder or an address that cannot be listed."""
    folder, reason = without_secret(address), _reason(error, 400)
    if not is_address(address):
        return DataError(f"masks folder {folder!r} cannot be read ({reason}): make it readable")
    return DataError(
        f"masks {folder!r} cannot be reached ({reason}): check the address, the network and this"
        " machine's credentials"
    )


def list_shards(address: str) -> list[Shard]:
    """Return the finished shards of a folder by name, without hidden (half-written) files."""
    filesystem, root = _open_filesystem(address)
    files = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
    return [
        Shard(address, file.path, file.mtime_ns or 0, file.size or 0)
        for file in sorted(files, key=lambda f: f.path)
        if file.type == FileType.File
        and file.base_name.endswith(".parquet")
        and not file.base_name.startswith(".")
    ]


@lru_cache(maxsize=16)
def _open_filesystem(address: str) -> tuple[FileSystem, str]:
    """Return the file system of an address and the folder's path in it."""
    if not is_address(address):
        return LocalFileSystem(), address
    try:
        return FileSystem.from_uri(_with_retry_limit(address))
    except OSError as error:
        raise unreachable(address, error) from error
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"masks {without_secret(address)!r}: unknown kind of address ({error}); give a path, or an"
            " address that begins with s3://, gs:// or file://"
        ) from error


def _with_retry_limit(address: str) -> str:
    """Limit the retries of Google's client, which reports missing credentials after 15 minutes."""
    if not address.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}retry_limit_seconds={_GOOGLE_RETRY_SECONDS}"
