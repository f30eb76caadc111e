"""Measurements of masks, training steps and evaluations, against real runs and a replaced clock."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from plan_config import PLAN_CONFIG

from sfss_ray.config import override
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import list_images
from sfss_ray.errors import DataError
from sfss_ray.inspection import cost_meter, measurements
from sfss_ray.inspection.measurements import (
    _EncoderClock,
    _scale_to_all_points,
    measure_concepts,
    measure_evaluation,
    measure_mask_generation,
    measure_training,
)
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.concept_stage import ConceptStage
from sfss_ray.masks.regions import RegionRecipe, build_region_source, make_recipe
from sfss_ray.models.source import open_source
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import render_scene
from sfss_ray.train import adaptation
from sfss_ray.train.adaptation import AdaptationTask, adapt_student
from sfss_ray.train.run_state import STATE_FILE, LocalRun


def test_the_size_of_a_checkpoint_is_that_of_a_real_one(streets, tmp_path: Path):
    file = list_images(streets / "target" / "images")[0]
    source = open_source(SOURCE_MODEL)
    recipe, weights = make_recipe(PLAN_CONFIG.masks, None)
    cost, masks = measure_mask_generation(
        recipe, weights, read_image(file.path), PLAN_CONFIG, "cpu"
    )
    assert cost.note == f"{len(masks)} masks on this image"
    assert len(masks) > 1
    cost = measure_training(source, file, masks, PLAN_CONFIG, "cpu")
    row = {"image_id": file.image_id, "path": "", "height": 64, "width": 128, "error": None}
    write_shard(tmp_path / "masks-1.parquet", [row | {"masks": masks}], recipe.as_dict())
    short = override(PLAN_CONFIG, {"train.num_steps": 1, "train.statistics_images": 0})
    adapt_student(
        AdaptationTask(source.path, (file,), tmp_path, short), LocalRun(tmp_path / "state")
    )
    size = (tmp_path / "state" / STATE_FILE).stat().st_size / 1e6
    assert cost.disk_mb == pytest.approx(size, rel=0.05)


def test_few_points_are_scaled_to_all_points_of_all_crops():
    """An encoder of 2 s, .1 s a point: 5 crops of 64 points are 5 * (2 + 6.4) s."""
    seconds, factor = _scale_to_all_points(2.0, 3.6, {"points_per_side": 8, "crop_n_layers": 1})
    assert seconds == pytest.approx(42.0)
    assert factor == 5 * 64 / 16
    knobs = {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    seconds, factor = _scale_to_all_points(2.0, 3.6, knobs)
    assert seconds == pytest.approx(5 * 2.0 + (64 + 4 * 16) * 0.1)
    assert factor == (64 + 4 * 16) / 16


def test_a_large_sam_is_measured_with_few_points_and_one_pass_of_its_encoder(monkeypatch):
    """An encoder of 2 s and 16 points of .1 s by the clock, scaled to 5 crops of 1024 points."""
    clock = [0.0]

    def build(recipe, checkpoint, points_per_batch, device, on_encoded):
        assert (recipe.knobs["points_per_side"], recipe.knobs["crop_n_layers"]) == (4, 0)

        def region_source(image):
            clock[0] += 2.0
            on_encoded()
            clock[0] += 1.6
            return []

        return region_source

    monkeypatch.setattr(measurements, "build_region_source", build)
    for module in (measurements, cost_meter):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    recipe = RegionRecipe("sam", "vit_h", "", {"points_per_side": 32, "crop_n_layers": 1})
    cost, _ = measure_mask_generation(
        recipe, None, np.zeros((8, 8, 3), np.uint8), PLAN_CONFIG, "cpu"
    )
    assert cost.seconds == pytest.approx(5 * (2.0 + 1024 * 0.1))
    assert cost.note == "from 16 points; disk at most"


def test_concepts_are_measured_with_one_prompt_and_one_pass_of_the_encoder(monkeypatch):
    """An encoder of 2 s and .5 s for a prompt by the clock, scaled to 3 prompts."""
    clock = [0.0]

    def build(recipe, checkpoint, points_per_batch, device, on_encoded):
        assert recipe.knobs["prompts"] == {"pole": ["pole"]}
        clock[0] += 60.0  # loading

        def find_masks(image):
            clock[0] += 2.0
            on_encoded()
            clock[0] += 0.5
            return []

        return find_masks

    monkeypatch.setattr(measurements, "build_region_source", build)
    for module in (measurements, cost_meter):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    prompts = {"void": [], "pole": ["pole", "street lamp"], "road": ["road"]}
    recipe = RegionRecipe("concepts", "sam3_concepts", "", {"prompts": prompts})
    stage = ConceptStage(recipe, Path("sam3"))
    cost = measure_concepts(stage, np.zeros((8, 8, 3), np.uint8), PLAN_CONFIG, "cpu")
    assert cost.seconds == pytest.approx(2.0 + 3 * 0.5)
    assert cost.note == "external knowledge, from 1 of 3 prompts"


def test_the_clock_of_the_encoder_takes_the_first_crop_alone(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measurements, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    encoder = _EncoderClock("cpu")
    for expected in (2.0, 3.0):
        encoder.start()
        clock[0] += expected
        encoder.stop()
        clock[0] += 5.0
        encoder.stop()
        assert encoder.seconds == expected


KNOBS = {"masks.regions": "small_sam", "masks.points_per_side": 8}


@pytest.mark.parametrize(
    "knobs", [{}, {"embeddings": False}, {"skip_covered_iou": 0.8}, {"precision": "bf16"}]
)
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.filterwarnings("error")
def test_measured_masks_are_made_as_those_of_a_run(knobs, is_scaled, monkeypatch):
    """Neither the small SAM nor a published one goes the slow way of segment-anything's own calls."""
    image = render_scene("camera", 5, 0).image
    config = override(PLAN_CONFIG, KNOBS | {f"masks.{name}": knobs[name] for name in knobs})
    recipe, weights = make_recipe(config.masks, None)
    if is_scaled:
        monkeypatch.setattr(measurements, "_FEW_POINTS_PER_SIDE", 8)
        recipe = dataclasses.replace(recipe, sam_type="vit_b")
    cost, masks = measure_mask_generation(recipe, weights, image, config, "cpu")
    assert masks == build_region_source(recipe, weights, 64, "cpu")(image)
    assert ("embedding" in masks[0]) == knobs.get("embeddings", True)
    assert cost.seconds > 0


@pytest.mark.parametrize("has_masks", [True, False])
def test_trainings_in_which_masks_ask_neighbours_are_measured(streets, has_masks):
    file = list_images(streets / "target" / "images")[0]
    config = override(PLAN_CONFIG, KNOBS | {"train.loss.neighbour_weight": 2.0})
    recipe, weights = make_recipe(config.masks, None)
    _, masks = measure_mask_generation(recipe, weights, read_image(file.path), config, "cpu")
    assert masks
    assert "embedding" in masks[0]
    source = open_source(SOURCE_MODEL)
    cost = measure_training(source, file, masks if has_masks else [], config, "cpu")
    alone = override(config, {"train.loss.neighbour_weight": 0.0})
    plain = measure_training(source, file, masks if has_masks else [], alone, "cpu")
    assert cost.seconds > 0
    # The ring of masks is part of a checkpoint, where the image has a mask.
    assert (cost.disk_mb > plain.disk_mb + 1) == has_masks


def test_a_slow_step_is_measured_once(streets, monkeypatch):
    file = list_images(streets / "target" / "images")[0]
    steps: list[dict] = []
    report = measurements._TimedRun.report

    def count(self, metrics, state):
        steps.append(metrics)
        report(self, metrics, state)

    monkeypatch.setattr(measurements._TimedRun, "report", count)
    source = open_source(SOURCE_MODEL)
    measure_training(source, file, [], PLAN_CONFIG, "cpu")
    assert len(steps) == 3
    steps.clear()
    monkeypatch.setattr(measurements, "SLOW_STEP_S", 0.0)
    cost = measure_training(source, file, [], PLAN_CONFIG, "cpu")
    assert len(steps) == 1
    assert cost.seconds > 0
    assert cost.disk_mb > 1


def test_crops_too_large_for_the_memory_are_one_line(streets, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(adaptation, "adapt_student", fail)
    file = list_images(streets / "target" / "images")[0]
    line = "2 crops of 64x96 pixels are too many for the memory: lower train.augment.crop_size or"
    with pytest.raises(DataError, match=line):
        measure_training(open_source(SOURCE_MODEL), file, [], PLAN_CONFIG, "cpu")


def test_workers_share_the_batch(streets):
    file = list_images(streets / "target" / "images")[0]
    config = override(PLAN_CONFIG, {"compute.num_workers": 2})
    cost = measure_training(open_source(SOURCE_MODEL), file, [], config, "cpu")
    assert cost.note == "1 crops of 64x96"


def test_a_range_of_workers_is_measured_with_the_fewest(streets):
    file = list_images(streets / "target" / "images")[0]
    knobs = {"compute.num_workers": "1-2", "train.batch_size": 3}
    config = override(PLAN_CONFIG, knobs)
    cost = measure_training(open_source(SOURCE_MODEL), file, [], config, "cpu")
    assert cost.note == "3 crops of 64x96, with the fewest of 1-2 workers"


def test_an_evaluation_is_that_of_one_image(streets):
    file = list_images(streets / "target" / "images")[0]
    cost = measure_evaluation(open_source(SOURCE_MODEL), file, PLAN_CONFIG, "cpu")
    assert cost.note == "128x64 image"
    assert 0 < cost.seconds < 30
    assert (cost.memory_mb > 50, cost.disk_mb) == (True, 0.0)
