"""Which Python code is the user's own: code that other machines may not have.

Installed is what a package manager put where Python looks for packages, on this machine and, by the
rules of a cluster, on every node. All else is the user's: a script's folder, a notebook's, a clone on
PYTHONPATH. A project that is installed in editable mode is the user's too: its files lie on this machine
alone, and they change between runs.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType

_ON_EVERY_WORKER = frozenset(
    {
        "sfss_ray",
        "torch",
        "torchvision",
        "ray",
        "numpy",
        "cv2",
        "PIL",
        "pyarrow",
        "segment_anything",
        "skimage",
        "optuna",
        "matplotlib",
        "jinja2",
        "tyro",
        "transformers",
    }
)
"""What this package needs, wherever it lies: a torch built in place is no code of the user's."""

_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class SourceFile:
    """A module's source."""

    text: str
    is_package: bool


@dataclass(frozen=True)
class OwnCode:
    """The user's modules that a network needs, and what they import."""

    sources: dict[str, SourceFile] = field(default_factory=dict)
    """By the names they are imported under."""
    binary: dict[str, str] = field(default_factory=dict)
    """Name -> file of the modules that are no Python source (compiled extensions)."""

    def loaded(self) -> list[ModuleType]:
        """Those of them that this process has imported."""
        loaded = (sys.modules.get(name) for name in sorted(self.sources))
        return [module for module in loaded if module and module.__name__ in self.sources]


def needed_code(names: Iterable[str]) -> OwnCode:
    """The user's modules among some names, and all of the user's that these import.

    Imports are read from the source, so those inside functions are found as well. Of a package every
    module that is loaded belongs to it, since packages import their parts by computed names.
    """
    code = OwnCode()
    waiting, known = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in known or name == "__main__":
            continue
        known.add(name)
        spec = spec_of(name)
        if spec is None or not is_own(spec):
            continue
        waiting += _parents(name)
        is_package = spec.submodule_search_locations is not None
        if is_package:
            waiting += [loaded for loaded in list(sys.modules) if loaded.startswith(name + ".")]
        text = _source_of(spec)
        if text is None:
            code.binary[name] = str(spec.origin)
            continue
        code.sources[name] = SourceFile(text, is_package)
        waiting += imports_of(text, name if is_package else name.rpartition(".")[0])
    return code


def spec_of(name: str) -> ModuleSpec | None:
    """Where a module is, or would be imported from. Nothing is imported."""
    module = sys.modules.get(name)
    if module is not None:
        return _spec_of_loaded(name, module)
    parent, _, _ = name.rpartition(".")
    path = None
    if parent:
        package = spec_of(parent)
        path = package and package.submodule_search_locations
        if path is None:
            return None
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # a finder of others may raise anything
            continue
        if spec is not None:
            return spec
    return None


def _spec_of_loaded(name: str, module: ModuleType) -> ModuleSpec | None:
    spec = getattr(module, "__spec__", None)
    if isinstance(spec, ModuleSpec):
        return spec
    file = getattr(module, "__file__", None)
    return importlib.util.spec_from_file_location(name, file) if file else None


def is_own(spec: ModuleSpec) -> bool:
    """Whether a module is the user's own, by the place of its file."""
    if spec.name.partition(".")[0] in _ON_EVERY_WORKER:
        return False
    # Modules that are built in or frozen have no file. Namespace packages have folders alone.
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    return any(not is_installed(Path(place)) for place in places if place)


def is_installed(place: Path) -> bool:
    """Whether a file or folder belongs to Python or to an installed package."""
    # Some installers link files into site-packages, so both ends of a link are looked at.
    for path in (place.absolute(), place.resolve()):
        if _PACKAGE_FOLDERS & set(path.parts):
            return True
        if any(path.is_relative_to(folder) for folder in _folders_of_python()):
            return True
    return any(
        folder != place.absolute() and _is_recorded(folder, place.absolute().relative_to(folder))
        for folder in _search_folders()
        if place.absolute().is_relative_to(folder)
    )


@functools.cache
def _folders_of_python() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    named = [sysconfig.get_path(kind) for kind in kinds]
    named += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({path for name in named for path in (Path(name), Path(name).resolve())})


def _search_folders() -> list[Path]:
    return [Path(entry).absolute() for entry in sys.path if entry]


def _is_recorded(folder: Path, place: Path) -> bool:
    """Whether a distribution in the folder lists the file (`pip install --target FOLDER`).

    Only RECORD counts: an egg-info folder lists the sources of a project that is being worked on.
    """
    return place.parts[0] in _recorded(folder)


@functools.cache
def _recorded(folder: Path) -> frozenset[str]:
    names: set[str] = set()
    for record in folder.glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8", errors="replace").splitlines()
        names |= {line.partition(",")[0].partition("/")[0].strip('"') for line in lines}
    return frozenset(names)


def installed_search_path() -> list[str]:
    """The entries of sys.path that other machines have too: those of Python and of packages."""
    return [
        entry
        for entry in sys.path
        if entry
        and (
            is_installed(Path(entry) / "_")
            or _recorded(Path(entry).absolute())
            or (entry.endswith(".zip") and Path(entry).is_relative_to(sys.base_prefix))
        )
    ]


def on_every_worker() -> dict[str, str]:
    """Packages that this one needs, by the file of their __init__, where they lie anywhere else."""
    loaded = ((name, sys.modules.get(name)) for name in _ON_EVERY_WORKER)
    files = {name: getattr(module, "__file__", None) for name, module in loaded}
    return {name: file for name, file in files.items() if file and not is_installed(Path(file))}


def _source_of(spec: ModuleSpec) -> str | None:
    """The module's source; None for anything but Python source."""
    if spec.has_location and spec.origin and spec.origin.endswith(tuple(SOURCE_SUFFIXES)):
        path = Path(spec.origin)
        if path.is_file():
            return importlib.util.decode_source(path.read_bytes())
    if not spec.has_location and spec.submodule_search_locations is not None:
        return ""  # a namespace package
    try:
        return spec.loader.get_source(spec.name)  # pyright: ignore
    except Exception:  # no loader, or one that knows no sources
        return None


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def imports_of(text: str, package: str) -> Iterator[str]:
    """Names that some source imports anywhere, absolute; `package` is that of its relative imports.

    What comes after `from x import` may be a module or not, so it is among them.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _import_by_call(node, package)


def _import_by_call(call: ast.Call, package: str) -> Iterator[str]:
    """importlib.import_module("name") and __import__("name")."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    first = call.args[0] if call.args else None
    if name not in ("import_module", "__import__") or not isinstance(first, ast.Constant):
        return
    if isinstance(first.value, str):
        yield _absolute(first.value, package)


def _absolute(name: str, package: str) -> str:
    """The name of a relative import as an absolute one."""
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    if not level:
        return name
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - level + 1])
    return f"{base}.{rest}" if base and rest else base or rest
