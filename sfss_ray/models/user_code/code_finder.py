"""Import of a user's modules on a worker, from source that was sent with the network."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from sfss_ray.models.user_code.user_modules import SourceFile


class CodeFinder(importlib.abc.ExecutionLoader, importlib.abc.MetaPathFinder):
    """Finds and loads the modules in `sources`; it comes before all other finders."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceFile] = {}

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None):
        """Return the spec of a module in `sources`, or None for any other module."""
        if fullname not in self.sources:
            return None
        package = self.is_package(fullname)
        origin = self.get_filename(fullname)
        spec = ModuleSpec(fullname, self, origin=origin, is_package=package)
        spec.has_location = True
        return spec

    def get_source(self, fullname: str) -> str:
        """Return the source of a module; `inspect` and tracebacks call this too."""
        return self._source_file(fullname).text

    def is_package(self, fullname: str) -> bool:
        """Whether a module may have submodules."""
        return self._source_file(fullname).is_package

    def get_filename(self, fullname: str) -> str:
        """Return the `__file__` of a module. No such file exists, since only source is sent."""
        path = fullname.replace(".", "/")
        return (
            f"<sfss_ray>/{path}/__init__.py"
            if self.is_package(fullname)
            else f"<sfss_ray>/{path}.py"
        )

    def _source_file(self, fullname: str) -> SourceFile:
        try:
            return self.sources[fullname]
        except KeyError:
            raise ImportError(f"no source of {fullname!r} was sent", name=fullname) from None


_FINDER = CodeFinder()
_SENT_FROM_HERE: set[str] = set()


def keep_local(names: Iterable[str]) -> None:
    """Keep importing modules from local files in this process, because it is the one that sends them."""
    _SENT_FROM_HERE.update(names)


def make_importable(sources: dict[str, SourceFile]) -> None:
    """Make imports of these names load these sources from now on.

    Modules that were loaded under these names from elsewhere, or from older source, are forgotten.
    """
    received = {name: file for name, file in sources.items() if name not in _SENT_FROM_HERE}
    if not received:
        return
    current = _FINDER.sources
    changed = any(name in current and current[name] != file for name, file in received.items())
    # A changed module may be imported by any other one that was sent, so all of them are reloaded.
    stale = set(received) - set(current) | (set(current) if changed else set())
    for name in stale:
        sys.modules.pop(name, None)
    _FINDER.sources.update(received)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
