"""Labelled images to score on: both folders or neither, and lines that describe them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import DataError
from sfss_ray.inputs.labels import labelled_images, require_both


def test_images_and_labels_are_paired_and_described(streets):
    lines: list[str] = []
    folders = (streets / "val" / "images", streets / "val" / "labels")
    pairs = labelled_images(*folders, CITYSCAPES_19, progress=lines.append)
    assert [pair.image_id for pair in pairs] == ["00000", "00001"]
    assert [pair.labels().shape for pair in pairs] == [(64, 128)] * 2
    assert any("train ids" in line for line in lines)


def test_without_labels_there_is_nothing_to_score_on():
    assert labelled_images(None, None, CITYSCAPES_19) == ()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ("images", None, "val_images were given without val_labels: give both, or neither"),
        (None, "labels", "val_labels were given without val_images: give both, or neither"),
    ],
)
def test_one_folder_alone_is_refused(images, labels, message):
    with pytest.raises(DataError) as refused:
        require_both(images, labels)
    assert str(refused.value) == message
    with pytest.raises(DataError, match=message):
        labelled_images(images, labels, CITYSCAPES_19)


def test_both_folders_are_returned_unchanged():
    assert require_both(Path("images"), "labels") == (Path("images"), "labels")
