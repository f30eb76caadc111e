"""Shards of masks in a folder, or at an address that pyarrow.fs opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from sfss_ray.errors import DataError
from sfss_ray.storage.addresses import without_secret
from sfss_ray.storage.object_cache import ChangedObjectError, local_copy
from sfss_ray.storage.places import ObjectPath, ObjectStatus, Place, unreachable

_LOCAL = LocalFileSystem()


class DamagedShardError(DataError):
    """A readable file is not a whole Parquet file."""


class MovedRowError(DataError):
    """A row is no longer where it was when its folder was listed, because its shard was rewritten."""


@dataclass(frozen=True)
class Shard:
    """A file of masks as it was listed; after a rewrite the same path is a different shard."""

    location: Place
    mtime_ns: int
    size: int
    """In bytes."""

    @classmethod
    def from_path(cls, location: Place) -> Shard:
        """Return the shard of a file as it is now."""
        listed = location.listed if isinstance(location, ObjectPath) else None
        status = listed or location.stat()
        return cls(location, status.st_mtime_ns, status.st_size)

    @property
    def path(self) -> str:
        """The file's name for messages."""
        return str(self.location)

    @contextlib.contextmanager
    def open(self, few_columns: bool = False) -> Iterator[pq.ParquetFile]:
        """Open the file for reading; errors of Arrow become a DataError that names the file.

        Args:
            few_columns: Read only parts of an object over the network. Otherwise it is copied to this
                node's disk, where its rows are read again and again.

        Raises:
            DamagedShardError: its bytes are not those of a Parquet file.
            MovedRowError: the file no longer exists.
            DataError: it cannot be read because of its permissions or its disk.
        """
        try:
            file, filesystem, footer = self._opened(few_columns)
            with pq.ParquetFile(
                file, filesystem=filesystem, metadata=footer, page_checksum_verification=True
            ) as parquet:
                yield parquet
        except (FileNotFoundError, ChangedObjectError) as error:
            raise MovedRowError(
                f"masks file {self.path!r} is gone: make its masks again"
            ) from error
        except OSError as error:
            # Arrow also raises OSError for bytes that it cannot parse. Disk errors have a number.
            if error.errno is None and isinstance(self.location, Path):
                raise _damaged(self.path, error) from error
            raise DataError(
                f"masks file {self.path!r} cannot be read ({_reason(error)}): make it readable, or"
                " remove it and make its masks again"
            ) from error
        except pa.ArrowException as error:
            raise _damaged(self.path, error) from error

    def _opened(self, few_columns: bool) -> tuple[str, FileSystem, pq.FileMetaData | None]:
        """Return the file, its file system, and its footer where that is known to be of this file."""
        if isinstance(self.location, Path):
            status = _LOCAL.get_file_info(str(self.location))
            unchanged = (status.mtime_ns or 0, status.size or 0) == (self.mtime_ns, self.size)
            return str(self.location), _LOCAL, _footer(self) if unchanged else None
        if few_columns:
            return self.location.filesystem_path, self.location.filesystem, None
        return str(self._copy()), _LOCAL, _footer(self)

    def _copy(self) -> Path:
        """Return the file itself, or the copy of an object on this node."""
        if isinstance(self.location, Path):
            return self.location
        return local_copy(replace(self.location, listed=ObjectStatus(self.size, self.mtime_ns)))


@lru_cache(maxsize=128)
def _footer(shard: Shard) -> pq.FileMetaData:
    """Return the positions of the rows in the file; reading them takes longer than reading a row."""
    with pq.ParquetFile(str(shard._copy()), filesystem=_LOCAL) as parquet:
        return parquet.metadata


def _damaged(path: str, error: Exception) -> DamagedShardError:
    return DamagedShardError(
        f"masks file {path!r} is damaged ({_reason(error)}): remove it and make its masks again"
    )


def _reason(error: Exception, length: int = 120) -> str:
    return without_secret((str(error).splitlines() or [type(error).__name__])[0])[:length]


def list_shards(folder: Place) -> list[Shard]:
    """Return the finished shards of a folder by name, without hidden (half-written) files."""
    if isinstance(folder, ObjectPath):
        return [
            Shard.from_path(child)
            for child in folder.iterdir()
            if child.listed is not None and _is_shard_name(child.name)
        ]
    files = _LOCAL.get_file_info(FileSelector(str(folder), allow_not_found=True))
    return [
        Shard(Path(file.path), file.mtime_ns or 0, file.size or 0)
        for file in sorted(files, key=lambda f: f.path)
        if file.type == FileType.File and _is_shard_name(file.base_name)
    ]


def _is_shard_name(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".")


def unreadable(folder: Place, error: Exception) -> DataError:
    """Return the error for a folder of masks that cannot be listed."""
    if isinstance(folder, ObjectPath):
        return unreachable(folder, error, "masks")
    return DataError(
        f"masks folder {str(folder)!r} cannot be read ({_reason(error, 400)}): make it readable"
    )
