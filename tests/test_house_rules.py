"""Rules of the source tree that a reader relies on: mirrored tests, short functions, clear names."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = ROOT / "sfss_ray", ROOT / "tests"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 60, 6
VAGUE_NAMES = {
    *(
        "asked",
        "done",
        "found",
        "given",
        "held",
        "kept",
        "known",
        "left",
        "look",
        "looked",
        "looks",
    ),
    *(
        "made",
        "others",
        "own",
        "place",
        "places",
        "said",
        "seen",
        "shown",
        "stuff",
        "such",
        "taken",
    ),
    *(
        "there",
        "these",
        "thing",
        "things",
        "those",
        "told",
        "wanted",
        "way",
        "ways",
        "what",
        "whose",
    ),
}
PUBLIC_FUNCTIONS = {
    *("adapt", "evaluate_model", "generate_masks", "plan", "pretrain_source", "train_student"),
    *("export_onnx", "load_source_model", "predict", "tune_hyperparameters", "verify_source"),
    "wrap_model",
}
"""Functions whose parameters are options of a user."""
MIRRORED_SIGNATURES = {Path("masks/sam/generator.py")}
"""Modules whose constructor has the parameters of segment_anything's."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(path: Path) -> Iterator[Function]:
    """All functions of a module, methods and nested functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def parameters_of(function: Function) -> list[str]:
    """Names of the parameters, without `self` and `cls`."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def local_names_of(function: Function) -> set[str]:
    """Parameters and assigned names of a function."""
    stored = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return stored | set(parameters_of(function))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_each_module_has_a_test_file_in_the_same_place():
    missing = [
        name_of(path)
        for path in MODULES
        if path.name != "__init__.py"
        and not (TESTS / path.relative_to(PACKAGE).parent / f"test_{path.name}").exists()
    ]
    assert missing == []


def test_names_of_test_files_are_unique():
    """pytest imports them by name alone."""
    counts = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path: Path):
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for function in functions_of(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MOST_FUNCTION_LINES, function.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_have_few_parameters(path: Path):
    is_mirror = path.relative_to(PACKAGE) in MIRRORED_SIGNATURES
    for function in functions_of(path):
        if function.name in PUBLIC_FUNCTIONS or (is_mirror and function.name == "__init__"):
            continue
        assert len(parameters_of(function)) <= MOST_PARAMETERS, function.name


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_local_names_say_what_they_hold(path: Path):
    for function in functions_of(path):
        vague = {name for name in local_names_of(function) if name.strip("_") in VAGUE_NAMES}
        assert not vague, f"{function.name}: {', '.join(sorted(vague))}"
