"""A user's own module is tried at the sizes of a run before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from segmentation_modules import OneSize, PooledNorm, UNet
from street_requests import request_for
from torch import nn

from sfss_ray import SourceModel, wrap_model
from sfss_ray.config import Config, EvaluationConfig, override
from sfss_ray.errors import ConfigError
from sfss_ray.inputs.check import check_inputs, survey_inputs
from sfss_ray.inputs.module_check import (
    check_module,
    evaluated_size,
    single_value_layers,
)
from sfss_ray.models.source import open_source
from sfss_ray.streets.default import SOURCE_MODEL

CLASSES = ["sky", "road", "car", "tree", "sign"]


def wrapped(module: nn.Module, size: tuple[int, int] = (128, 128)) -> SourceModel:
    return wrap_model(module, classes=CLASSES, example_size=size)


def test_a_module_with_a_multiple_takes_every_size():
    knobs = {"train.augment.crop_size": [100, 150], "evaluation.max_size": 333}
    check_module(open_source(wrapped(UNet(5))), (360, 480), override(Config(), knobs))


def test_a_module_that_fails_at_a_size_of_the_run_is_refused():
    source = open_source(wrapped(OneSize((64, 96)), (64, 96)))
    config = override(Config(), {"train.augment.crop_size": [64, 96]})
    check_module(source, (64, 96), config)
    with pytest.raises(ConfigError, match="fails on images of 70x96 pixels"):
        check_module(source, (70, 96), config)
    windows = {
        "evaluation.mode": "slide",
        "evaluation.window": [64, 96],
        "evaluation.stride": [32, 48],
    }
    check_module(source, (70, 96), override(config, windows))
    with pytest.raises(ConfigError, match="fails on images of 64x64 pixels"):
        check_module(source, (64, 96), override(config, {"train.augment.crop_size": [64, 64]}))


def test_networks_of_the_package_are_not_tried(monkeypatch):
    source = open_source(SOURCE_MODEL)
    monkeypatch.setattr(type(source), "load", None)
    check_module(source, (360, 480), Config())


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
        check_module(source, (64, 64), config)
        return
    message = r"BatchNorm 'pooled.2' .* single value per channel.*batch_norm to frozen"
    with pytest.raises(ConfigError, match=message) as error:
        check_module(source, (64, 64), config)
    assert "\n" not in str(error.value)


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
