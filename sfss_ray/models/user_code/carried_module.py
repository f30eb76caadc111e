"""A user's own module on its way to other machines: with all of its code, or not at all.

Ray sends a class by the name of its module, and a worker imports it. A worker on another machine has
the installed packages, but not the user's folders, and not what this process did after its imports.
So the source of the user's modules is sent with the network. Where that is not enough (a function was
replaced after the import, a file is read during it), classes and functions are sent as they are in this
process.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import pickletools
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sfss_ray.errors import ConfigError
from sfss_ray.models.user_code.code_finder import leave_alone, make_importable
from sfss_ray.models.user_code.user_modules import OwnCode, SourceFile, imports_of, needed_code
from sfss_ray.runtime import cluster

if TYPE_CHECKING:
    from torch import nn

    from sfss_ray.models.source import Source

REMEDY = (
    "put its code into a package that is installed on every node, or make it plain Python without"
    " files"
)


class Payload(NamedTuple):
    """What travels: source of the user's modules, and the pickled network that refers to them."""

    sources: dict[str, SourceFile]
    network: bytes

    def digest(self) -> str:
        """SHA-256 of the whole."""
        return hashlib.sha256(
            repr(sorted(self.sources.items())).encode() + self.network
        ).hexdigest()


class CarriedModule:
    """A user's own module without its weights. It pickles with the code that it needs.

    Args:
        module: The module, its weights on the meta device.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.payload: Payload | None = None

    @cached_property
    def code(self) -> OwnCode:
        """The user's modules that the module needs."""
        return needed_code(_names_in(self._pickled()))

    def packed(self, *, by_value: bool = False) -> Payload:
        """The payload; `by_value` sends classes and functions as they are now, not their names.

        ConfigError for a module that cannot be pickled.
        """
        leave_alone(self.code.sources)
        return Payload(self.code.sources, self._pickled(by_value=by_value))

    def state(self) -> str:
        """SHA-256 of the module with its classes and functions as they are in this process."""
        with contextlib.suppress(ConfigError):
            return hashlib.sha256(self._pickled(by_value=True)).hexdigest()
        return ""

    def _pickled(self, *, by_value: bool = False) -> bytes:
        try:
            return cluster.pickled(self.module, self.code.loaded() if by_value else ())
        except Exception as error:  # pickling calls methods of the user's classes
            raise ConfigError(
                f"the module cannot be sent to workers ({type(error).__name__}: {first_line(error)}):"
                " remove the attribute that cannot be pickled, such as an open file, a lock or a"
                " generator"
            ) from error

    def __reduce__(self):
        if self.payload is None:
            self.payload = self.packed()
        return _unpacked, (self.payload,)


def _unpacked(payload: Payload) -> CarriedModule:
    make_importable(payload.sources)
    carried = CarriedModule(pickle.loads(payload.network))
    carried.payload = payload  # a worker that sends it on sends what it was given
    return carried


def first_line(error: BaseException) -> str:
    """An error's message in one line."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def _names_in(pickled: bytes) -> set[str]:
    """Names of loaded modules that occur in a pickle, and what the main module imports where it does."""
    words = {value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str)}
    words |= {part for word in words for part in word.split(" ")}
    names = {word for word in words if word in sys.modules}
    return names | set(_names_of_main(words)) if "__main__" in words else names


def _names_of_main(words: set[str]) -> Iterator[str]:
    """What the main module imports, also where it has not done so yet.

    Its classes are pickled as they are, so a function's imports are among the words of the pickle.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file and Path(file).is_file():
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        yield from imports_of(text, "")
        return
    yield from (word for word in words if word.isidentifier())


_CHECKED: dict[str, Payload] = {}
"""By the digest of what was checked: the payload that works."""


def check_travels(source: Source) -> None:
    """Try in a fresh process what a worker does with a user's own module, before any stage starts.

    The process has the installed packages alone. It builds the network from what travels, loads its
    weights and predicts an image; its logits must be those of this process. Code that was checked before
    in this process is not checked again, and other source models need no check.

    Raises:
        ConfigError: the module cannot be pickled, needs what a worker lacks, or does something else in
            a fresh process.
    """
    carried = source.carried
    if carried is None:
        return
    payload = carried.packed()
    key = payload.digest() + carried.state()
    if key not in _CHECKED:
        _CHECKED[key] = _payload_that_works(source, carried, payload)
    carried.payload = _CHECKED[key]


def _payload_that_works(source: Source, carried: CarriedModule, payload: Payload) -> Payload:
    from sfss_ray.models.user_code.round_trip import RoundTrip

    trip = RoundTrip(source)
    problem = trip.problem(payload)
    if not problem:
        return payload
    with contextlib.suppress(ConfigError):
        payload = carried.packed(by_value=True)
        if not trip.problem(payload):
            return payload
    raise ConfigError(problem)
