"""Measurements of masks, training steps and evaluations, against real runs and a replaced clock."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plan_config import PLAN_CONFIG

from sfss_ray.config import override
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import list_images
from sfss_ray.inspection import cost_meter, measurements
from sfss_ray.inspection.measurements import (
    _scale_to_all_points,
    measure_evaluation,
    measure_mask_generation,
    measure_training,
)
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.regions import RegionRecipe, make_recipe
from sfss_ray.models.source import open_source
from sfss_ray.streets.default import SOURCE_MODEL
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

    class ImageEncoderViT(torch.nn.Module):
        def forward(self, image):
            clock[0] += 2.0
            return image

    def build(recipe, checkpoint, points_per_batch, device):
        assert (recipe.knobs["points_per_side"], recipe.knobs["crop_n_layers"]) == (4, 0)
        encoder = ImageEncoderViT()

        def region_source(image):
            encoder(torch.zeros(1))
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
    assert not torch.nn.modules.module._global_forward_hooks


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
