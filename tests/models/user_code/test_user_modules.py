"""Whose code a module is, by its place, and what a user's modules import."""

from __future__ import annotations

import importlib
import importlib.machinery
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from user_projects import FILES, on_path, write_files

from sfss_ray.models.user_code.user_modules import imports_of, is_own, needed_code, spec_of

__all__ = ["on_path"]


def own(name: str) -> bool:
    spec = spec_of(name)
    assert spec is not None, name
    return is_own(spec)


def test_python_and_installed_packages_are_not_the_users():
    for name in ("os", "sys", "json", "zipimport", "math", "torch.nn", "PIL.Image", "pytest"):
        assert not own(name), name
    assert not own("sfss_ray.models.user_code.user_modules")


@pytest.mark.parametrize(
    "place",
    [
        "lib/python3.11/site-packages",
        "usr/lib/python3/dist-packages",
        "home/.local/lib/python3.9/site-packages",
    ],
)
def test_packages_in_any_folder_of_packages_are_installed(place, tmp_path: Path, on_path):
    folder = tmp_path / place
    write_files(folder, {"somebodys/__init__.py": "", "single.py": ""})
    on_path(folder)
    assert not own("somebodys")
    assert not own("single")


def test_packages_that_a_distribution_records_are_installed(tmp_path: Path, on_path):
    """`pip install --target FOLDER` writes no folder called site-packages."""
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
    assert not own("recorded.part")
    assert not own("recorded_file")
    assert own("mine")


def test_a_linked_package_is_installed_at_either_end(tmp_path: Path, on_path):
    cache = write_files(tmp_path / "cache", {"linked/__init__.py": ""})
    packages = tmp_path / "venv" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "linked").symlink_to(cache / "linked")
    on_path(packages)
    assert not own("linked")


@pytest.mark.parametrize("import_first", [False, True])
def test_projects_that_are_worked_on_are_the_users(import_first, tmp_path: Path, on_path):
    """An egg-info folder is what `pip install -e` leaves in a project's folder."""
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
        assert own(name), name
        assert (name in sys.modules) == import_first


def test_torch_in_another_folder_of_packages_is_installed():
    """A process without `site` has other folders of packages than the one that torch lies in."""
    code = (
        "import sysconfig, torch; from pathlib import Path;"
        "from sfss_ray.models.user_code.user_modules import is_own, spec_of;"
        "assert not Path(torch.__file__).is_relative_to(sysconfig.get_path('purelib'));"
        "print([is_own(spec_of(name)) for name in ('torch', 'torch.nn', 'numpy', 'PIL')])"
    )
    import sfss_ray

    places = [str(Path(sfss_ray.__file__).parents[1]), sysconfig.get_path("purelib")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": ":".join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[False, False, False, False]", done.stderr


def test_imports_anywhere_in_the_source_are_found():
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


def test_needed_code_is_whole_and_no_more(tmp_path: Path, on_path):
    on_path(write_files(tmp_path, FILES))
    importlib.import_module("model")
    code = needed_code(["model", "torch", "os", "nobody"])
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
    code = needed_code(["net"])
    assert set(code.sources) == {"net"}
    assert code.binary == {"kernels": str(tmp_path / f"kernels{suffix}")}
