"""Thresholds are quantiles of each class's confidence."""

import numpy as np
import pytest
import torch

from sfss_ray.config import LossConfig
from sfss_ray.method.pseudo_labels import ClassThresholds, accepted_pixels, pixel_weights

BIN = 0.01


def predictions(seed: int = 0):
    """Return labels and confidences of 3 images: class 1 rare and unsure, class 3 never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, (3, 40, 50), p=[0.7, 0.02, 0.28, 0.0])
    low = np.array([0.6, 0.25, 0.5, 0.3])[labels]
    confidence = low + (0.999 - low) * rng.beta(2, 1, labels.shape) * np.where(labels == 1, 0.3, 1)
    return torch.from_numpy(labels), torch.from_numpy(confidence).float()


@pytest.mark.parametrize("kept_share", [0.2, 0.5, 0.9])
def test_thresholds_are_quantiles(kept_share):
    labels, confidence = predictions()
    running = ClassThresholds(4)
    running.update(running.count(labels, confidence))
    thresholds = running.thresholds(kept_share, cap=1.0)
    for label in range(3):
        of_class = confidence[labels == label].numpy()
        quantile = np.quantile(of_class, 1 - kept_share)
        assert quantile - BIN - 1e-3 <= thresholds[label] <= quantile + 1e-3
        assert (of_class >= thresholds[label].item()).mean() >= kept_share


def weights_of(labels, confidence, thresholds, config):
    return pixel_weights(accepted_pixels(labels, confidence, thresholds, config), config)


def test_a_rare_unsure_class_keeps_its_share():
    labels, confidence = predictions()
    running = ClassThresholds(4)
    running.update(running.count(labels, confidence))
    thresholds = running.thresholds(0.5, cap=0.9)
    weights = weights_of(labels, confidence, thresholds, LossConfig())
    kept = [weights[labels == label].mean().item() for label in range(3)]
    assert confidence[labels == 1].max() < confidence[labels == 0].median()
    assert 0.5 <= kept[1] < 0.6
    assert set(weights.unique().tolist()) == {0.0, 1.0}


def test_cap_and_unseen_classes():
    running = ClassThresholds(2)
    running.update(running.count(torch.zeros(100).long(), torch.full((100,), 0.99)))
    assert running.thresholds(0.5, cap=0.9).tolist() == pytest.approx([0.9, 0.0])
    assert running.thresholds(0.5, cap=1.0).tolist() == pytest.approx([0.99, 0.0])


def test_keeping_all_keeps_all():
    labels, confidence = predictions()
    running = ClassThresholds(4)
    for _ in range(5):
        running.update(running.count(labels, confidence))
    weights = weights_of(labels, confidence, running.thresholds(1.0, 1.0), LossConfig())
    assert weights.all()


def test_confidence_of_exactly_one_is_counted():
    running = ClassThresholds(2)
    counts = running.count(torch.tensor([1, 1]), torch.tensor([1.0, 0.0]))
    assert counts.sum() == 2
    assert counts[1, -1] == 1
    assert counts[1, 0] == 1


def test_parts_of_a_batch_count_as_the_whole():
    labels, confidence = predictions()
    running = ClassThresholds(4)
    parts = [running.count(labels[i], confidence[i]) for i in range(3)]
    assert torch.equal(sum(parts), running.count(labels, confidence))


def test_old_batches_fade():
    running = ClassThresholds(1)
    running.update(running.count(torch.zeros(100).long(), torch.full((100,), 0.35)))
    for _ in range(100):
        running.update(running.count(torch.zeros(100).long(), torch.full((100,), 0.75)))
    assert running.thresholds(0.5, 1.0).item() == pytest.approx(0.75)
    assert running.thresholds(0.9, 1.0).item() == pytest.approx(0.75)
    assert running.histogram.sum() < 100 / (1 - 0.98)


def test_paper_like_weight_is_each_images_own_share():
    confidence = torch.full((2, 4, 5), 0.5)
    confidence[0, 0] = 0.97
    confidence[1, :2] = 0.99
    confidence[1, 3] = 0.967
    config = LossConfig(thresholds="paper_like")
    weights = weights_of(torch.zeros(2, 4, 5).long(), confidence, torch.zeros(1), config)
    assert weights.shape == (2, 4, 5)
    torch.testing.assert_close(weights[0], torch.full((4, 5), 0.25))
    torch.testing.assert_close(weights[1], torch.full((4, 5), 0.5))
