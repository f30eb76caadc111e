"""Addresses of object storage as text: their parts, and their form without a secret."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from sfss_ray.errors import DataError

# A path that was made from an address has lost slashes: s3:/bucket, and s3: for s3://.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+|\Z)")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,20}):(/+)([^/@:\s]*)(:[^@\s]*)?(?:@[^/@\s]*)*@")
"""User and password of an address in any text. A password may contain '/', as those of AWS do."""
_AZURE = ("abfs", "abfss")
"""Schemes whose addresses have the container in the place of the user."""
_WITHOUT_PORTS = ("s3", "gs", "gcs", *_AZURE)
"""Schemes with a bucket or an account where others have a host, which may have a port."""
_PORT = re.compile(r"[^/@:]*:\d+(/|\Z)")
_RESERVED = "%:!$&'()*+,;=-._~"
"""Characters of a user and a password that an address may contain; %2F remains %2F."""


class Address(NamedTuple):
    """An address of object storage, in parts."""

    scheme: str
    """In lower case; 'file' for a path on a disk, which is the key then."""
    root: str
    """Scheme, user, password and bucket: 's3://user:password@bucket'."""
    key: str
    """Name inside the bucket, without slashes at its ends."""
    options: str
    """What stands behind the '?'."""


def is_address(text: str) -> bool:
    """Return whether a text begins as an address does, and not as a path."""
    return _ADDRESS.match(text) is not None


def split_address(text: str) -> Address | None:
    """Return the parts of an address; None for a path.

    Raises:
        DataError: the address names no bucket, or its password cannot be told from its bucket.
    """
    match = _ADDRESS.match(text)
    if match is None:
        return None
    scheme = match[1].lower()
    location, _, options = text[match.end() :].partition("?")
    if scheme == "file":
        if not location:
            raise DataError(f"{text!r} names no folder: write an address as file:///folder")
        return Address(scheme, "", unquote(location), "")
    user, location = _split_user(scheme, location)
    bucket, _, key = location.partition("/")
    if not bucket:
        visible = without_secret(text.partition("?")[0])
        raise DataError(
            f"{visible!r} names no bucket: write an address as {scheme}://bucket/folder"
        )
    parts = filter(None, unquote(key).split("/"))
    return Address(scheme, f"{scheme}://{user}{bucket}", "/".join(parts), options)


def _split_user(scheme: str, location: str) -> tuple[str, str]:
    """Return 'user:password@' or '', and the rest of an address."""
    first = location.partition("/")[0]
    has_port = scheme not in _WITHOUT_PORTS and _PORT.match(location)
    if "@" in first:
        end = first.rindex("@")
    elif ":" in first and "@" in location and not has_port:
        if location.count("@") > 1:
            raise DataError(
                f"the password of an address {scheme}://... ends at one of several '@': write '@' as %40"
                " and '/' as %2F in it"
            )
        end = location.index("@")
    else:
        return "", location
    return f"{quote(location[:end], safe=_RESERVED)}@", location[end + 1 :]


def without_secret(text: str) -> str:
    """Return a text without users and passwords of addresses. The container of Azure stays."""
    return _USER.sub(_hidden, text)


def _hidden(match: re.Match[str]) -> str:
    has_container = match[1].lower() in _AZURE and match[3]
    return f"{match[1]}:{match[2]}" + (f"{match[3]}@" if has_container else "")


def has_password(text: str) -> bool:
    """Return whether an address in a text holds a user and a password."""
    match = _USER.search(text)
    return match is not None and match[4] is not None
