"""Tests of importing modules from source that was sent."""

from __future__ import annotations

import importlib
import inspect
import sys
import types

import pytest

from sfss_ray.models.user_code import code_finder
from sfss_ray.models.user_code.code_finder import keep_local, make_importable
from sfss_ray.models.user_code.user_modules import SourceFile

NAMES = ("sent_package", "sent_package.part", "sent_single")
SOURCES = {
    "sent_package": SourceFile("from .part import double\n", True),
    "sent_package.part": SourceFile("import sent_single\ndef double():\n    return 2\n", False),
    "sent_single": SourceFile("NUMBER = 1\n", False),
}


@pytest.fixture(autouse=True)
def finder(monkeypatch):
    """Give each test its own finder and import path."""
    monkeypatch.setattr(code_finder, "_FINDER", code_finder.CodeFinder())
    monkeypatch.setattr(code_finder, "_SENT_FROM_HERE", set())
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def test_sent_source_is_imported_and_can_be_inspected():
    make_importable(SOURCES)
    package = importlib.import_module("sent_package")
    assert package.double() == 2
    assert inspect.getsource(package.double) == "def double():\n    return 2\n"
    assert package.double.__module__ == "sent_package.part"


def test_sent_source_replaces_a_module_of_the_same_name():
    sys.modules["sent_single"] = types.ModuleType("sent_single")
    make_importable(SOURCES)
    assert importlib.import_module("sent_single").NUMBER == 1


def test_newer_source_replaces_imported_modules():
    make_importable(SOURCES)
    package = importlib.import_module("sent_package")
    make_importable(SOURCES)
    assert importlib.import_module("sent_package") is package
    make_importable({"sent_single": SourceFile("NUMBER = 2\n", False)})
    assert importlib.import_module("sent_package") is not package
    assert sys.modules["sent_single"].NUMBER == 2


def test_the_sender_keeps_its_own_modules():
    sys.modules["sent_single"] = local = types.ModuleType("sent_single")
    keep_local(SOURCES)
    make_importable(SOURCES)
    assert importlib.import_module("sent_single") is local
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sent_package")


def test_a_module_without_sent_source_is_not_found():
    finder = code_finder.CodeFinder()
    assert finder.find_spec("sent_single", None) is None
    with pytest.raises(ImportError, match="no source of 'sent_single' was sent"):
        finder.get_source("sent_single")
    finder.sources.update(SOURCES)
    assert finder.get_filename("sent_package") == "<sfss_ray>/sent_package/__init__.py"
    assert finder.get_filename("sent_package.part") == "<sfss_ray>/sent_package/part.py"
