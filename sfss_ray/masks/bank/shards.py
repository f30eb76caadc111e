"""Where shards of masks lie: a folder, or an address that pyarrow.fs opens."""

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
_GOOGLE_PATIENCE_S = 30


class DamagedShardError(DataError):
    """A file that is no whole Parquet file; one that may not be read is not meant."""


class MovedRowError(DataError):
    """A row is no longer where it was when its folder was listed: its shard was made anew."""


@dataclass(frozen=True)
class Shard:
    """A file of masks as it was when it was listed: one that was made anew has another identity."""

    folder: str
    """Address of its folder."""
    path: str
    made_ns: int
    size: int

    @classmethod
    def at(cls, path: Path) -> Shard:
        """A file of this machine."""
        seen = path.stat()
        return cls(str(path.parent.absolute()), str(path), seen.st_mtime_ns, seen.st_size)

    @contextlib.contextmanager
    def opened(self) -> Iterator[pq.ParquetFile]:
        """Open for reading; what Arrow says is a DataError that names the file.

        Raises:
            DamagedShardError: its bytes are not those of a Parquet file.
            MovedRowError: there is no such file any more.
            DataError: it cannot be read, by its permissions or its disk.
        """
        filesystem = _open(self.folder)[0]
        try:
            footer = _footer(self) if self._is_as_listed() else None
            with pq.ParquetFile(
                self.path, filesystem=filesystem, metadata=footer, page_checksum_verification=True
            ) as parquet:
                yield parquet
        except FileNotFoundError as error:
            raise MovedRowError(
                f"masks file {self.path!r} is gone: make its masks again"
            ) from error
        except OSError as error:
            # Arrow tells of bytes that it cannot parse by an OSError too; those of a disk have a number.
            if error.errno is None and not is_address(self.folder):
                raise _damaged(self.path, error) from error
            raise DataError(
                f"masks file {self.path!r} cannot be read ({_reason(error)}): make it readable, or"
                " remove it and make its masks again"
            ) from error
        except pa.ArrowException as error:
            raise _damaged(self.path, error) from error

    def _is_as_listed(self) -> bool:
        seen = _open(self.folder)[0].get_file_info(self.path)
        return (seen.mtime_ns or 0, seen.size or 0) == (self.made_ns, self.size)


@lru_cache(maxsize=128)
def _footer(shard: Shard) -> pq.FileMetaData:
    """Where its rows lie in the file: to read that anew takes longer than to read a row."""
    with pq.ParquetFile(shard.path, filesystem=_open(shard.folder)[0]) as parquet:
        return parquet.metadata


def _damaged(path: str, error: Exception) -> DamagedShardError:
    return DamagedShardError(
        f"masks file {path!r} is damaged ({_reason(error)}): remove it and make its masks again"
    )


def _reason(error: Exception, length: int = 120) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:length]


def folder_address(folder: Path | str) -> str:
    """An absolute path, or an address as pyarrow.fs reads it."""
    text = os.fspath(folder)
    scheme = _URI.match(text)
    if scheme is None:
        return str(Path(text).absolute())
    # A Path made of an address has lost slashes: s3:/bucket, file:/folder.
    slashes = ":///" if scheme[1] == "file" else "://"
    return scheme[1] + slashes + text[scheme.end() :]


def is_address(folder: str) -> bool:
    """Whether this is no path but an address as pyarrow.fs reads it."""
    return _URI.match(folder) is not None


def local_folder(folder: Path | str) -> Path:
    """The folder as an absolute path; DataError for an address that is no path."""
    address = folder_address(folder)
    if is_address(address):
        raise DataError(
            f"masks are written to a folder, not to {without_secret(address)!r}: give a path on a disk"
            " that all nodes share, and copy the finished files there"
        )
    return require_lasting(address)


def without_secret(address: str) -> str:
    """The address without user and password, for messages."""
    return re.sub(r"://[^/@]*@", "://", address)


def unreachable(address: str, error: Exception) -> DataError:
    """What a user is told of a folder or an address that cannot be listed."""
    where, reason = without_secret(address), _reason(error, 400)
    if not is_address(address):
        return DataError(f"masks folder {where!r} cannot be read ({reason}): make it readable")
    return DataError(
        f"masks {where!r} cannot be reached ({reason}): see that the address, the network and this"
        " machine's credentials are right"
    )


def list_shards(address: str) -> list[Shard]:
    """Finished shards of a folder, by name; hidden (half-written) files do not count."""
    filesystem, root = _open(address)
    found = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
    return [
        Shard(address, file.path, file.mtime_ns or 0, file.size or 0)
        for file in sorted(found, key=lambda f: f.path)
        if file.type == FileType.File
        and file.base_name.endswith(".parquet")
        and not file.base_name.startswith(".")
    ]


@lru_cache(maxsize=16)
def _open(address: str) -> tuple[FileSystem, str]:
    """The file system of an address and the folder's path there."""
    if not is_address(address):
        return LocalFileSystem(), address
    try:
        return FileSystem.from_uri(_with_patience(address))
    except OSError as error:
        raise unreachable(address, error) from error
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"masks {without_secret(address)!r}: no such kind of place ({error}); give a path, or an"
            " address that begins with s3://, gs:// or file://"
        ) from error


def _with_patience(address: str) -> str:
    """Google's client tries for a quarter of an hour before it says that it has no credentials."""
    if not address.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}retry_limit_seconds={_GOOGLE_PATIENCE_S}"
