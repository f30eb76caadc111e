"""A user's own module, pickled together with the code that it needs on other machines.

Ray pickles a class by the name of its Python module, and a worker imports that. A worker on another
machine has the installed packages, but neither the user's folders nor changes that this process made
after its imports. Therefore the source of the user's modules is sent with the network. Where that is
not enough (a function was replaced after the import, or a file is read during it), classes and
functions are pickled by value instead.
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
from sfss_ray.models.user_code.code_finder import keep_local, make_importable
from sfss_ray.models.user_code.user_modules import (
    SourceFile,
    UserCode,
    find_user_code,
    imports_of,
    modules_without_source,
    spec_of,
)
from sfss_ray.runtime import cluster

if TYPE_CHECKING:
    from torch import nn

    from sfss_ray.models.source import Source

REMEDY = (
    "put its code into a package that is installed on every node, or make it plain Python without"
    " files"
)
"""What a user can do about a module that cannot be sent: the end of error messages."""


class Payload(NamedTuple):
    """What is sent: the source of the user's modules, and the pickled network that refers to them."""

    sources: dict[str, SourceFile]
    network: bytes

    def digest(self) -> str:
        """Return the SHA-256 of sources and network."""
        return hashlib.sha256(
            repr(sorted(self.sources.items())).encode() + self.network
        ).hexdigest()


class CarriedModule:
    """A user's own module without its weights, which pickles with the code that it needs.

    Args:
        module: The module, with its weights on the meta device.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.payload: Payload | None = None
        self.late_imports: set[str] = set()
        """Modules that only a pass through the module imports."""

    @cached_property
    def code(self) -> UserCode:
        """The user's Python modules that the module needs."""
        return find_user_code(_referenced_modules(self._pickle()) | self.late_imports)

    def add_import(self, name: str) -> bool:
        """Send another of the user's Python modules too; return whether its source was found."""
        if name in self.code.sources or name not in find_user_code([name]).sources:
            return False
        self.late_imports.add(name)
        del self.code
        return True

    def pack(self, *, by_value: bool = False) -> Payload:
        """Return the payload to send.

        Args:
            by_value: Pickle classes and functions as they are now, instead of by name.

        Raises:
            ConfigError: the module cannot be pickled.
        """
        keep_local(self.code.sources)
        return Payload(self.code.sources, self._pickle(by_value=by_value))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the module with its classes and functions as they are now.

        The fingerprint is empty if they cannot be pickled by value.
        """
        with contextlib.suppress(ConfigError):
            return hashlib.sha256(self._pickle(by_value=True)).hexdigest()
        return ""

    def _pickle(self, *, by_value: bool = False) -> bytes:
        modules = modules_without_source()
        try:
            return cluster.pickled(
                self.module, [*modules, *self.code.loaded()] if by_value else modules
            )
        except Exception as error:  # pickling calls methods of the user's classes
            raise ConfigError(
                f"the module cannot be sent to workers ({type(error).__name__}: {first_line(error)}):"
                " remove the attribute that cannot be pickled, such as an open file, a lock or a"
                " generator"
            ) from error

    def __reduce__(self):
        if self.payload is None:
            self.payload = self.pack()
        return _unpack, (self.payload,)


def _unpack(payload: Payload) -> CarriedModule:
    make_importable(payload.sources)
    carried = CarriedModule(pickle.loads(payload.network))
    carried.payload = payload  # a worker that sends the module on sends what it received
    return carried


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters of it."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def _referenced_modules(pickled: bytes) -> set[str]:
    """Return the names of loaded modules in a pickle, and of modules that pickled code imports."""
    strings = {arg for _, arg, _ in pickletools.genops(pickled) if isinstance(arg, str)}
    strings |= {part for string in strings for part in string.split(" ")}
    names = {string for string in strings if string in sys.modules}
    if "__main__" in strings:
        names |= set(_imports_of_main())
    # Code that no module can be imported for, as in a notebook, is pickled by value. Then the modules
    # that its functions import are among the strings of the pickle.
    if strings & _PICKLED_CODE:
        names |= {string for string in strings if _is_file_of_module(string)}
    return names


def _is_file_of_module(name: str) -> bool:
    """Whether a name is that of a Python module in a file."""
    spec = spec_of(name) if name.replace(".", "").isidentifier() else None
    return spec is not None and spec.has_location


_PICKLED_CODE = {"_make_function", "_make_skeleton_class"}
"""Functions that a pickle of code calls."""


def _imports_of_main() -> Iterator[str]:
    """Yield the modules that the file of the main module imports, even if they have not run yet."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file and Path(file).is_file():
        source = Path(file).read_text(encoding="utf-8", errors="replace")
        yield from imports_of(source, getattr(main, "__package__", None) or "")


_MOST_MISSING = 8
"""Modules that are added, one by one, because the trial misses them."""
_CHECKED: dict[str, Payload] = {}
"""Payloads that work, by the digest of the checked module."""


def check_travels(source: Source) -> None:
    """Check in a fresh process that workers can load a user's own module, before any stage starts.

    The process has only the installed packages. It builds the network from the payload, loads its
    weights and predicts images; its logits must equal those of this process. Modules that were already
    checked in this process, and networks of this package, need no check.

    Raises:
        ConfigError: the module cannot be pickled, needs something that a worker lacks, or gives other
            logits in a fresh process.
    """
    carried = source.carried
    if carried is None:
        return
    payload = carried.pack()
    key = payload.digest() + carried.fingerprint()
    if key not in _CHECKED:
        _CHECKED[key] = _working_payload(source, carried, payload)
    carried.payload = _CHECKED[key]


def _working_payload(source: Source, carried: CarriedModule, payload: Payload) -> Payload:
    """Return the payload if it works, else one that is pickled by value; ConfigError if neither does."""
    from sfss_ray.models.user_code.round_trip import RoundTrip

    trip = RoundTrip(source)
    problem = trip.problem(payload)
    for _ in range(_MOST_MISSING):
        if not (trip.missing_module and carried.add_import(trip.missing_module)):
            break
        payload = carried.pack()
        problem = trip.problem(payload)
    if not problem:
        return payload
    with contextlib.suppress(ConfigError):
        by_value = carried.pack(by_value=True)
        if not trip.problem(by_value):
            return by_value
    raise ConfigError(problem)
