"""Masks with classes of a folder of images: recipe, shards, resume, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from concept_models import save_concept_model
from mask_runs import put_noise, run_pools_in_process

from sfss_ray.config import Config, override
from sfss_ray.data.folders import list_images
from sfss_ray.errors import ConfigError, DataError, ResumeError
from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concept_stage import check_concepts, make_concept_masks
from sfss_ray.masks.generate import generate_masks
from sfss_ray.masks.regions import build_region_source, note_of

CLASSES = ("road", "pole", "void")
KNOBS = {"masks.concept_prompts": "pole: pole, street lamp; void: -"}


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    run_pools_in_process(monkeypatch)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_concept_model(tmp_path_factory.mktemp("sam3"))


@pytest.fixture
def images(tmp_path: Path):
    return list_images(put_noise(tmp_path / "images", "a.png", "b.png", "c.png"))


def configured(saved: Path, **changes) -> Config:
    base = {
        "compute.device": "cpu",
        "masks.concepts": str(saved),
        "masks.concept_score_thresh": 0.4,
    }
    return override(Config(), base | KNOBS | changes)


def make(saved: Path, images, folder: Path, **changes):
    config, lines = configured(saved, **changes), []
    stage = check_concepts(config, CLASSES)
    return make_concept_masks(stage, images, folder, config, lines.append), lines


def test_shards_hold_the_masks_of_every_image_with_class_and_score(saved, images, tmp_path):
    made, lines = make(saved, images, tmp_path / "concepts")
    assert (made.images, made.failed, made.folder) == (3, 0, tmp_path / "concepts")
    store = MaskStore(tmp_path / "concepts")
    assert made.masks == store.num_masks > 0
    stage = check_concepts(configured(saved), CLASSES)
    find_masks = build_region_source(stage.recipe, stage.checkpoint, 64, "cpu")
    for image in images:
        masks, expected = store.load(image.image_id)["masks"], find_masks(image.read())
        assert [m["class_id"] for m in masks] == [m["class_id"] for m in expected]
        scores = [m["predicted_iou"] for m in masks]
        assert scores == pytest.approx([m["predicted_iou"] for m in expected], abs=1e-5)
        assert {m["class_id"] for m in masks} <= {0, 1}, "void is not searched for"
        assert min(scores, default=1) > 0.4
    assert lines[0] == f"external knowledge: {saved} (SAM 3), 3 prompts for 2 of 3 classes"
    assert note_of(store.recipe) == "SAM 3 prompted with class names"


def test_class_agnostic_shards_have_no_classes(images, tmp_path):
    generate_masks(tmp_path / "images", tmp_path / "masks", progress=str)
    (path, *_) = shard_paths(tmp_path / "masks")
    assert "class_id" not in str(pq.read_schema(path))


def test_a_second_call_makes_nothing_and_other_settings_are_refused(saved, images, tmp_path):
    first, _ = make(saved, images, tmp_path / "concepts")
    again, lines = make(saved, images, tmp_path / "concepts")
    assert (again.masks, len(lines)) == (first.masks, 1)
    same = {"masks.concept_prompts": "void:-; pole: street lamp,  pole"}
    make(saved, images, tmp_path / "concepts", **same)
    for name, value in {
        "concept_prompts": "pole: lamp; void: -",
        "concept_score_thresh": 0.3,
    }.items():
        with pytest.raises(ResumeError, match=r"masks made with other settings \((prompts|score)"):
            make(saved, images, tmp_path / "concepts", **{f"masks.{name}": value})
    other = save_concept_model(tmp_path / "other", seed=6)
    with pytest.raises(ResumeError, match="sam_sha256"):
        make(other, images, tmp_path / "concepts")


def test_images_that_cannot_be_read_have_no_masks_with_classes(saved, images, tmp_path):
    (tmp_path / "images" / "b.png").write_bytes(b"")
    made, lines = make(saved, images, tmp_path / "concepts")
    assert (made.images, made.failed) == (3, 1)
    assert lines[-1].startswith("concepts: 1 images have no masks with classes (first: 'b': ")
    for name in ("a.png", "c.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 3 images has masks with classes; 'a'"):
        make(saved, images, tmp_path / "elsewhere")


def test_prompts_are_checked_before_any_work(saved):
    with pytest.raises(ConfigError, match="no class 'tree'"):
        check_concepts(configured(saved, **{"masks.concept_prompts": "tree: tree"}), CLASSES)
    long = {"masks.concept_prompts": f"pole: {'street ' * 40}"}
    with pytest.raises(ConfigError, match="has 42 tokens"):
        check_concepts(configured(saved, **long), CLASSES)


def test_masks_without_a_source_model_have_no_classes_to_prompt_with(saved, images, tmp_path):
    with pytest.raises(ConfigError, match="masks are made without a source model"):
        generate_masks(
            tmp_path / "images", tmp_path / "masks", config=configured(saved), progress=str
        )
