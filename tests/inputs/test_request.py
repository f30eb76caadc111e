"""Requests mirror the arguments of `adapt`, and target images are split for a run."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
from street_requests import request_for

import sfss_ray
from sfss_ray.config import Config, override
from sfss_ray.data.folders import ImageFile
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.request import Request, split_target_images


def test_a_request_names_every_argument_of_adapt():
    fields = {field.name for field in dataclasses.fields(Request)}
    arguments = set(inspect.signature(sfss_ray.adapt).parameters)
    assert arguments - {"progress", "trackers"} == fields - {"kind"}


def test_the_classes_are_those_of_the_source_model(streets, tmp_path: Path):
    inputs = check_inputs(request_for(streets, tmp_path / "out"))
    assert inputs.classes is inputs.source.classes
    assert inputs.classes.name == "cityscapes-19"


IMAGES = [ImageFile(f"{number:02}", Path(f"{number:02}.png")) for number in range(20)]


@pytest.mark.parametrize(("share", "most", "held_out"), [(0.0, 64, 0), (0.25, 64, 5), (0.5, 3, 3)])
def test_images_are_split_into_training_and_held_out(share, most, held_out):
    knobs = {"evaluation.held_out_share": share, "evaluation.held_out_max": most}
    parts = split_target_images(IMAGES, None, override(Config(), knobs))
    assert [len(part) for part in parts] == [20 - held_out, held_out]
    assert sorted(file.image_id for part in parts for file in part) == [i.image_id for i in IMAGES]


def test_images_that_have_no_masks_because_of_an_error_are_left_out():
    masks = SimpleNamespace(errors={"03": "the file is empty", "07": "the file is empty"})
    training, held_out = split_target_images(IMAGES, masks, Config())  # pyright: ignore
    ids = {file.image_id for file in training + held_out}
    assert ids == {file.image_id for file in IMAGES} - {"03", "07"}
