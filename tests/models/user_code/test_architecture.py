"""Tests of building a module from the address of a function."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn
from user_projects import FILES, on_path, write_files

from sfss_ray.errors import ConfigError
from sfss_ray.models.user_code.architecture import build_architecture
from sfss_ray.models.user_code.custom import unwrapped

__all__ = ["on_path"]

BUILDERS = """
import sys
import torch
from torch import nn
from model import Net
import sfss_ray

NUMBER = 3


def build():
    return Net()


def number():
    return NUMBER


def fails():
    raise KeyError("no weights\\nhere")


def ends():
    sys.exit(3)


def needs_an_argument(width):
    return Net()


def wrapped():
    return sfss_ray.wrap_model(Net(), classes="cityscapes-19")


def segmenter():
    return wrapped().network


def compact():
    from sfss_ray.streets.default import SOURCE_MODEL
    return sfss_ray.load_source_model(SOURCE_MODEL)
"""


@pytest.fixture
def project(tmp_path: Path, on_path, monkeypatch) -> Path:
    """A folder of code that Python does not search; `on_path` cleans up after the test."""
    files = FILES | {
        "builders.py": BUILDERS,
        "inner/__init__.py": "",
        "inner/nets.py": "from model import Net\n",
        "broken.py": "import nowhere_to_be_found\n",
        "raising.py": "raise ValueError('not today')\n",
        "ending.py": "raise SystemExit\n",
    }
    root = write_files(tmp_path / "project", files)
    on_path(root)
    sys.path.remove(str(root))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return root


def test_a_function_in_a_file(project):
    module = build_architecture(f"{project}/builders.py:build")
    assert type(module).__module__ == "model"
    assert isinstance(module, nn.Module)


@pytest.mark.parametrize("name", ["wrapped", "segmenter"])
def test_a_function_that_wraps_its_module(name, project):
    module = build_architecture(f"{project}/builders.py:{name}")
    assert type(unwrapped(module)).__name__ == "Net"


def test_a_class_in_a_module_below_the_working_folder(project, monkeypatch):
    monkeypatch.chdir(project)
    for address in ("model:Net", "inner.nets:Net", "builders:build", "./builders.py:build"):
        assert type(build_architecture(address)).__name__ == "Net"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("build", "architecture is 'build': allowed is package.module:function or path/to/file.py"),
        (":build", "architecture is ':build': allowed"),
        ("builders.py:", "architecture is 'builders.py:': allowed"),
        ("builders.py:build()", "allowed is package.module:function"),
        ("absent.py:build", "the file 'absent.py' does not exist"),
        ("absent.part:build", "there is no module 'absent': give package.module:function"),
        ("inner.absent:build", "there is no module 'inner.absent': give"),
        ("broken:build", "there is no module 'nowhere_to_be_found': its file imports it"),
        ("raising.py:build", r"'raising' cannot be imported \(ValueError: not today\)"),
        ("builders.py:absent", "no function 'absent': it has build, number, fails"),
        ("builders.py:NUMBER", "no function 'NUMBER'"),
        ("builders.py:fails", r"fails \(KeyError: 'no weights.*takes no arguments"),
        ("builders.py:ends", r"fails \(SystemExit: 3\): give a function that takes no arguments"),
        ("ending.py:build", r"'ending' cannot be imported \(SystemExit: no message\)"),
        ("builders.py:needs_an_argument", r"fails \(TypeError: .*width.*takes no arguments"),
        ("builders.py:number", "returns int: give a function that returns a torch module"),
        (
            "builders.py:compact",
            "returns a network that this package builds: leave out --architecture",
        ),
    ],
)
def test_bad_addresses_are_refused_in_one_line(address, message, project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match=message) as error:
        build_architecture(address)
    assert "\n" not in str(error.value)


def test_a_file_whose_name_belongs_to_another_module_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json.py").write_text("def build(): pass\n")
    with pytest.raises(ConfigError, match=r"the name 'json' belongs to another module.*rename"):
        build_architecture(f"{tmp_path}/json.py:build")
