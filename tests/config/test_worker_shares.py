"""The crops that each worker takes of a step."""

from __future__ import annotations

import pytest

from sfss_ray.config import AugmentConfig, TrainConfig
from sfss_ray.config.worker_shares import share_sizes, share_unit


@pytest.mark.parametrize(
    ("crops", "workers", "unit", "sizes"),
    [
        (8, 1, 1, [8]),
        (8, 2, 1, [4, 4]),
        (8, 3, 1, [3, 3, 2]),
        (8, 3, 2, [4, 2, 2]),
        (6, 2, 2, [4, 2]),
        (3, 3, 1, [1, 1, 1]),
    ],
)
def test_shares_differ_by_one_unit_at_most(crops, workers, unit, sizes):
    assert share_sizes(crops, workers, unit) == sizes


@pytest.mark.parametrize(("class_mix", "unit"), [(0.0, 1), (0.5, 2)])
def test_crops_that_are_mixed_stay_together(class_mix, unit):
    assert share_unit(TrainConfig(augment=AugmentConfig(class_mix=class_mix))) == unit
