"""A user's own module is tried at the sizes of a run before anything starts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from segmentation_modules import OneSize, PooledNorm, UNet
from street_requests import request_for
from torch import nn

from sfss_ray import SourceModel, save_model, wrap_model
from sfss_ray.config import Config, EvaluationConfig, override
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.errors import ConfigError
from sfss_ray.inputs.check import check_inputs, survey_inputs
from sfss_ray.inputs.module_check import (
    check_module,
    evaluated_size,
    needs_check,
    single_value_layers,
)
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.source import open_source
from sfss_ray.streets.default import SOURCE_MODEL

CLASSES = ["sky", "road", "car", "tree", "sign"]


def wrapped(module: nn.Module, size: tuple[int, int] = (128, 128)) -> SourceModel:
    return wrap_model(module, classes=CLASSES, example_size=size)


def test_a_module_with_a_multiple_takes_every_size():
    knobs = {"train.augment.crop_size": [100, 150], "evaluation.max_size": 333}
    check_module(open_source(wrapped(UNet(5))), (360, 480), override(Config(), knobs), "cpu", 4)


def test_a_module_that_fails_at_a_size_of_the_run_is_refused():
    source = open_source(wrapped(OneSize((64, 96)), (64, 96)))
    config = override(Config(), {"train.augment.crop_size": [64, 96]})
    check_module(source, (64, 96), config, "cpu", 4)
    with pytest.raises(ConfigError, match="fails on images of 70x96 pixels"):
        check_module(source, (70, 96), config, "cpu", 4)
    windows = {
        "evaluation.mode": "slide",
        "evaluation.window": [64, 96],
        "evaluation.stride": [32, 48],
    }
    check_module(source, (70, 96), override(config, windows), "cpu", 4)
    with pytest.raises(ConfigError, match="fails on images of 64x64 pixels"):
        check_module(
            source, (64, 96), override(config, {"train.augment.crop_size": [64, 64]}), "cpu", 4
        )


@pytest.mark.parametrize("knobs", [{}, {"batch_norm": "adapt"}, {"batch_size": 1}])
def test_networks_of_the_package_are_not_tried_on_batches_of_two(knobs, monkeypatch):
    source = open_source(SOURCE_MODEL)
    monkeypatch.setattr(type(source), "load", None)
    config = override(Config(), {f"train.{name}": value for name, value in knobs.items()})
    assert not needs_check(source, config, "cpu", 4)
    assert check_module(source, (360, 480), config, "cpu", 4) == "takes every size"


ONE_CROP = {
    "train.batch_norm": "adapt",
    "train.batch_size": 2,
    "compute.num_workers": 2,
    "train.augment.crop_size": [64, 96],
}


def recognised(tmp_path: Path, name: str = "deeplabv3_mobilenet_v3_large") -> Path:
    """The weights of a network of the package, without training."""
    network = build_network(name, len(CLASSES))
    return save_model(tmp_path / "source.pt", SourceModel(network, name, class_set_of(CLASSES)))


def test_batch_norm_of_a_single_value_in_a_network_of_the_package_is_refused(
    streets, tmp_path: Path
):
    request = request_for(
        streets,
        tmp_path / "out",
        ONE_CROP,
        source_model=recognised(tmp_path),
        val_images=None,
        val_labels=None,
    )
    message = r"BatchNorm 'head.0.convs.4.2' of the network sees a single value.* crop of 64x96"
    with pytest.raises(ConfigError, match=message) as error:
        check_inputs(request)
    assert "\n" not in str(error.value)
    assert list(survey_inputs(request).missing) == ["module"]


@pytest.mark.parametrize(("batch_size", "is_refused"), [(1, True), (2, False)])
def test_on_gpus_all_workers_give_one_batch(batch_size, is_refused):
    """BatchNorm becomes SyncBatchNorm there."""
    source = open_source(wrapped(PooledNorm()))
    config = override(Config(), ONE_CROP | {"train.batch_size": batch_size})
    refusal = pytest.raises(ConfigError, match="a single value per channel")
    with refusal if is_refused else contextlib.nullcontext():
        check_module(source, (64, 96), config, "cuda", 4)


def test_other_networks_of_the_package_take_batches_of_one_crop(tmp_path: Path):
    config = override(Config(), ONE_CROP)
    source = open_source(recognised(tmp_path, "lraspp_mobilenet_v3_large"))
    assert (
        check_module(source, (64, 96), config, "cpu", 4) == "takes the smallest batches of this run"
    )
    source = open_source(recognised(tmp_path))
    for knobs in ({"train.batch_norm": "frozen"}, {"train.batch_size": 4}):
        check_module(source, (64, 96), override(config, knobs), "cpu", 4)


@pytest.mark.parametrize(
    ("knobs", "is_refused"),
    [
        # Statistics are estimated on batches of two whole images.
        ({"batch_size": 1, "batch_norm": "auto"}, False),
        ({"batch_size": 1, "batch_norm": "target"}, False),
        ({"batch_size": 1, "batch_norm": "frozen"}, False),
        ({"batch_size": 2, "batch_norm": "adapt"}, False),
        ({"batch_size": 2, "batch_norm": "adapt", "accumulate": 2}, True),
        ({"batch_size": 1, "batch_norm": "adapt"}, True),
    ],
)
def test_batch_norm_of_a_single_value_is_refused(knobs, is_refused):
    source = open_source(wrapped(PooledNorm()))
    config = override(Config(), {f"train.{name}": value for name, value in knobs.items()})
    config = override(config, {"train.augment.crop_size": [64, 64]})
    if not is_refused:
        check_module(source, (64, 64), config, "cpu", 4)
        return
    message = r"BatchNorm 'pooled.2' .* single value per channel.*batch_norm to frozen"
    with pytest.raises(ConfigError, match=message) as error:
        check_module(source, (64, 64), config, "cpu", 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("knobs", "num_images", "is_refused"),
    [
        ({}, 1, True),
        ({"batch_norm": "target"}, 1, True),
        ({"batch_norm": "adapt"}, 1, True),
        ({"statistics_images": 1}, 5, True),
        ({}, 2, False),
        ({"batch_norm": "frozen"}, 1, False),
        ({"statistics_images": 0}, 1, False),
    ],
)
def test_statistics_of_one_image_with_a_single_value_are_refused(
    knobs, num_images, is_refused, tmp_path: Path
):
    config = override(Config(), {f"train.{name}": value for name, value in knobs.items()})
    config = override(config, {"train.augment.crop_size": [64, 96]})
    for source in (open_source(wrapped(PooledNorm())), open_source(recognised(tmp_path))):
        message = r"BatchNorm .* of one image have no variance: give at least 2 target images"
        refusal = pytest.raises(ConfigError, match=message)
        with refusal if is_refused else contextlib.nullcontext():
            check_module(source, (64, 96), config, "cpu", num_images)


def test_a_run_on_one_image_is_refused_before_masks_are_made(streets, tmp_path: Path):
    one = tmp_path / "images"
    one.mkdir()
    image = min((streets / "target" / "images").iterdir())
    (one / image.name).write_bytes(image.read_bytes())
    request = request_for(
        streets,
        tmp_path / "out",
        {"train.augment.crop_size": [64, 96]},
        source_model=recognised(tmp_path),
        target_images=one,
        val_images=None,
        val_labels=None,
    )
    with pytest.raises(ConfigError, match="statistics of one image have no variance"):
        check_inputs(request)


def test_layers_with_a_single_value_depend_on_the_crop():
    network = wrapped(UNet(5)).network.eval()
    assert single_value_layers(network, (32, 32)) == ["down.4.1"]
    assert single_value_layers(network, (32, 64)) == []
    assert not any(layer._forward_pre_hooks for layer in network.modules())


@pytest.mark.parametrize(
    ("knobs", "size"),
    [
        ({"max_size": 480}, (360, 480)),
        ({"max_size": 240}, (180, 240)),
        ({"max_size": 240, "scales": (0.5, 1.0)}, (90, 120)),
        ({"mode": "slide", "window": (64, 96), "stride": (32, 48)}, (64, 96)),
    ],
)
def test_the_size_of_evaluation(knobs, size):
    assert evaluated_size((360, 480), EvaluationConfig(**knobs)) == size


def test_a_run_announces_features_and_sizes(streets, tmp_path: Path):
    request = request_for(
        streets,
        tmp_path / "out",
        {"train.augment.crop_size": [100, 100]},
        source_model=wrapped(UNet(4)),
        val_images=None,
        val_labels=None,
    )
    notes = check_inputs(request).notes
    assert "features: what 'head' reads (8 channels, stride 2); the logits have stride 1" in notes
    assert "sizes: the module takes multiples of 16 pixels; other images are padded" in notes
    assert [note for note in notes if note.startswith("crops:")] == [
        "crops: 96x96 (height x width) instead of 100x100, because the network takes multiples of 16"
        " pixels (train.augment.crop_size)"
    ]
    survey = survey_inputs(request)
    assert survey.found["module"] == "takes images of 64x128"


def test_a_plan_lists_a_module_that_fails(streets, tmp_path: Path):
    request = request_for(
        streets,
        tmp_path / "out",
        source_model=wrapped(OneSize((32, 32)), (32, 32)),
        val_images=None,
        val_labels=None,
    )
    missing = survey_inputs(request).missing
    assert list(missing) == ["module"]
    assert "fails on images of 64x128 pixels" in missing["module"]
