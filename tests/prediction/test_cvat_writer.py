"""CVAT files: elements and attributes of its format, read by an XML parser."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sfss_ray.data.class_sets import ClassSet
from sfss_ray.errors import OutputError
from sfss_ray.prediction.class_regions import regions_of_classes
from sfss_ray.prediction.cvat_writer import cvat_mask, writing_cvat

CLASSES = ClassSet("two", ("road & <path>", 'a "car"'), ((128, 64, 0), (0, 0, 142)))
IDS = np.array([[0, 0, 0, 1], [0, 1, 1, 0]], np.uint8)


def test_the_elements_are_those_of_version_1_1(tmp_path: Path):
    path = tmp_path / "folder" / "cvat.xml"
    with writing_cvat(path, CLASSES) as writer:
        masks = [cvat_mask(region, CLASSES) for region in regions_of_classes(IDS)]
        writer.add('city/"a" & b.png', (2, 4), masks)
        writer.add("b.png", (7, 9), [])
        assert not path.exists()
    assert path.read_text().startswith('<?xml version="1.0" encoding="utf-8"?>\n<annotations>')
    root = ElementTree.parse(path).getroot()
    assert root.findtext("version") == "1.1"
    labels = root.findall("meta/task/labels/label")
    assert [label.findtext("name") for label in labels] == ["road & <path>", 'a "car"']
    assert [label.findtext("color") for label in labels] == ["#804000", "#00008e"]
    assert {label.findtext("type") for label in labels} == {"mask"}
    first, second = root.findall("image")
    assert first.attrib == {"id": "0", "name": 'city/"a" & b.png', "width": "4", "height": "2"}
    assert second.attrib == {"id": "1", "name": "b.png", "width": "9", "height": "7"}
    assert list(second) == []
    car = first.findall("mask")[1]
    assert car.attrib == {
        "label": 'a "car"',
        "source": "auto",
        "occluded": "0",
        # Rows of the box: 0 0 1, then 1 1 0.
        "rle": "2, 3, 1",
        "left": "1",
        "top": "0",
        "width": "3",
        "height": "2",
        "z_order": "0",
    }


def test_characters_that_xml_cannot_contain_are_replaced(tmp_path: Path):
    classes = ClassSet("one", ("a\x07b",), ((0, 0, 0),))
    with writing_cvat(tmp_path / "cvat.xml", classes) as writer:
        writer.add("c\x1b.png", (1, 1), [])
    root = ElementTree.parse(tmp_path / "cvat.xml").getroot()
    assert root.findtext("meta/task/labels/label/name") == "a\ufffdb"
    assert root.find("image").get("name") == "c\ufffd.png"  # pyright: ignore


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path):
    with pytest.raises(OutputError, match="cannot be written"), writing_cvat(tmp_path, CLASSES):
        pass
