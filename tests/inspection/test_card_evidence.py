"""Evidence about a card, against slow loops written from the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sfss_ray.inspection.card_evidence import (
    find_regions,
    prediction_information,
    region_information,
    statistics_distance,
)
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter

PLAIN = Card(mean=(0, 0, 0), std=(1, 1, 1))


class Layers(nn.Module):
    """BatchNorm layers in a row, used in the opposite order of their names."""

    def __init__(self, count: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(count))
        self.calls = 0

    def forward(self, images):
        for norm in reversed(self.norms):
            images = norm(images)
            self.calls += 1
        return images


def normalising(count: int) -> Segmenter:
    torch.manual_seed(1)
    body = Layers(count)
    for norm in body.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 4)
    return Segmenter(body, nn.Conv2d(3, 2, 1), PLAIN).eval()


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(1, 3, 5 + i, 7, generator=generator) for i in range(count)]


def test_the_distance_is_that_of_a_slow_loop():
    network, batches = normalising(3), images(2)
    # All pixels of the images are pooled, since they differ in size.
    pixels = np.concatenate([b[0].flatten(1).double().numpy() for b in batches], axis=1)
    total = 0.0
    for norm in reversed(network.body.norms):
        scales, shifts = [], []
        for channel in range(3):
            m, s = pixels[channel].mean(), pixels[channel].std()
            expected = norm.running_mean[channel].item()
            deviation = math.sqrt(norm.running_var[channel].item())
            scales.append(abs(math.log(s / deviation)))
            shifts.append(2 * abs(m - expected) / (s + deviation))
            # In eval mode BatchNorm uses its running statistics; its own weight and bias are 1 and 0.
            pixels[channel] = (pixels[channel] - expected) / math.sqrt(deviation**2 + norm.eps)
        total += sorted(scales)[1] + sorted(shifts)[1]
    assert statistics_distance(network, batches) == pytest.approx(total / 3, rel=1e-5)


def test_a_pass_ends_after_four_layers():
    network = normalising(9)
    statistics_distance(network, images(2))
    assert network.body.calls == 2 * 3
    assert not any(norm._forward_pre_hooks for norm in network.body.norms)


def test_without_gathered_statistics_there_is_no_distance():
    network = normalising(2)
    assert math.isfinite(statistics_distance(network, images(1)))
    assert math.isnan(statistics_distance(normalising(1), images(1)))
    for norm in network.body.norms:
        norm.reset_running_stats()
    assert math.isnan(statistics_distance(network, images(1)))
    convolution = Segmenter(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    assert math.isnan(statistics_distance(convolution, images(1)))


def class_of_red(threshold: float = 0.5) -> Segmenter:
    """Two classes: the first one where red is above a threshold, nearly without doubt."""
    classifier = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.weight[0, 0] = 200
        classifier.bias.copy_(torch.tensor([-200 * threshold, 0.0]))
    return Segmenter(nn.Identity(), classifier, PLAIN).eval()


def test_prediction_information_is_that_of_a_slow_loop():
    network = class_of_red()
    batches = images(3)
    all_probabilities = []
    for batch in batches:
        logits = network(batch).logits[0].flatten(1).T.double().detach().numpy()
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        all_probabilities.append(probabilities)

    def entropy(p):
        return -sum(x * math.log(x) for x in p if x > 0)

    each = [entropy(p.mean(0)) - np.mean([*map(entropy, p)]) for p in all_probabilities]
    mean = np.mean([p.mean(0) for p in all_probabilities], axis=0)
    doubt = np.mean([np.mean([*map(entropy, p)]) for p in all_probabilities])
    result = prediction_information(network, batches)
    assert result == pytest.approx([entropy(mean) - doubt, *each], abs=1e-6)
    assert 0.4 < result[0] < math.log(2)


def test_region_information_is_high_where_regions_and_classes_agree():
    red = np.zeros((8, 8), np.float32)
    red[:, :4] = 1
    batch = torch.from_numpy(np.stack([red, red, red]))[None]
    halves = np.where(red > 0, 1, 2)
    stripes = np.repeat(np.arange(1, 9)[:, None], 8, 1)
    network = class_of_red()
    assert region_information(network, [batch], [halves]) == pytest.approx([math.log(2)] * 2)
    assert region_information(network, [batch], [stripes]) == pytest.approx([0, 0], abs=1e-9)
    both = region_information(network, [batch, batch], [halves, stripes])
    assert both == pytest.approx([math.log(2) / 2, math.log(2), 0], abs=1e-9)


def test_regions_cover_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    regions = find_regions(image)
    assert regions.min() == 1
    assert regions[5, 5] != regions[5, 55]
    assert len(np.unique(regions)) == 2
