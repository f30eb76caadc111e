"""The public names, and that importing them costs nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sfss_ray
from sfss_ray import errors

PACKAGE = Path(sfss_ray.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = [
    "AdaptResult",
    "AutomaticMaskGenerator",
    "Card",
    "Config",
    "MaskStore",
    "SfssError",
    "SourceModel",
    "Tracker",
    "TuneResult",
    "adapt",
    "evaluate_model",
    "export_masks",
    "export_onnx",
    "generate_masks",
    "import_masks",
    "load_config",
    "load_model",
    "load_source_model",
    "override",
    "plan",
    "predict",
    "pretrain_source",
    "save_model",
    "train_student",
    "tune_hyperparameters",
    "verify_source",
    "wrap_model",
]
HEAVY = (
    "torch",
    "ray",
    "torchvision",
    "cv2",
    "pyarrow",
    "numpy",
    "optuna",
    "matplotlib",
    "skimage",
)


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after some code."""
    code += "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_public_names_are_these():
    assert sfss_ray.__all__ == PUBLIC
    assert dir(sfss_ray) == PUBLIC == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_documented(name):
    member = getattr(sfss_ray, name)
    assert member.__name__ == name
    assert member.__module__.startswith("sfss_ray.")
    assert len(inspect.getdoc(member) or "") > 20


def test_names_are_those_that_type_checkers_see():
    """The imports under TYPE_CHECKING say the same homes as the table at run time."""
    (block,) = [n for n in ast.parse(inspect.getsource(sfss_ray)).body if isinstance(n, ast.If)]
    seen = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert {n: m.removeprefix("sfss_ray.") for n, m in seen.items() if m} == sfss_ray._HOMES
    assert sorted(seen) == PUBLIC


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        sfss_ray.__getattr__("train")


def test_importing_the_package_loads_nothing_heavy():
    loaded = imported_by("import sfss_ray")
    assert "sfss_ray" in loaded
    assert not loaded & set(HEAVY)


def test_config_and_errors_need_no_torch_and_no_ray():
    loaded = imported_by("from sfss_ray import Config, SfssError, load_config, override; Config()")
    assert not loaded & set(HEAVY)


def test_the_doors_load_neither_torch_nor_ray_before_they_are_called():
    """So that bad input and --help are answered at once."""
    doors = (
        "adapt, evaluate_model, generate_masks, import_masks, predict, train_student,"
        " tune_hyperparameters, verify_source"
    )
    loaded = imported_by(f"from sfss_ray import {doors}")
    assert "pyarrow" in loaded
    assert not loaded & {"torch", "torchvision", "ray"}


def test_no_function_shares_its_name_with_a_module():
    """`sfss_ray.x` would be a function or a module, by the order of imports."""
    modules = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    assert not modules & set(PUBLIC)
    for path in MODULES:
        functions = {
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        }
        assert not modules & functions, path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_error_is_an_sfss_error_and_says_when():
    raised = [e for e in vars(errors).values() if isinstance(e, type)]
    assert len(raised) == 8
    for error in raised:
        assert issubclass(error, errors.SfssError)
        assert error.__doc__
        assert error.__name__ in (errors.__doc__ or "")
    assert issubclass(errors.SfssError, ValueError)


def test_all_homes_are_modules():
    for home in set(sfss_ray._HOMES.values()):
        assert importlib.import_module(f"sfss_ray.{home}")
