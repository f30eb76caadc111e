"""What regions are worth: counted by hand."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def worth(experiment):
    return experiment("region_worth")


def test_regions_are_counted_with_their_cover_and_purity(worth):
    ids = np.array([[[1, 1, 1, 0], [2, 2, 0, 0]]])
    labels = np.array([[[4, 4, 7, 7], [7, 255, 7, 7]]], dtype=np.uint8)
    fit = worth.fit_of_regions(ids, labels)
    assert fit == {"regions": 2.0, "covered": 5 / 8, "purity": 3 / 4}  # void counts nowhere


def test_no_regions_have_no_purity(worth):
    fit = worth.fit_of_regions(np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), np.uint8))
    assert fit["regions"] == fit["covered"] == 0
    assert fit["purity"] is None


def test_a_row_scores_what_the_vote_made_of_the_teachers_opinion(worth):
    import torch

    from sfss_ray.streets.scenes import render_scene

    scenes = [render_scene("camera", 5, index) for index in range(2)]
    truth = torch.from_numpy(np.stack([s.labels for s in scenes])).long()
    right = torch.nn.functional.one_hot(truth.clamp(max=18), 19).permute(0, 3, 1, 2).float()
    noisy = torch.rand(right.shape, generator=torch.Generator().manual_seed(0))
    probabilities = (right + 1.5 * noisy).softmax(1)
    none = worth.measure(scenes, probabilities, lambda s: np.zeros_like(s.instances))
    objects = worth.measure(scenes, probabilities, lambda s: s.instances)
    assert objects["purity"] == 1.0
    assert objects["w 1.0, p 0.25"] > none["w 1.0, p 0.25"] + 10
