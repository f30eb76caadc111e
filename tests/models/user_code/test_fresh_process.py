"""Tests of the script that loads a user's module in a bare interpreter."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from user_networks import import_network, source_of
from user_projects import FILES, on_path, write_files

from sfss_ray import save_model
from sfss_ray.models.user_code import fresh_process
from sfss_ray.models.user_code.round_trip import logits_of
from sfss_ray.models.user_code.user_modules import (
    installed_search_path,
    uninstalled_dependencies,
)

__all__ = ["on_path"]


def run_script(folder: Path, payload: bytes, **request: Any) -> dict[str, Any]:
    """Run the script on a folder with a request and a payload, and return the outcome."""
    request = {
        "search_path": installed_search_path(),
        "pinned": uninstalled_dependencies(),
        "threads": 1,
        "modes": ["eval"],
    } | request
    (folder / fresh_process.REQUEST).write_text(json.dumps(request))
    (folder / fresh_process.PAYLOAD).write_bytes(payload)
    command = [sys.executable, "-I", "-S", fresh_process.__file__, str(folder)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, env=environment, check=True, cwd="/")
    return json.loads((folder / fresh_process.OUTCOME).read_text())


def test_logits_are_written_in_each_mode(tmp_path: Path, on_path):
    on_path(write_files(tmp_path / "project", FILES))
    source = source_of(import_network())
    model = source.load()
    save_model(tmp_path / fresh_process.MODEL, model)
    outcome = run_script(tmp_path, pickle.dumps(source.carried), modes=["eval", "train"])
    assert outcome == {}
    logits = torch.load(tmp_path / fresh_process.LOGITS, weights_only=True)
    assert set(logits) == {"eval", "train"}
    torch.testing.assert_close(logits["eval"], logits_of(model, "eval"), rtol=1e-4, atol=1e-4)


class Unpicklable:
    """An object whose unpickling calls a function with an argument."""

    def __init__(self, function: Any, argument: Any):
        self.call = (function, (argument,))

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "argument", "outcome"),
    [
        (
            int,
            "x",
            {"type": "ValueError", "message": "invalid literal for int() with base 10: 'x'"},
        ),
        (sys.exit, 3, {"type": "SystemExit", "message": "3"}),
        (
            __import__,
            "no_such_module",
            {
                "type": "ModuleNotFoundError",
                "message": "No module named 'no_such_module'",
                "name": "no_such_module",
            },
        ),
    ],
)
def test_errors_are_described_in_the_outcome(function, argument, outcome, tmp_path: Path):
    payload = pickle.dumps(Unpicklable(function, argument))
    assert run_script(tmp_path, payload) == outcome


def test_pinned_packages_are_found_by_the_file_of_their_init(tmp_path: Path):
    file = tmp_path / "built" / "package" / "__init__.py"
    write_files(tmp_path, {"built/package/__init__.py": "", "built/package/part.py": ""})
    finder = fresh_process._PinnedPackages({"package": str(file)})
    spec = finder.find_spec("package", None)
    assert spec.origin == str(file)
    assert list(spec.submodule_search_locations) == [str(file.parent)]
    assert finder.find_spec("package.part", None) is None
    assert finder.find_spec("another", None) is None


def test_the_first_cause_of_an_error_is_described():
    try:
        try:
            raise ImportError("the cause\nwith details", name="x")
        except ImportError as error:
            raise ValueError("a wrapper") from error
    except ValueError as error:
        description = fresh_process._describe_error(error)
    assert description == {"type": "ImportError", "message": "the cause", "name": "x"}
