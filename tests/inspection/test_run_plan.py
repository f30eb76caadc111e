"""Plans: everything found and missing at once, numbers that are those of the run, nothing written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sfss_ray.config import Config, override
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import list_images, split_held_out
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.record import claim_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.inspection import measurements
from sfss_ray.inspection.measurements import _scaled, measure_masks, measure_training
from sfss_ray.inspection.plan_result import Plan, Stage
from sfss_ray.inspection.run_plan import plan
from sfss_ray.masks.regions import RegionRecipe, make_recipe
from sfss_ray.models.source import open_source
from sfss_ray.runtime import cluster
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets
from sfss_ray.train.adaptation import AdaptationTask, adapt_student
from sfss_ray.train.run_state import STATE_FILE, LocalRun

CONFIG = override(
    Config(),
    {
        "compute.device": "cpu",
        "train.num_steps": 40,
        "train.evaluate_every": 15,
        "train.batch_size": 2,
        "train.augment.crop_size": [64, 96],
        "train.pairs.bank_size": 8,
        "tune.num_trials": 5,
        "compute.concurrent_trials": 2,
        "compute.mask_actors": 2,
    },
)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    def started() -> None:
        raise AssertionError("a cluster would have been started")

    monkeypatch.setattr(cluster, "prepare_environment", started)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root / "target", "camera", 5, 8, (64, 128), with_labels=False)
    write_streets(root / "val", "camera", 6, 2, (64, 128))
    return root


def planned(streets: Path, output: Path, search: bool = False) -> Plan:
    return plan(
        SOURCE_MODEL,
        streets / "target" / "images",
        output,
        val_images=streets / "val" / "images",
        val_labels=streets / "val" / "labels",
        search=search,
        config=CONFIG,
        progress=str,
    )


def begin_run(streets: Path, output: Path) -> None:
    """Claim a folder as a run of `planned`'s arguments does."""
    request = Request(
        "adapt",
        SOURCE_MODEL,
        streets / "target" / "images",
        output,
        CONFIG,
        val_images=streets / "val" / "images",
        val_labels=streets / "val" / "labels",
    )
    claim_inputs(request, check_inputs(request), str)


def test_a_plan_counts_what_a_run_would_do(streets, tmp_path: Path):
    result = planned(streets, tmp_path / "run", search=True)
    assert result.ready
    assert (result.images, result.labelled, result.masks_to_make, result.trials) == (8, 2, 8, 5)
    training, held_out = split_held_out(list_images(streets / "target" / "images"), 0.15, 64)
    assert result.held_out == len(held_out) == 8 - len(training)
    stages = {stage.name: stage for stage in result.stages}
    assert list(stages) == ["masks", "search", "training", "evaluation"]
    assert stages["masks"].units == 8
    assert stages["search"].units == 3 * 2 * 40  # three rounds of two trials
    assert stages["search"].seconds == pytest.approx(3 * 40 * stages["training"].unit_seconds)
    assert stages["training"].units == 40
    # Three looks in each of five trials and the last training; then two networks.
    assert stages["evaluation"].units == (2 + result.held_out) * (3 * 6 + 2)
    assert all(s.unit_seconds > 0 and s.memory_mb > 50 for s in result.stages)
    assert result.total_seconds == sum(s.seconds for s in result.stages)
    assert not (tmp_path / "run").exists()
    page = "\n".join(result.lines())
    assert "ready: nothing is missing" in page
    assert "5 trials and a last training of 40 steps of 2 crops 64x96" in page


def test_masks_that_are_there_are_not_made_again(streets, tmp_path: Path):
    from sfss_ray.masks.bank.schema import write_shard

    begin_run(streets, tmp_path / "run")
    folder = tmp_path / "run" / "masks"
    folder.mkdir(parents=True)
    recipe, _ = make_recipe(CONFIG.masks, None)
    size = {"height": 64, "width": 128}
    rows = [
        {"image_id": file.image_id, "path": str(file.path), "masks": [], "error": None} | size
        for file in list_images(streets / "target" / "images")[:3]
    ]
    write_shard(folder / "masks-1.parquet", rows, recipe.as_dict())
    result = planned(streets, tmp_path / "run")
    assert result.masks_to_make == 5
    assert result.stages[0].units == 5
    assert "resumes the run in it" in result.found["output"]


def test_everything_missing_is_named_at_once(tmp_path: Path):
    result = plan(
        tmp_path / "no.pt",
        tmp_path / "nowhere",
        tmp_path / "run",
        sam_checkpoint=tmp_path / "no.pth",
        val_images=tmp_path,
        config=override(CONFIG, {"compute.num_workers": 3}),
        progress=str,
    )
    assert set(result.missing) == {
        "settings",
        "device",
        "source model",
        "target images",
        "regions",
        "val labels",
    }
    assert not result.ready
    assert result.stages == ()
    assert len(result.not_measured) == 3
    page = "\n".join(result.lines())
    assert page.count("MISSING") == 6
    assert "not ready: 6 missing" in page


def test_what_is_there_is_measured_beside_what_is_missing(streets, tmp_path: Path):
    result = plan(
        None, streets / "target" / "images", tmp_path / "run", config=CONFIG, progress=str
    )
    assert set(result.missing) == {"source model"}
    assert [stage.name for stage in result.stages] == ["masks"]
    assert "training: not measured without source model" in result.not_measured


def test_labels_are_read_as_the_config_says(streets, tmp_path: Path):
    """Cityscapes' labelIds: 33 is no train id."""
    for path in (streets / "val" / "images").iterdir():
        ids = np.full((64, 128), 7, np.uint8)
        ids[:32] = 33
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(ids).save(tmp_path / "labels" / f"{path.stem}.png")
    for labels_format, refused in (("cityscapes_label_ids", False), ("train_ids", True)):
        result = plan(
            SOURCE_MODEL,
            streets / "target" / "images",
            tmp_path / "run",
            val_images=streets / "val" / "images",
            val_labels=tmp_path / "labels",
            config=override(CONFIG, {"labels_format": labels_format}),
            progress=str,
        )
        assert ("val labels" in result.missing) == refused
        assert result.labelled == (0 if refused else 2)


def test_a_checkpoint_is_as_large_as_was_said(streets, tmp_path: Path):
    """Against the state that a real training of these steps leaves."""
    file = list_images(streets / "target" / "images")[0]
    source = open_source(SOURCE_MODEL)
    recipe, weights = make_recipe(CONFIG.masks, None)
    measured, masks = measure_masks(recipe, weights, read_image(file.path), CONFIG, "cpu")
    assert measured.note == f"{len(masks)} masks on this image"
    assert len(masks) > 1
    said = measure_training(source, file, masks, CONFIG, "cpu")
    from sfss_ray.masks.bank.schema import write_shard

    row = {"image_id": file.image_id, "path": "", "height": 64, "width": 128, "error": None}
    write_shard(tmp_path / "masks-1.parquet", [row | {"masks": masks}], recipe.as_dict())
    short = override(CONFIG, {"train.num_steps": 1, "train.statistics_steps": 0})
    adapt_student(
        AdaptationTask(source.path, (file,), tmp_path, short), LocalRun(tmp_path / "state")
    )
    size = (tmp_path / "state" / STATE_FILE).stat().st_size / 1e6
    assert said.disk_mb == pytest.approx(size, rel=0.05)


def test_few_points_are_scaled_to_all_points_of_all_crops():
    """An encoder of 2 s, .1 s a point: 5 crops of 64 points are 5 * (2 + 6.4) s."""
    seconds, factor = _scaled(2.0, 3.6, {"points_per_side": 8, "crop_n_layers": 1})
    assert seconds == pytest.approx(42.0)
    assert factor == 5 * 64 / 16
    knobs = {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    seconds, factor = _scaled(2.0, 3.6, knobs)
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

        def find(image):
            encoder(torch.zeros(1))
            clock[0] += 1.6
            return []

        return find

    monkeypatch.setattr(measurements, "build_region_source", build)
    monkeypatch.setattr(measurements, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    recipe = RegionRecipe("sam", "vit_h", "", {"points_per_side": 32, "crop_n_layers": 1})
    measured, _ = measure_masks(recipe, None, np.zeros((8, 8, 3), np.uint8), CONFIG, "cpu")
    assert measured.seconds == pytest.approx(5 * (2.0 + 1024 * 0.1))
    assert measured.note == "from 16 points; disk at most"
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_stage_is_shared_by_its_processes():
    stage = Stage("masks", 7, "images", 2.0, 3, 1.0, 1.0)
    assert stage.seconds == 6.0  # three rounds
