"""Consistency over views: class IoU counted by hand, and networks that depend on position."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfss_ray.config import EvaluationConfig
from sfss_ray.evaluation.view_consistency import ConsistencyProbe, ViewConsistency
from sfss_ray.models.segmenter import Segmenter


def mean_iou(pairs, classes: int) -> float:
    """Class by class over all images, from the definition."""
    ious = []
    for c in range(classes):
        both = sum(int(((a == c) & (b == c)).sum()) for a, b in pairs)
        either = sum(int(((a == c) | (b == c)).sum()) for a, b in pairs)
        if either:
            ious.append(both / either)
    return sum(ious) / len(ious)


def random_images(count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        predictions = rng.integers(0, 3, (6, 8))
        views = [np.where(rng.random((6, 8)) < 0.7, predictions, 1) for _ in range(2)]
        yield predictions, views


def test_the_score_is_the_mean_iou_of_each_view():
    consistency = ViewConsistency()
    images = list(random_images(4))
    for predictions, views in images:
        consistency.add(5, predictions, views)
    of_views = [mean_iou([(p, v[view]) for p, v in images], 5) for view in range(2)]
    assert consistency.value() == pytest.approx(sum(of_views) / 2)


def test_without_images_there_is_no_score():
    consistency = ViewConsistency()
    assert np.isnan(consistency.value())
    assert consistency.num_images == 0
    for predictions, views in random_images(3):
        consistency.add(3, predictions, views)
    assert consistency.num_images == 3


def test_a_lost_class_counts_zero_where_the_classes_are_given():
    consistency = ViewConsistency(np.array([0, 1, 2]))
    ids = np.array([[0, 0, 1, 1]])
    consistency.add(4, ids, [ids, np.array([[0, 1, 1, 1]])])
    second = (1 / 2 + 2 / 3 + 0) / 3
    assert consistency.value() == pytest.approx(((1 + 1 + 0) / 3 + second) / 2)


@pytest.mark.parametrize("class_ids", [None, np.array([0, 2])])
def test_leaving_an_image_out_is_not_adding_it(class_ids):
    images = list(random_images(4))
    consistency = ViewConsistency(class_ids)
    for predictions, views in images:
        consistency.add(5, predictions, views)
    for number, value in enumerate(consistency.leave_one_out()):
        without = ViewConsistency(class_ids)
        for predictions, views in images[:number] + images[number + 1 :]:
            without.add(5, predictions, views)
        assert value == pytest.approx(without.value())


class LeftAndRight(nn.Module):
    """Class 0 in the left half of the image, class 1 in the right half."""

    def forward(self, images: Tensor) -> Tensor:
        columns = torch.linspace(-1, 1, images.shape[-1]).expand(images[:, :1].shape)
        return torch.cat([-columns, columns], 1) * 10


class Brightness(nn.Module):
    """Class 1 where the image is bright."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean(1, keepdim=True) * 20
        return torch.cat([-level, level], 1)


@pytest.mark.parametrize(
    ("body", "least", "most"), [(LeftAndRight, 0.6, 0.7), (Brightness, 0.9, 1)]
)
def test_a_network_that_sees_positions_is_inconsistent(body, least, most):
    """The mirror image swaps left and right: one view of three agrees nowhere."""
    network = Segmenter(body(), nn.Conv2d(2, 2, 1)).eval()
    with torch.no_grad():
        network.classifier.weight.copy_(torch.eye(2)[..., None, None])
        network.classifier.bias.zero_()
    image = np.zeros((64, 96, 3), np.uint8)
    image[16:48, 8:40] = 255
    consistency = ConsistencyProbe((image,), EvaluationConfig()).score(network)
    assert least < consistency.value() <= most
