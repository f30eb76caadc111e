"""Region sources: the recipe of a mask run, and the classical segmenter."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator

from sfss_ray.config import MaskConfig
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.masks.regions import (
    NOTES,
    SAM_THRESHOLDS,
    RegionRecipe,
    build_region_source,
    choose_source,
    make_recipe,
    note_of,
)
from sfss_ray.masks.sam.networks import build_small_sam, shipped_small_sam
from sfss_ray.models.reading import checkpoint_sha256, file_sha256
from sfss_ray.streets.scenes import render_scene


def scene(height: int = 90, width: int = 120) -> np.ndarray:
    """Return an image of sky, ground and a box, with a little noise."""
    image = np.full((height, width, 3), (120, 160, 230), np.int16)
    image[height // 2 :] = (90, 90, 80)
    image[height // 3 : 2 * height // 3, width // 4 : width // 2] = (200, 30, 30)
    noise = np.random.default_rng(0).integers(-4, 5, image.shape)
    return (image + noise).astype(np.uint8)


def segment(image: np.ndarray, **knobs) -> list[dict]:
    recipe, checkpoint = make_recipe(MaskConfig(regions="felzenszwalb", **knobs), None)
    assert checkpoint is None
    return build_region_source(recipe, None, 64, "cpu")(image)


def decoded(records: list[dict], image: np.ndarray) -> np.ndarray:
    size = list(image.shape[:2])
    rles = [{"counts": r["counts"].encode(), "size": size} for r in records]
    return coco.decode(rles).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(90, 120), (1, 1), (1, 40), (33, 17)])
def test_regions_cover_the_image_exactly_once(size):
    image = scene(*size) if min(size) > 9 else np.zeros((*size, 3), np.uint8)
    records = segment(image)
    assert (decoded(records, image).sum(0) == 1).all()


def test_records_describe_their_masks():
    image = scene()
    records = segment(image)
    assert len(records) >= 3
    for record, mask in zip(records, decoded(records, image), strict=True):
        ys, xs = np.nonzero(mask)
        x, y, width, height = record["bbox"]
        assert record["area"] == mask.sum()
        assert (x, y) == (xs.min(), ys.min())
        assert (width, height) == (np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert record["crop_box"] == [0, 0, 120, 90]


def test_scores_and_points_of_a_classical_segmenter_are_nan():
    for record in segment(scene()):
        assert np.isnan([record["predicted_iou"], record["stability_score"]]).all()
        assert np.isnan(record["point"]).all()


def test_the_box_in_the_scene_is_a_region():
    image = scene()
    truth = (image[..., 0] > 180) & (image[..., 1] < 60)
    masks = decoded(
        segment(image, felzenszwalb_scale=300.0, felzenszwalb_min_size=200), image
    ).astype(bool)
    iou = max((m & truth).sum() / (m | truth).sum() for m in masks)
    assert iou > 0.8  # smoothing makes it wider by a pixel on each side


def test_the_minimum_size_of_regions_scales_with_the_image():
    """400 px of a 480x360 image are 100 px of one with half the sides."""
    noise = np.random.default_rng(0).integers(0, 256, (180, 240, 3), dtype=np.uint8)
    smallest = min(r["area"] for r in segment(noise, felzenszwalb_min_size=400))
    assert 100 <= smallest < 400
    large = np.random.default_rng(0).integers(0, 256, (360, 480, 3), dtype=np.uint8)
    assert min(r["area"] for r in segment(large, felzenszwalb_min_size=400)) >= 400


def test_a_larger_scale_means_fewer_regions():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    coarse = segment(noise, felzenszwalb_scale=3000.0, felzenszwalb_min_size=1)
    assert len(coarse) < len(segment(noise, felzenszwalb_scale=30.0, felzenszwalb_min_size=1))


@pytest.mark.parametrize(
    ("regions", "checkpoint", "source"),
    [
        ("auto", None, "felzenszwalb"),
        ("auto", "sam.pt", "sam"),
        ("sam", "sam.pt", "sam"),
        ("small_sam", None, "small_sam"),
        ("felzenszwalb", None, "felzenszwalb"),
    ],
)
def test_the_source_follows_from_config_and_checkpoint(regions, checkpoint, source):
    assert choose_source(MaskConfig(regions=regions), checkpoint) == source
    assert source in NOTES


def test_sam_needs_its_checkpoint():
    with pytest.raises(
        ConfigError, match=r"regions is 'sam' but no SAM checkpoint was given: give"
    ):
        make_recipe(MaskConfig(regions="sam"), None)


@pytest.mark.parametrize("regions", ["felzenszwalb", "small_sam"])
def test_a_checkpoint_that_would_be_ignored_is_refused(regions):
    with pytest.raises(ConfigError, match=f"regions is '{regions}' but a SAM checkpoint was given"):
        make_recipe(MaskConfig(regions=regions), "sam.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"):
        make_recipe(MaskConfig(), tmp_path / "nowhere.pt")


def test_the_recipe_of_a_classical_run_contains_only_its_settings():
    config = MaskConfig(felzenszwalb_scale=80.0, points_per_side=4)
    recipe, _ = make_recipe(config, None)
    assert recipe == make_recipe(MaskConfig(felzenszwalb_scale=80.0), None)[0]
    assert recipe.knobs == {"felzenszwalb_scale": 80.0, "felzenszwalb_min_size": 50}
    assert (recipe.source, recipe.sam_sha256) == ("felzenszwalb", "")
    assert RegionRecipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_the_recipe_of_a_sam_run_contains_type_weights_and_settings(tmp_path: Path):
    path = tmp_path / "sam.pt"
    torch.save(build_small_sam().state_dict(), path)
    recipe, checkpoint = make_recipe(MaskConfig(points_per_side=4), path)
    assert (recipe.source, recipe.sam_type, checkpoint) == ("sam", "small", path)
    assert recipe.sam_sha256 == file_sha256(path)
    assert recipe.knobs["points_per_side"] == 4
    assert "points_per_batch" not in recipe.knobs  # it changes no mask
    with pytest.raises(CheckpointError, match="vit_b"):
        make_recipe(MaskConfig(), path, "vit_b")


def test_the_small_sam_has_its_own_default_thresholds():
    measured = json.loads(shipped_small_sam().with_suffix(".json").read_text())["generator"]
    knobs = make_recipe(MaskConfig(regions="small_sam", box_nms_thresh=0.65), None)[0].knobs
    assert knobs["box_nms_thresh"] == 0.65
    assert knobs["points_per_side"] == MaskConfig().points_per_side
    for name in ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset"):
        assert knobs[name] == measured[name] != SAM_THRESHOLDS[name]
    explicit = make_recipe(MaskConfig(regions="small_sam", **SAM_THRESHOLDS), None)[0].knobs
    assert {name: explicit[name] for name in SAM_THRESHOLDS} == SAM_THRESHOLDS


def test_default_thresholds_are_those_of_sam(tmp_path: Path):
    path = tmp_path / "sam.pt"
    torch.save(build_small_sam().state_dict(), path)
    knobs = make_recipe(MaskConfig(box_nms_thresh=0.65), path)[0].knobs
    assert knobs["box_nms_thresh"] == 0.65
    stock = inspect.signature(SamAutomaticMaskGenerator).parameters
    for name in ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset"):
        assert knobs[name] == stock[name].default
    assert SAM_THRESHOLDS["box_nms_thresh"] == stock["box_nms_thresh"].default


def test_the_recipe_contains_crop_settings_only_if_they_differ_from_sams():
    """Runs of earlier releases without these settings can be resumed."""
    names = ("crop_n_points_downscale_factor", "crop_overlap_ratio", "crop_nms_thresh")
    stock = inspect.signature(SamAutomaticMaskGenerator).parameters
    assert all(getattr(MaskConfig(), name) == stock[name].default for name in names)
    changed = {"crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.5}
    one_layer = {"regions": "small_sam", "points_per_side": 2, "crop_n_layers": 1}
    plain = make_recipe(MaskConfig(**one_layer), None)[0]
    assert not set(names) & set(plain.knobs)
    assert make_recipe(MaskConfig(**one_layer, **changed), None)[0].knobs == plain.knobs | changed
    without = make_recipe(MaskConfig(**(one_layer | changed | {"crop_n_layers": 0})), None)[0]
    assert not set(names) & set(without.knobs)


def test_the_recipe_contains_skipping_only_if_it_is_on():
    """Runs of earlier releases without this setting can be resumed."""
    plain = make_recipe(MaskConfig(regions="small_sam"), None)[0]
    skipping = make_recipe(MaskConfig(regions="small_sam", skip_covered_iou=0.8), None)[0]
    assert "skip_covered_iou" not in plain.knobs
    assert skipping.knobs == plain.knobs | {"skip_covered_iou": 0.8}


def test_crops_have_the_configured_number_of_points():
    image = render_scene("camera", 5, 0).image
    knobs = {
        "regions": "small_sam",
        "points_per_side": 4,
        "crop_n_layers": 1,
        "pred_iou_thresh": 0.0,
    }
    points_in_crops = []
    for factor in (1, 4):
        config = MaskConfig(**knobs, crop_n_points_downscale_factor=factor)
        recipe, checkpoint = make_recipe(config, None)
        records = build_region_source(recipe, checkpoint, 64, "cpu")(image)
        in_crops = [r for r in records if r["crop_box"][2:] != [image.shape[1], image.shape[0]]]
        points_in_crops.append(len({(tuple(r["crop_box"]), tuple(r["point"])) for r in in_crops}))
    assert points_in_crops[0] > points_in_crops[1]
    assert points_in_crops[1] <= 4, "one point in each of four crops"


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_caller_hears_of_each_encoded_crop(embeddings):
    calls: list[int] = []
    knobs = {"points_per_side": 2, "crop_n_layers": 1, "embeddings": embeddings}
    recipe, checkpoint = make_recipe(MaskConfig(regions="small_sam", **knobs), None)
    find = build_region_source(recipe, checkpoint, 8, "cpu", on_encoded=lambda: calls.append(1))
    image = scene()
    assert not calls
    find(image)
    assert len(calls) == 5, "the image and four crops"
    find(image)
    assert len(calls) == 10


def test_crops_without_a_point_are_refused():
    knobs = {"points_per_side": 8, "crop_n_layers": 2, "crop_n_points_downscale_factor": 3}
    with pytest.raises(ConfigError, match="crops of layer 2 would have no points"):
        make_recipe(MaskConfig(regions="small_sam", **knobs), None)
    assert make_recipe(MaskConfig(regions="felzenszwalb", **knobs), None)


def test_sam_records_have_the_fields_of_the_store(tmp_path: Path):
    path = tmp_path / "sam.pt"
    torch.manual_seed(0)
    torch.save(build_small_sam().state_dict(), path)
    config = MaskConfig(points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    recipe, checkpoint = make_recipe(config, path)
    image = scene()
    records = build_region_source(recipe, checkpoint, 2, "cpu")(image)
    assert records
    keys = {"counts", "area", "bbox", "predicted_iou", "stability_score", "point", "crop_box"}
    keys |= {"embedding"}
    for record, mask in zip(records, decoded(records, image), strict=True):
        assert set(record) == keys
        assert isinstance(record["counts"], str)
        assert record["area"] == mask.sum()


def test_the_recipe_contains_bf16_and_omits_fp32(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    masks, recipes = {}, {}
    for precision in ("fp32", "bf16"):
        thresholds = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 4}
        config = MaskConfig(regions="small_sam", precision=precision, **thresholds)
        recipe, checkpoint = make_recipe(config, None)
        recipes[precision] = recipe.as_dict()
        assert RegionRecipe(**recipes[precision]) == recipe
        masks[precision] = build_region_source(recipe, checkpoint, 64, "cpu")(image)
    assert recipes["bf16"] == recipes["fp32"] | {"precision": "bf16"}
    assert "precision" not in recipes["fp32"]
    assert masks["fp32"] != masks["bf16"]


@pytest.mark.parametrize("kind", ["hf_sam", "sam2", "sam3"])
def test_the_recipe_names_the_kind_of_a_network_of_transformers(kind: str, tmp_path: Path):
    models = pytest.importorskip("family_models", reason="pip install transformers")
    models.MODELS[kind]().save_pretrained(tmp_path)
    config = MaskConfig(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.3)
    recipe, checkpoint = make_recipe(config, tmp_path)
    assert (recipe.source, recipe.sam_type, checkpoint) == ("sam", kind, tmp_path)
    assert recipe.sam_sha256 == checkpoint_sha256(tmp_path)
    assert RegionRecipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert note_of(recipe.as_dict()).endswith("from transformers")
    records = build_region_source(recipe, checkpoint, 2, "cpu")(scene())
    assert records
    for record, mask in zip(records, decoded(records, scene()), strict=True):
        assert record["area"] == mask.sum()


def test_notes_of_shards_without_a_network_of_transformers_are_those_of_their_source():
    assert note_of({"source": "sam", "sam_type": "small"}) == NOTES["sam"]
    assert note_of({"source": "sam", "sam_type": "vit_b"}) == "segment-anything, vit_b"
    assert note_of({"source": "felzenszwalb", "sam_type": ""}) == NOTES["felzenszwalb"]
    assert note_of({"source": "imported"}) == NOTES["imported"]
    assert note_of({}) == note_of({"source": "x"}) == "a source that this version does not know"
