"""Sliding windows and test-time augmentation, against loops written from their definitions."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from segmentation_modules import UNet
from torch import nn

from sfss_ray import wrap_model
from sfss_ray.config import Config, EvaluationConfig, override
from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.evaluation.inference import (
    describe_views,
    predict_file_probabilities,
    predict_probabilities,
    slide,
)
from sfss_ray.models.segmenter import Segmenter


@pytest.fixture(scope="module")
def network() -> Segmenter:
    """Stride 4, five classes; its logits depend on where a window ends."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
    return Segmenter(body, nn.Conv2d(8, 5, 1)).eval()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def slow_slide(network, pixels, window, stride) -> torch.Tensor:
    """The mean of the logits of all windows that cover a pixel."""
    height, width = pixels.shape[-2:]
    rows, columns = [], []
    for starts, length, size, step in (
        (rows, height, window[0], stride[0]),
        (columns, width, window[1], stride[1]),
    ):
        at = 0
        while at + size < length:
            starts.append(at)
            at += step
        starts.append(max(length - size, 0))
    logits_of_pixel: dict[tuple[int, int], list[torch.Tensor]] = {}
    for top in sorted(set(rows)):
        for start in sorted(set(columns)):
            part = pixels[..., top : top + window[0], start : start + window[1]]
            logits = network.logits(part)[0]
            for i in range(part.shape[2]):
                for j in range(part.shape[3]):
                    logits_of_pixel.setdefault((top + i, start + j), []).append(logits[:, i, j])
    assert len(logits_of_pixel) == height * width
    result = torch.zeros(1, 5, height, width)
    for (i, j), covering in logits_of_pixel.items():
        result[0, :, i, j] = torch.stack(covering).mean(0)
    return result


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((50, 70), (32, 32), (20, 27)),
        ((64, 64), (32, 32), (32, 32)),
        ((40, 33), (32, 48), (5, 48)),
        ((32, 32), (64, 64), (9, 9)),
    ],
)
@torch.no_grad()
def test_windows_are_averaged_where_they_overlap(network, size, window, stride):
    pixels = tensor(picture(*size))
    expected = slow_slide(network, pixels, window, stride)
    torch.testing.assert_close(slide(network, pixels, window, stride), expected)


def test_sliding_is_not_the_whole_image_but_one_window_is(network):
    image = picture(48, 64)
    whole = predict_probabilities(network, image, EvaluationConfig())
    one = EvaluationConfig(mode="slide", window=(64, 64), stride=(64, 64))
    np.testing.assert_allclose(predict_probabilities(network, image, one), whole, atol=1e-6)
    small = EvaluationConfig(mode="slide", window=(32, 32), stride=(16, 16))
    assert np.abs(predict_probabilities(network, image, small) - whole).max() > 1e-3


@torch.no_grad()
def test_flip_and_scales_average_probabilities(network):
    image = picture(48, 64)
    config = EvaluationConfig(flip=True, scales=(1.0, 1.5))
    expected = []
    for scale in config.scales:
        zoomed = cv2.resize(image, (round(64 * scale), round(48 * scale))) if scale != 1 else image
        for view in (zoomed, zoomed[:, ::-1].copy()):
            logits = network.logits(tensor(view), (48, 64))
            probabilities = logits.softmax(1)[0].numpy()
            expected.append(probabilities if view is zoomed else probabilities[..., ::-1])
    averaged = predict_probabilities(network, image, config)
    np.testing.assert_allclose(averaged, np.mean(expected, 0), atol=1e-5)
    np.testing.assert_allclose(averaged.sum(0), 1, rtol=1e-5)


def test_augmentation_is_off_by_default(network):
    image = picture(48, 64)
    config = EvaluationConfig()
    assert (config.mode, config.flip, config.scales) == ("whole", False, (1.0,))
    with torch.no_grad():
        plain = network.logits(tensor(image)).softmax(1)[0].numpy()
    assert np.array_equal(predict_probabilities(network, image, config), plain)


def test_large_images_slide_at_the_size_the_network_sees(network):
    config = EvaluationConfig(mode="slide", max_size=64, window=(32, 32), stride=(16, 16))
    assert predict_probabilities(network, picture(96, 128), config).shape == (5, 96, 128)


def test_results_describe_how_images_are_predicted():
    assert describe_views(EvaluationConfig()) == (
        "whole image, longest side at most 2048, single scale, no flip"
    )
    config = EvaluationConfig(mode="slide", flip=True, scales=(0.5, 1.0))
    description = describe_views(config)
    assert "sliding window 512x512, stride 341x341" in description
    assert "scales 0.5, 1.0, flip" in description


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "tiles"},
        {"window": (16, 512)},
        {"stride": (0, 10)},
        {"stride": (600, 10)},
        {"scales": ()},
        {"scales": (9.0,)},
    ],
)
def test_impossible_views_are_refused(change):
    with pytest.raises(ConfigError, match=rf"{next(iter(change))} is .*allowed"):
        EvaluationConfig(**change)


def test_any_number_of_scales_can_be_set_by_name():
    config = override(Config(), {"evaluation.scales": [0.75, 1, 1.25]})
    assert config.evaluation.scales == (0.75, 1.0, 1.25)
    with pytest.raises(ConfigError, match=r"evaluation\.scales is 'big'"):
        override(Config(), {"evaluation.scales": ["big"]})


@torch.no_grad()
def test_groups_add_up_in_windows_and_at_another_size(network):
    """The outputs are grouped last, after windows were averaged and resized."""
    image = picture(48, 64)
    outputs = class_set_of(["a", "b", "c", "d", "e"])
    groups = ClassGroups("x", (("ac", ("a", "c")), ("e", ("e",))), ("b", "d"))
    grouped = copy.deepcopy(network).use_groups(groups, outputs)
    for config in (
        EvaluationConfig(),
        EvaluationConfig(mode="slide", window=(32, 32), stride=(16, 16)),
        EvaluationConfig(mode="slide", window=(32, 32), stride=(16, 16), max_size=56),
    ):
        single = predict_probabilities(network, image, config)
        summed = np.stack([single[0] + single[2], single[4]])
        probabilities = predict_probabilities(grouped, image, config)
        np.testing.assert_allclose(probabilities, summed / summed.sum(0), atol=1e-6)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"flip": True, "scales": (0.7, 1.0)},
        {"max_size": 50},
        {"mode": "slide", "window": (40, 50), "stride": (30, 30)},
    ],
)
def test_a_module_with_a_multiple_predicts_images_of_any_size(knobs):
    wrapped = wrap_model(UNet(5), classes=["a", "b", "c", "d", "e"]).network.eval()
    for height, width in ((45, 75), (20, 97)):
        probabilities = predict_probabilities(
            wrapped, picture(height, width), EvaluationConfig(**knobs)
        )
        assert probabilities.shape == (5, height, width)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_an_image_too_large_for_the_memory_is_named(error, network, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(network, "output_logits", fail)
    image, config = picture(48, 64), EvaluationConfig()
    line = "64x48 pixels are too many for the memory: shrink it, or predict it on another machine"
    with pytest.raises(DataError, match=f"^{line}$"):
        predict_probabilities(network, image, config)
    with pytest.raises(DataError, match=f"^image 'a.png': {line}$"):
        predict_file_probabilities(network, ImageFile("a", Path("a.png")), image, config)
