"""Tests of telling a user's modules from installed ones, and of finding what they import."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import pytest
from user_projects import FILES, on_path, write_files

from sfss_ray.models.user_code.user_modules import (
    find_user_code,
    imports_of,
    installed_search_path,
    is_user_module,
    modules_without_source,
    spec_of,
    uninstalled_dependencies,
)

__all__ = ["on_path"]


def is_users(name: str) -> bool:
    """Whether a module is the user's own; it must exist."""
    spec = spec_of(name)
    assert spec is not None, name
    return is_user_module(spec)


def test_python_and_installed_packages_are_not_the_users():
    for name in ("os", "sys", "json", "zipimport", "math", "torch.nn", "PIL.Image", "pytest"):
        assert not is_users(name), name
    assert not is_users("sfss_ray.models.user_code.user_modules")


@pytest.mark.parametrize(
    "folder_name",
    [
        "lib/python3.11/site-packages",
        "usr/lib/python3/dist-packages",
        "home/.local/lib/python3.9/site-packages",
    ],
)
def test_packages_in_any_packages_folder_are_installed(folder_name, tmp_path: Path, on_path):
    folder = tmp_path / folder_name
    write_files(folder, {"somebodys/__init__.py": "", "single.py": ""})
    on_path(folder)
    assert not is_users("somebodys")
    assert not is_users("single")


def test_packages_that_a_distribution_records_are_installed(tmp_path: Path, on_path):
    """`pip install --target FOLDER` writes no folder named site-packages."""
    files = {
        "recorded/__init__.py": "",
        "recorded/part.py": "",
        "recorded_file.py": "",
        "mine.py": "",
        "recorded-1.0.dist-info/METADATA": "Name: recorded\nVersion: 1.0\n",
        "recorded-1.0.dist-info/RECORD": "recorded/__init__.py,,\nrecorded/part.py,,\n"
        "recorded_file.py,sha256=x,12\nrecorded-1.0.dist-info/RECORD,,\n",
    }
    on_path(write_files(tmp_path / "target", files))
    assert not is_users("recorded.part")
    assert not is_users("recorded_file")
    assert is_users("mine")


def test_a_package_behind_a_link_is_installed(tmp_path: Path, on_path):
    cache = write_files(tmp_path / "cache", {"linked/__init__.py": ""})
    packages = tmp_path / "venv" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "linked").symlink_to(cache / "linked")
    on_path(packages)
    assert not is_users("linked")


@pytest.mark.parametrize("import_first", [False, True])
def test_projects_under_development_are_the_users(import_first, tmp_path: Path, on_path):
    """`pip install -e` leaves an egg-info folder in a project's folder."""
    files = {
        "project/__init__.py": "",
        "project/net.py": "",
        "namespace/net.py": "",
        "project.egg-info/PKG-INFO": "Name: project\nVersion: 1.0\n",
        "project.egg-info/SOURCES.txt": "project/__init__.py\nproject/net.py\n",
    }
    on_path(write_files(tmp_path / "clone", files))
    for name in ("project", "project.net", "namespace", "namespace.net"):
        if import_first:
            importlib.import_module(name)
        assert is_users(name), name
        assert (name in sys.modules) == import_first


def test_torch_in_another_packages_folder_is_installed():
    """A process without `site` knows other packages folders than the one that torch is in."""
    code = (
        "import sysconfig, torch; from pathlib import Path;"
        "from sfss_ray.models.user_code.user_modules import is_user_module, spec_of;"
        "assert not Path(torch.__file__).is_relative_to(sysconfig.get_path('purelib'));"
        "print([is_user_module(spec_of(name)) for name in ('torch', 'torch.nn', 'numpy', 'PIL')])"
    )
    import sfss_ray

    folders = [str(Path(sfss_ray.__file__).parents[1]), sysconfig.get_path("purelib")]
    process = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": ":".join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.strip() == "[False, False, False, False]", process.stderr


def test_imports_anywhere_in_a_source_are_found():
    source = """
import a.b as c, d
from e import f
from . import g
from ..h import i
def late():
    import j
    importlib.import_module("k.l"); __import__("m"); import_module(".n", __package__)
    importlib.import_module(name)
"""
    assert set(imports_of(source, "top.inner")) == {
        *("a.b", "d", "e", "e.f", "top.inner", "top.inner.g", "top.h", "top.h.i"),
        *("j", "k.l", "m", "top.inner.n"),
    }
    assert list(imports_of("this is no Python", "")) == []


def test_all_imported_user_modules_are_found_and_no_others(tmp_path: Path, on_path):
    on_path(write_files(tmp_path, FILES))
    importlib.import_module("model")
    code = find_user_code(["model", "torch", "os", "nobody"])
    assert set(code.sources) == {
        *("model", "utilities", "late"),
        *("helpers", "helpers.blocks", "helpers.numbers_of"),
    }
    assert code.sources["late"].text == FILES["late.py"]
    assert [name for name, file in code.sources.items() if file.is_package] == ["helpers"]
    assert "late" not in sys.modules
    assert code.binary == {}


def test_compiled_extensions_are_named(tmp_path: Path, on_path):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    files = {"net.py": "import kernels\n", f"kernels{suffix}": ""}
    on_path(write_files(tmp_path, files))
    code = find_user_code(["net"])
    assert set(code.sources) == {"net"}
    assert code.binary == {"kernels": str(tmp_path / f"kernels{suffix}")}


def test_the_search_path_of_a_worker_has_only_installed_packages(tmp_path: Path, on_path):
    files = {"mine.py": ""}
    recorded = {"package-1.0.dist-info/RECORD": "package/__init__.py,,\n"}
    on_path(write_files(tmp_path / "project", files))
    on_path(write_files(tmp_path / "target", recorded))
    search_path = installed_search_path()
    assert str(tmp_path / "project") not in search_path
    assert str(tmp_path / "target") in search_path
    assert sysconfig.get_path("stdlib") in search_path


def test_dependencies_that_are_not_installed_are_pinned(tmp_path: Path, monkeypatch):
    module = types.ModuleType("optuna")
    module.__file__ = str(tmp_path / "build" / "optuna" / "__init__.py")
    monkeypatch.setitem(sys.modules, "optuna", module)
    assert uninstalled_dependencies()["optuna"] == module.__file__
    assert "torch" not in uninstalled_dependencies()


def test_only_loaded_modules_with_source_are_returned(tmp_path: Path, on_path):
    on_path(write_files(tmp_path, FILES))
    importlib.import_module("model")
    loaded = [module.__name__ for module in find_user_code(["model"]).loaded()]
    assert loaded == ["helpers", "helpers.blocks", "helpers.numbers_of", "model", "utilities"]


def test_modules_that_no_other_process_can_import_are_listed(tmp_path: Path, on_path, monkeypatch):
    on_path(write_files(tmp_path, FILES))
    importlib.import_module("model")
    monkeypatch.setitem(sys.modules, "cell", types.ModuleType("cell"))
    spec = importlib.util.spec_from_file_location("no.parent", tmp_path / "late.py")
    assert spec is not None
    monkeypatch.setitem(sys.modules, "no.parent", importlib.util.module_from_spec(spec))
    names = {module.__name__ for module in modules_without_source()}
    assert {"cell", "no.parent"} <= names
    assert not names & {"model", "helpers.blocks", "__main__", "sys", "torch", "pytest", "numpy"}
