"""Crop sizes that are chosen from the images of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from street_requests import CPU, adapt_arguments, request_for

import sfss_ray
from sfss_ray.config import AugmentConfig, Config, override
from sfss_ray.data.augment import draw_geometry
from sfss_ray.data.folders import ImageFile, list_images
from sfss_ray.errors import ConfigError, DataError, ResumeError
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.crop_size import choose_crop_size, typical_size, with_crop_size
from sfss_ray.inputs.record import claim_inputs, run_record
from sfss_ray.streets.default import SOURCE_MODEL

LIMIT = 512 * 512


def images_of(folder: Path, sizes: list[tuple[int, int]]) -> list[ImageFile]:
    """Write black images of (height, width)."""
    for number, size in enumerate(sizes):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / f"{number:03}.png")
    return list_images(folder)


@pytest.mark.parametrize(
    ("image", "crop"),
    [
        ((360, 480), (256, 352)),  # 3/4 of CamVid's frames is 270x360
        ((480, 360), (352, 256)),
        ((512, 512), (384, 384)),
        ((1024, 2048), (352, 704)),  # 362x724 has 512 * 512 pixels
        ((1080, 1920), (384, 672)),
        ((40, 60), (32, 32)),
    ],
)
def test_crops_have_the_shape_of_the_image_and_at_most_512_x_512_pixels(image, crop):
    assert choose_crop_size(image, AugmentConfig(), 2048) == crop


@pytest.mark.parametrize("zooms", [(0.75, 1.5), (1.0, 1.0), (0.6, 2.0), (1.5, 2.0)])
@pytest.mark.parametrize("max_size", [256, 1024])
def test_no_zoom_is_raised_to_fill_a_crop(zooms, max_size):
    rng = np.random.default_rng(0)
    for height, width in rng.integers(100, 3000, (50, 2)).tolist():
        augment = AugmentConfig(scale_range=zooms, max_size=max_size)
        crop = choose_crop_size((height, width), augment, max_size)
        assert crop[0] * crop[1] <= LIMIT or 32 in crop
        assert all(side % 32 == 0 and side >= 32 for side in crop)
        shrink = min(1.0, max_size / max(height, width))
        if min(height, width) * zooms[0] * shrink < 32:
            continue  # the smallest crop is larger than such an image
        chosen = AugmentConfig(scale_range=zooms, max_size=max_size, crop_size=crop)
        scales = [draw_geometry(chosen, (height, width), rng).scale for _ in range(20)]
        assert min(scales) >= zooms[0] * shrink * (1 - 1e-6)
        assert max(scales) <= zooms[1] * shrink * (1 + 1e-6)
        # It is the largest such crop of the image's shape: 32 pixels more would be too many.
        scale = min(1.0, zooms[0]) * shrink
        by_size = crop[0] + 32 > scale * height or crop[1] + 32 > scale * width
        assert by_size or (crop[0] + 32) * (crop[1] + 32) > LIMIT


def test_very_small_zooms_leave_half_of_the_image():
    augment = AugmentConfig(scale_range=(0.1, 2.0))
    assert choose_crop_size((384, 512), augment, 2048) == (192, 256)


@pytest.mark.parametrize(
    ("multiple", "crop"), [(8, (256, 352)), (48, (240, 336)), (64, (256, 320))]
)
def test_sides_are_multiples_of_the_networks_number(multiple, crop):
    assert choose_crop_size((360, 480), AugmentConfig(), 2048, multiple) == crop


@pytest.mark.parametrize("multiple", [24, 100])
def test_the_smallest_crop_is_a_multiple_of_at_least_32_pixels(multiple):
    smallest = {24: 48, 100: 100}[multiple]
    assert choose_crop_size((10, 10), AugmentConfig(), 2048, multiple) == (smallest, smallest)


def test_the_typical_size_is_the_median_of_readable_images(tmp_path: Path):
    images = images_of(tmp_path, [(64, 100), (64, 100), (32, 50), (500, 600), (500, 600)])
    assert typical_size(images, "train.augment") == (64, 100)
    (tmp_path / "000.png").write_bytes(b"no image")
    assert typical_size(images, "train.augment") == (64, 100)  # the lower one of two


def test_headers_of_two_hundred_images_are_enough(tmp_path: Path, monkeypatch):
    from sfss_ray.inputs import crop_size

    read = []
    monkeypatch.setattr(crop_size, "image_size", lambda path: read.append(path) or (len(read), 9))
    images = [ImageFile(str(number), Path(str(number))) for number in range(1000)]
    assert typical_size(images, "train.augment") == (100, 9)
    assert len(read) == 200
    assert int(read[-1].name) > 990


def test_unreadable_images_are_refused_in_one_line(tmp_path: Path):
    images = images_of(tmp_path, [(64, 64), (64, 64)])
    for image in images:
        image.path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of 2 images.*000.png.*set train.augment.crop_size$"):
        with_crop_size(Config(), "train", images)
    explicit = override(Config(), {"train.augment.crop_size": [64, 64]})
    assert with_crop_size(explicit, "train", images)[0] is explicit


@pytest.mark.parametrize("stage", ["train", "pretrain"])
def test_the_config_of_one_stage_is_settled(stage, tmp_path: Path):
    images = images_of(tmp_path, [(360, 480)])
    config, line = with_crop_size(Config(), stage, images)
    expected = {f"{stage}.augment.crop_size": (256, 352), f"{stage}.augment.max_size": 2048}
    assert config == override(Config(), expected)
    assert line.startswith("256x352 (height x width), chosen for images of 360x480")
    assert with_crop_size(config, stage, images)[0] is config


def test_zooms_of_large_images_refer_to_the_size_at_evaluation(tmp_path: Path):
    images = images_of(tmp_path, [(200, 400)])
    small = override(Config(), {"evaluation.max_size": 200})
    augment = with_crop_size(small, "train", images)[0].train.augment
    assert (augment.max_size, augment.crop_size) == (200, (64, 128))
    given = override(small, {"train.augment.max_size": 100})
    augment = with_crop_size(given, "train", images)[0].train.augment
    assert (augment.max_size, augment.crop_size) == (100, (32, 64))


def test_a_crop_size_that_nobody_chose_is_refused():
    with pytest.raises(ConfigError, match=r"augment.crop_size is not set.*set it to \(height"):
        draw_geometry(AugmentConfig(), (64, 64), np.random.default_rng(0))


def test_a_run_records_its_crop_and_resumes_with_the_same(streets, tmp_path: Path):
    request = request_for(streets, tmp_path / "run")
    inputs = check_inputs(request)
    assert inputs.config.train.augment.crop_size == (32, 96)  # streets are 64x128
    assert any("crops: 32x96" in note for note in inputs.notes)
    record = run_record(request, inputs)
    assert record["train.augment.crop_size"] == [32, 96]
    folder = claim_inputs(request, inputs, str)
    resumed = check_inputs(request)
    assert resumed.config == inputs.config
    explicit = request_for(
        streets, folder, {"train.augment.crop_size": [32, 96], "train.augment.max_size": 2048}
    )
    assert check_inputs(explicit).contents, "the same run, said in full"
    other = request_for(streets, folder, {"train.augment.crop_size": [64, 96]})
    with pytest.raises(ResumeError, match=r"train\.augment\.crop_size"):
        check_inputs(other)


def test_a_plan_shows_the_crop(streets, tmp_path: Path):
    config = override(Config(), CPU | {"train.num_steps": 2})
    arguments = adapt_arguments(streets, tmp_path / "run")
    plan = sfss_ray.plan(**arguments, config=config, progress=str)
    assert plan.crop_size == (32, 96)
    assert "4 crops 32x96" in "\n".join(plan.lines())
    assert plan.found["crops"].startswith("32x96 (height x width), chosen for images of 64x128")


def test_a_plan_without_images_has_no_crop(tmp_path: Path):
    config = override(Config(), CPU)
    plan = sfss_ray.plan(SOURCE_MODEL, None, tmp_path / "run", config=config, progress=str)
    assert plan.crop_size is None
    assert "training: a training of 4000 steps of 4 crops\n" in "\n".join(plan.lines())
