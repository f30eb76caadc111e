"""Plans: every input found or missing, the numbers of the run, and nothing written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plan_config import PLAN_CONFIG

from sfss_ray.config import override
from sfss_ray.data.folders import list_images, split_held_out
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.record import claim_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.inspection.plan_result import Plan
from sfss_ray.inspection.run_plan import plan
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.regions import make_recipe
from sfss_ray.runtime import cluster
from sfss_ray.streets.default import SOURCE_MODEL


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    def prepare_environment() -> None:
        raise AssertionError("a cluster would have been started")

    monkeypatch.setattr(cluster, "prepare_environment", prepare_environment)


def planned(streets: Path, output: Path, search: bool = False) -> Plan:
    return plan(
        SOURCE_MODEL,
        streets / "target" / "images",
        output,
        val_images=streets / "val" / "images",
        val_labels=streets / "val" / "labels",
        search=search,
        config=PLAN_CONFIG,
        progress=str,
    )


def begin_run(streets: Path, output: Path) -> None:
    """Claim a folder for a run with the arguments of `planned`."""
    request = Request(
        "adapt",
        SOURCE_MODEL,
        streets / "target" / "images",
        output,
        PLAN_CONFIG,
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
    # Three evaluations in each of five trials and the last training; then four networks.
    assert stages["evaluation"].units == (2 + result.held_out) * (3 * 6 + 4)
    assert all(s.unit_seconds > 0 and s.memory_mb > 50 for s in result.stages)
    assert result.total_seconds == sum(s.seconds for s in result.stages)
    assert not (tmp_path / "run").exists()
    page = "\n".join(result.lines())
    assert "ready: nothing is missing" in page
    assert "5 trials and a last training of 40 steps of 2 crops 64x96" in page


def test_existing_masks_are_not_made_again(streets, tmp_path: Path):
    begin_run(streets, tmp_path / "run")
    folder = tmp_path / "run" / "masks"
    folder.mkdir(parents=True)
    recipe, _ = make_recipe(PLAN_CONFIG.masks, None)
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


def test_a_damaged_first_image_does_not_hide_the_cost(streets, tmp_path: Path):
    for place in ("target/images", "val/images", "val/labels"):
        shutil.copytree(streets / place, tmp_path / place)
    for place in ("target", "val"):
        image = list_images(tmp_path / place / "images")[0].path
        assert isinstance(image, Path)
        image.write_bytes(image.read_bytes()[:100])
    result = planned(tmp_path, tmp_path / "run")
    assert [stage.name for stage in result.stages] == ["masks", "training", "evaluation"]
    assert result.not_measured == ()


def test_images_without_masks_are_not_measured(streets, tmp_path: Path):
    images = list_images(streets / "target" / "images")
    size = {"height": 64, "width": 128}
    rows = [
        {"image_id": file.image_id, "path": str(file.path), "masks": [], "error": None} | size
        for file in images
    ]
    rows[0]["error"] = "damaged"
    write_shard(tmp_path / "masks-1.parquet", rows, {})
    result = plan(
        SOURCE_MODEL,
        streets / "target" / "images",
        tmp_path / "run",
        masks=tmp_path,
        config=PLAN_CONFIG,
        progress=str,
    )
    assert [stage.name for stage in result.stages] == ["training", "evaluation"]


def test_a_tracker_that_is_not_installed_is_missing(streets, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for trackers, is_ready in ((("tensorboard",), True), (("mlflow", "tensorboard"), False)):
        result = plan(
            SOURCE_MODEL,
            streets / "target" / "images",
            tmp_path / "run",
            config=PLAN_CONFIG,
            trackers=trackers,
            progress=str,
        )
        assert result.ready == is_ready
        assert result.found.get("trackers") == ("tensorboard" if is_ready else None)
    assert "pip install 'sfss-ray[mlflow]'" in result.missing["trackers"]


def test_every_missing_input_is_named_at_once(tmp_path: Path):
    result = plan(
        tmp_path / "no.pt",
        tmp_path / "nowhere",
        tmp_path / "run",
        sam_checkpoint=tmp_path / "no.pth",
        val_images=tmp_path / "val",
        config=override(PLAN_CONFIG, {"compute.num_workers": 3}),
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


def test_stages_are_measured_although_another_input_is_missing(streets, tmp_path: Path):
    result = plan(
        None, streets / "target" / "images", tmp_path / "run", config=PLAN_CONFIG, progress=str
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
            config=override(PLAN_CONFIG, {"labels_format": labels_format}),
            progress=str,
        )
        assert ("val labels" in result.missing) == refused
        assert result.labelled == (0 if refused else 2)
