"""Search for the Python modules that are the user's own, which other machines may not have.

A module is installed if a package manager put it where Python looks for packages. By the rules of a
cluster, every node has the same installed packages. All other modules are the user's: those in a
script's folder, in a notebook's folder, or in a clone on PYTHONPATH. Projects installed in editable
mode are the user's too, since their files are on this machine only and change between runs.
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

_DEPENDENCIES = frozenset(
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
"""This package and its dependencies. Every worker has them, even if they are built in place here."""

_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class SourceFile:
    """The source of a module."""

    text: str
    is_package: bool


@dataclass(frozen=True)
class UserCode:
    """The user's modules that a network needs, including those that they import."""

    sources: dict[str, SourceFile] = field(default_factory=dict)
    """Source files by module name."""
    binary: dict[str, str] = field(default_factory=dict)
    """Paths of modules that are not Python source (compiled extensions), by module name."""

    def loaded(self) -> list[ModuleType]:
        """Return the modules with source that this process has imported."""
        modules = (sys.modules.get(name) for name in sorted(self.sources))
        return [module for module in modules if module and module.__name__ in self.sources]


def find_user_code(names: Iterable[str]) -> UserCode:
    """Return the user's modules among some names, and all user modules that they import.

    Imports are read from the source, which also finds imports inside functions. All loaded modules of a
    package are included, since packages may import their parts by computed names.
    """
    code = UserCode()
    pending, visited = list(names), set()
    while pending:
        name = pending.pop()
        if name in visited or name == "__main__":
            continue
        visited.add(name)
        # Names after `from x import` need not be modules, and installed modules need not be sent.
        spec = spec_of(name)
        if spec is None or not is_user_module(spec):
            continue

        # A module can only be imported together with its packages.
        pending += _parent_packages(name)
        is_package = spec.submodule_search_locations is not None
        if is_package:
            pending += [loaded for loaded in list(sys.modules) if loaded.startswith(name + ".")]
        source = _source_of(spec)
        if source is None:
            code.binary[name] = str(spec.origin)
            continue
        code.sources[name] = SourceFile(source, is_package)
        pending += imports_of(source, name if is_package else name.rpartition(".")[0])
    return code


def modules_without_source() -> list[ModuleType]:
    """Return the loaded modules that no other process can import, although they are the user's.

    They have no file, as a module that was made by hand for notebook cells, or they bear a dotted name
    without a package of that name. Their code can only be pickled by value.
    """
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType)
        and module.__name__ == name != "__main__"
        and _is_without_source(name, module)
    ]


def _is_without_source(name: str, module: ModuleType) -> bool:
    top, _, _ = name.partition(".")
    if top in _DEPENDENCIES or top in sys.builtin_module_names:
        return False
    spec = _spec_of_loaded(name, module)
    if spec is None:
        package = sys.modules.get(top)
        package_spec = _spec_of_loaded(top, package) if isinstance(package, ModuleType) else None
        return package_spec is None or is_user_module(package_spec)
    parent, _, _ = name.rpartition(".")
    return bool(parent) and parent not in sys.modules and is_user_module(spec)


def spec_of(name: str) -> ModuleSpec | None:
    """Return the spec of a module, without importing it; None if it cannot be found."""
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
        except Exception:  # finders of other packages may raise anything
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


def is_user_module(spec: ModuleSpec) -> bool:
    """Whether a module is the user's own, judging by the path of its file."""
    if spec.name.partition(".")[0] in _DEPENDENCIES:
        return False
    # Built-in and frozen modules have no file. Namespace packages have only folders.
    paths = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    return any(not is_installed(Path(path)) for path in paths if path)


def is_installed(path: Path) -> bool:
    """Whether a file or folder belongs to Python or to an installed package."""
    # Some installers put links into site-packages, so both ends of a link count.
    for candidate in (path.absolute(), path.resolve()):
        if _PACKAGE_FOLDERS & set(candidate.parts):
            return True
        if any(candidate.is_relative_to(folder) for folder in _python_folders()):
            return True
    return any(
        folder != path.absolute() and _is_recorded(folder, path.absolute().relative_to(folder))
        for folder in _search_folders()
        if path.absolute().is_relative_to(folder)
    )


@functools.cache
def _python_folders() -> tuple[Path, ...]:
    """Return the folders of Python's library and of its packages, with links resolved and not."""
    schemes = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(scheme) for scheme in schemes]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({path for name in folders for path in (Path(name), Path(name).resolve())})


def _search_folders() -> list[Path]:
    return [Path(entry).absolute() for entry in sys.path if entry]


def _is_recorded(folder: Path, relative: Path) -> bool:
    """Whether a distribution in a folder lists a file (`pip install --target FOLDER`).

    Only RECORD counts: an egg-info folder lists the sources of a project under development.
    """
    return relative.parts[0] in _recorded_names(folder)


@functools.cache
def _recorded_names(folder: Path) -> frozenset[str]:
    """Return the top-level names that the distributions in a folder list."""
    names: set[str] = set()
    for record in folder.glob("*.dist-info/RECORD"):
        rows = record.read_text(encoding="utf-8", errors="replace").splitlines()
        names |= {row.partition(",")[0].partition("/")[0].strip('"') for row in rows}
    return frozenset(names)


def installed_search_path() -> list[str]:
    """Return the entries of sys.path that other machines have too: those of Python and of packages."""
    return [
        entry
        for entry in sys.path
        if entry
        and (
            is_installed(Path(entry) / "_")
            or _recorded_names(Path(entry).absolute())
            or (entry.endswith(".zip") and Path(entry).is_relative_to(sys.base_prefix))
        )
    ]


def uninstalled_dependencies() -> dict[str, str]:
    """Return the loaded dependencies that are not installed here, with the file of their __init__."""
    modules = ((name, sys.modules.get(name)) for name in _DEPENDENCIES)
    files = {name: getattr(module, "__file__", None) for name, module in modules}
    return {name: file for name, file in files.items() if file and not is_installed(Path(file))}


def _source_of(spec: ModuleSpec) -> str | None:
    """Return the source of a module, or None if it is not Python source."""
    if spec.has_location and spec.origin and spec.origin.endswith(tuple(SOURCE_SUFFIXES)):
        path = Path(spec.origin)
        if path.is_file():
            return importlib.util.decode_source(path.read_bytes())
    if not spec.has_location and spec.submodule_search_locations is not None:
        return ""  # a namespace package
    try:
        return spec.loader.get_source(spec.name)  # pyright: ignore
    except Exception:  # there is no loader, or it has no source
        return None


def _parent_packages(name: str) -> list[str]:
    components = name.split(".")
    return [".".join(components[:length]) for length in range(1, len(components))]


def imports_of(source: str, package: str) -> Iterator[str]:
    """Yield the absolute names that some source imports anywhere.

    A name after `from x import` may or may not be a module, so it is yielded too.

    Args:
        source: Python source; nothing is yielded if it is not valid.
        package: The package that relative imports refer to.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _import_call(node, package)


def _import_call(call: ast.Call, package: str) -> Iterator[str]:
    """Yield the module in importlib.import_module("name") or __import__("name")."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    argument = call.args[0] if call.args else None
    if name not in ("import_module", "__import__") or not isinstance(argument, ast.Constant):
        return
    if isinstance(argument.value, str):
        yield _absolute_name(argument.value, package)


def _absolute_name(name: str, package: str) -> str:
    """Return the absolute form of a module name that may start with dots."""
    suffix = name.lstrip(".")
    level = len(name) - len(suffix)
    if not level:
        return name
    components = package.split(".")
    base = ".".join(components[: len(components) - level + 1])
    return f"{base}.{suffix}" if base and suffix else base or suffix
