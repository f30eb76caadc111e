"""Importing the user's modules on a worker from source that came with the network."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from sfss_ray.models.user_code.user_modules import SourceFile


class CodeFinder(importlib.abc.ExecutionLoader, importlib.abc.MetaPathFinder):
    """Finds and loads modules whose source is held here, before any other finder is asked."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceFile] = {}

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None):
        """The module's spec, where its source is held."""
        if fullname not in self.sources:
            return None
        package = self.is_package(fullname)
        origin = self.get_filename(fullname)
        spec = ModuleSpec(fullname, self, origin=origin, is_package=package)
        spec.has_location = True
        return spec

    def get_source(self, fullname: str) -> str:
        """The source; `inspect` and tracebacks read it here too."""
        return self._file(fullname).text

    def is_package(self, fullname: str) -> bool:
        """Whether the module may have modules below it."""
        return self._file(fullname).is_package

    def get_filename(self, fullname: str) -> str:
        """What `__file__` becomes: no file of that name exists, for only source travels."""
        path = fullname.replace(".", "/")
        return (
            f"<sfss_ray>/{path}/__init__.py"
            if self.is_package(fullname)
            else f"<sfss_ray>/{path}.py"
        )

    def _file(self, fullname: str) -> SourceFile:
        try:
            return self.sources[fullname]
        except KeyError:
            raise ImportError(f"no source of {fullname!r} travelled", name=fullname) from None


_FINDER = CodeFinder()
_SENT_FROM_HERE: set[str] = set()


def leave_alone(names: Iterable[str]) -> None:
    """Modules of these names travel from here, so this process imports them as it did before."""
    _SENT_FROM_HERE.update(names)


def make_importable(sources: dict[str, SourceFile]) -> None:
    """From now on imports of these names load these sources.

    Modules that were loaded under these names from elsewhere, or from older source, are forgotten.
    """
    arriving = {name: file for name, file in sources.items() if name not in _SENT_FROM_HERE}
    if not arriving:
        return
    held = _FINDER.sources
    changed = any(name in held and held[name] != file for name, file in arriving.items())
    stale = set(arriving) - set(held) | (set(held) if changed else set())
    for name in stale:
        sys.modules.pop(name, None)
    _FINDER.sources.update(arriving)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
