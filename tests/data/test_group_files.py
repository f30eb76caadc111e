"""Class groups as users give them: a mapping, a JSON or YAML file, or a shipped name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, class_set_of
from sfss_ray.data.group_files import find_class_groups
from sfss_ray.errors import DataError

CLASSES = class_set_of(["road", "car", "truck", "background"])
MAPPING = {"street": ["road"], "vehicle": ["car", "truck"], "dropped": ["background"]}
EXPECTED = (("street", ("road",)), ("vehicle", ("car", "truck")))


def refusal(class_groups) -> str:
    """Return the error of a grouping, which must be a single line."""
    with pytest.raises(DataError) as error:
        find_class_groups(class_groups, CLASSES)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_mapping_is_read_in_its_order():
    groups = find_class_groups(MAPPING, CLASSES)
    assert groups == ClassGroups("custom", EXPECTED, ("background",))
    backwards = dict(reversed(MAPPING.items()))
    assert find_class_groups(backwards, CLASSES).groups == EXPECTED[::-1]
    assert find_class_groups(groups, CLASSES) == groups


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("night.json", json.dumps(MAPPING)),
        (
            "night.yaml",
            "street: road\nvehicle: [car, truck]\ndropped:\n  - background\n",
        ),
        ("night.yml", "street: [road]\nvehicle: [car, truck]\ndropped: background\n"),
    ],
)
def test_files_are_read_and_name_the_groups(name, text, tmp_path: Path):
    path = written(tmp_path / name, text)
    expected = ClassGroups("night", EXPECTED, ("background",))
    assert find_class_groups(path, CLASSES) == expected
    assert find_class_groups(str(path), CLASSES) == expected


@pytest.mark.parametrize("kind", [str, Path])
def test_a_shipped_grouping_is_chosen_by_name(kind):
    assert find_class_groups(kind("camvid-11"), CITYSCAPES_19).class_set() == CAMVID_11


def test_a_missing_file_lists_the_shipped_names(tmp_path: Path):
    message = refusal("camvid-12")
    assert (
        "'camvid-12' are neither a file nor a shipped grouping: shipped are camvid-11," in message
    )
    assert "cannot read class groups" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "{", "cannot read class groups .*a.json"),
        ("a.yaml", "a: [b", "cannot read class groups .*a.yaml"),
        ("a.yaml", "[" * 3000, "cannot read class groups .*a.yaml.*nested too deeply"),
        ("a.json", "[" * 100_000, "cannot read class groups .*a.json.*nested too deeply"),
        ("a.json", "[1]", "hold a list: give a JSON or YAML file such as"),
        ("a.yaml", "", "hold a NoneType"),
        ("a.json", '{"car": ["car"], "car": ["truck"]}', r"\('car' is listed twice\)"),
        ("a.yaml", "car: [car]\ncar: [truck]\n", r"\('car' is listed twice\)"),
        ("a.json", '{"car": [1]}', r"'car' is \[1\]: give names as text"),
        ("a.json", '{"car": {"a": "b"}}', "'car' is {'a': 'b'}: give names as text"),
        ("a.yaml", "yes: [car]\n", "True is .*: give names as text"),
        ("a.json", "{}", "'a' have no group"),
    ],
)
def test_files_of_something_else_are_refused(name, text, reason, tmp_path: Path):
    message = refusal(written(tmp_path / name, text))
    assert re.search(reason, message), message


def test_groups_that_do_not_fit_the_model_are_refused():
    assert "lists 'lorry'" in refusal(MAPPING | {"vehicle": ["car", "lorry"]})
    assert "leave out 'truck'" in refusal(MAPPING | {"vehicle": ["car"]})
    assert "list 'road' twice" in refusal(MAPPING | {"vehicle": ["car", "truck", "road"]})


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([], "list"),
        (["road", "car"], "list"),
        (5, "int"),
        (True, "bool"),
        (b"camvid-11", "bytes"),
        (frozenset({"camvid-11"}), "frozenset"),
        (np.zeros((3, 3)), "ndarray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_another_type_are_refused(value, name):
    message = refusal(value)
    assert message.startswith(f"class groups are of type {name} (")
    assert "give a mapping such as {" in message
    assert "a JSON or YAML file of one, or the name of a shipped grouping (camvid-11, " in message
    assert len(message) < 400
