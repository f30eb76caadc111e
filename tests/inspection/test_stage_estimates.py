"""Estimates of stages: amounts of work, processes at the same time, and what cannot be measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from object_storage import bucket_address, s3_options  # noqa: F401
from plan_config import PLAN_CONFIG

from sfss_ray.config import override
from sfss_ray.data.folders import list_images
from sfss_ray.errors import DataError
from sfss_ray.inputs.check import Survey, survey_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.inspection import measurements
from sfss_ray.inspection.cost_meter import Cost
from sfss_ray.inspection.stage_estimates import StageEstimates, WorkCounts
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.regions import make_recipe
from sfss_ray.storage.places import to_place
from sfss_ray.streets.default import SOURCE_MODEL


@pytest.fixture(autouse=True)
def costs(monkeypatch) -> None:
    """Measurements of known cost: 2 s for masks, 3 s for a step, .5 s for an evaluation."""
    monkeypatch.setattr(
        measurements,
        "measure_mask_generation",
        lambda *_: (Cost(2.0, 100.0, 0.25, "12 masks"), [{}]),
    )
    monkeypatch.setattr(
        measurements, "measure_training", lambda *_: Cost(3.0, 900.0, 10.0, "crops")
    )
    monkeypatch.setattr(measurements, "measure_evaluation", lambda *_: Cost(0.5, 50.0))


def request_of(streets: Path, output: Path, kind="adapt", **knobs) -> Request:
    config = override(PLAN_CONFIG, {f"compute.{name}": value for name, value in knobs.items()})
    return Request(
        kind,
        SOURCE_MODEL,
        streets / "target" / "images",
        output,
        config,
        val_images=streets / "val" / "images",
        val_labels=streets / "val" / "labels",
    )


def estimate(request: Request) -> StageEstimates:
    survey = survey_inputs(request)
    estimates = StageEstimates(survey, request.config, WorkCounts.of(request, survey))
    estimates.measure(str)
    return estimates


def test_all_work_is_counted_where_the_output_cannot_be_used(streets, tmp_path: Path):
    request = request_of(streets, tmp_path / (300 * "x"))
    survey = survey_inputs(request)
    assert "File name too long" in survey.missing["output"]
    assert WorkCounts.of(request, survey).masks == len(survey.images)


def test_work_is_counted(streets, tmp_path: Path):
    request = request_of(streets, tmp_path / "out", "tune")
    counts = WorkCounts.of(request, survey_inputs(request))
    assert counts == WorkCounts(masks=8, held_out=1, labelled=2, trials=5)
    request = request_of(streets, tmp_path / "out")
    assert WorkCounts.of(request, survey_inputs(request)).trials == 0


@pytest.mark.parametrize("entry", ["train.foo=1..2", "train.batch_size=1..inf"])
def test_the_trials_of_a_space_that_was_refused_are_counted_at_most(entry, streets, tmp_path: Path):
    request = request_of(streets, tmp_path / "out", "tune")
    config = override(request.config, {"tune.space": [entry]})
    request = dataclasses.replace(request, config=config)
    survey = survey_inputs(request)
    assert list(survey.missing) == ["settings"]
    assert WorkCounts.of(request, survey).trials == config.tune.num_trials


def test_work_is_counted_at_an_address(streets, bucket_address):  # noqa: F811
    request = request_of(streets, bucket_address.format("run"))
    assert WorkCounts.of(request, survey_inputs(request)).masks == 8
    images = list_images(streets / "target" / "images")
    recipe, _ = make_recipe(PLAN_CONFIG.masks, None)
    row = {"height": 4, "width": 4, "masks": [], "error": None}
    rows = [row | {"image_id": file.image_id, "path": str(file.path)} for file in images[:3]]
    folder = to_place(bucket_address.format("run/masks"))
    write_shard(folder / "masks-0.parquet", rows, recipe.as_dict())
    assert WorkCounts.of(request, survey_inputs(request)).masks == 5


def test_started_masks_of_deep_images_are_counted_with_their_white_level(streets, tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 4096, (64, 96, 3), dtype=np.uint16)
        assert cv2.imwrite(str(folder / f"{number}.png"), pixels)
    request = dataclasses.replace(request_of(streets, tmp_path / "out"), target_images=folder)
    survey = survey_inputs(request)
    assert survey.recipe is not None
    recipe = survey.recipe.for_images(survey.images)
    assert recipe.white_level == 4095.0
    row = {"image_id": "0", "path": str(survey.images[0].path), "height": 64, "width": 96}
    (tmp_path / "out" / "masks").mkdir(parents=True)
    write_shard(
        tmp_path / "out" / "masks" / "masks-0.parquet",
        [row | {"masks": [], "error": None}],
        recipe.as_dict(),
    )
    assert WorkCounts.of(request, survey).masks == 2


def test_an_adaptation_is_masks_a_training_and_evaluations(streets, tmp_path: Path):
    estimates = estimate(request_of(streets, tmp_path / "out"))
    masks, training, evaluation = estimates.stages
    assert (masks.units, masks.at_once, masks.seconds) == (8, 2, 4 * 2.0)
    assert masks.disk_mb == 8 * 0.25
    assert (training.units, training.seconds) == (40, 40 * 3.0)
    assert training.disk_mb == 2 * 10.0 * 1.25
    assert evaluation.units == 3 * (3 + 4), (
        "three images, at 15, 30 and 40 steps, then four networks"
    )
    assert estimates.not_measured == []
    assert estimates.device == "cpu"


def test_a_baseline_is_a_second_training(streets, tmp_path: Path):
    request = request_of(streets, tmp_path / "out")
    config = override(request.config, {"report.baselines": True, "train.keep": "best"})
    estimates = estimate(dataclasses.replace(request, config=config))
    _, training, baseline, evaluation = estimates.stages
    assert baseline.name == "baseline"
    assert baseline.seconds == training.seconds
    assert training.disk_mb == 2 * 10.0 * 1.25 * 1.5, "checkpoints hold the best networks too"
    assert evaluation.units == 3 * (6 + 5)


@pytest.mark.parametrize(("concurrent", "rounds"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_trials_run_in_rounds(concurrent, rounds, streets, tmp_path: Path):
    request = request_of(streets, tmp_path / "out", "tune", concurrent_trials=concurrent)
    survey = survey_inputs(request)
    survey.missing.pop("device", None)  # this machine may be too small for so many
    estimates = StageEstimates(survey, request.config, WorkCounts.of(request, survey))
    estimates.measure(str)
    (search,) = [stage for stage in estimates.stages if stage.name == "search"]
    assert search.at_once == min(concurrent, 5)
    assert search.seconds == pytest.approx(rounds * 40 * 3.0)
    assert search.disk_mb == 5 * 10.0 * 1.5


def test_a_failed_measurement_is_a_line_and_stops_no_other(streets, tmp_path: Path, monkeypatch):
    def fail(*_):
        raise DataError("image 'a.png' is damaged")

    monkeypatch.setattr(measurements, "measure_training", fail)
    estimates = estimate(request_of(streets, tmp_path / "out"))
    assert [stage.name for stage in estimates.stages] == ["masks", "evaluation"]
    assert estimates.not_measured == ["training: not measured (image 'a.png' is damaged)"]


def test_stages_without_their_inputs_are_named():
    survey = Survey(False, missing={"target images": "no folder", "regions": "no weights"})
    estimates = StageEstimates(survey, PLAN_CONFIG, WorkCounts(0, 0, 0, 0))
    estimates.measure(str)
    assert estimates.stages == []
    assert estimates.not_measured == [
        "masks: not measured without target images, regions",
        "training: not measured without target images, regions",
        "evaluation: not measured without target images",
    ]
