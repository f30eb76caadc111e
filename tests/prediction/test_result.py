"""Results of predictions in lines for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfss_ray.prediction.result import PredictionResult

KINDS = ("colour", "overlay", "label_ids", "train_ids")


def lines_of(**changes) -> list[str]:
    values = {"output_dir": Path("out"), "images": 5, "made": 5, "kinds": KINDS}
    return PredictionResult(**(values | changes)).lines()


def test_a_complete_result_is_three_lines():
    assert lines_of() == [
        "predictions: out",
        "images: 5",
        "each as: colour/ID.png, overlay/ID.png, label_ids/ID.png, train_ids/ID.png",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"made": 2}, "images: 5 (3 were predicted before)"),
        ({"changed": 1}, "images: 5 (1 changed since and predicted again)"),
        (
            {"made": 2, "changed": 2},
            "images: 5 (3 were predicted before) (2 changed since and predicted again)",
        ),
    ],
)
def test_earlier_and_changed_predictions_are_counted(changes, line):
    assert lines_of(**changes)[1] == line


def test_annotation_files_are_named():
    lines = lines_of(annotations=(Path("out/coco.json"), Path("out/cvat.xml")))
    assert lines[-1] == "annotations: out/coco.json, out/cvat.xml"


def test_classes_without_a_label_id_are_explained():
    lines = lines_of(kinds=("colour", "overlay", "train_ids"))
    assert lines[-1] == "no label_ids: the model has classes that Cityscapes has no labelId for"


def test_every_error_is_listed():
    errors = {"a": "0 bytes", "b": "truncated"}
    assert lines_of(errors=errors)[-3:] == [
        "2 images could not be predicted:",
        "  a: 0 bytes",
        "  b: truncated",
    ]
