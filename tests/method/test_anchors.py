"""Anchors: their number per mask and image, hard and easy ones, and their weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair_draws import draw, draw_from, many_seeds, seeds
from torch.nn import functional as F
from train_samples import RandomScene, pool_of

from sfss_ray.config import PairConfig


@many_seeds
@given(seed=seeds, per_mask=st.integers(1, 20))
def test_anchors_per_mask_are_limited_and_half_of_them_hard(seed, per_mask):
    config = PairConfig(anchors_per_mask=per_mask, anchors_per_image=10_000, negatives=4)
    d = draw(seed, config)
    anchors = d.pairs.anchors
    assert len(anchors.unique()) == len(anchors)
    is_anchor = torch.isin(d.table.cells, anchors)
    for k in range(len(d.table.count)):
        inside = d.table.owner == k
        hard, easy = (int((inside & cells).sum()) for cells in (d.hard, ~d.hard))
        chosen_hard, chosen_easy = (
            int((inside & cells & is_anchor).sum()) for cells in (d.hard, ~d.hard)
        )
        if d.table.merged[k] or d.table.count[k] < 2:
            assert chosen_hard + chosen_easy == 0
            continue
        assert chosen_hard + chosen_easy == min(per_mask, hard + easy)
        assert chosen_hard >= min(hard, per_mask // 2)
        assert chosen_easy >= min(easy, per_mask - per_mask // 2)


def test_merged_masks_occur_and_give_no_anchors():
    config = PairConfig(merged_confidence=0.5, negatives=4)
    merged = 0
    for seed in range(5):
        d = draw(seed, config)
        merged += int(d.table.merged.sum())
        assert not d.table.merged[d.mask].any()
        assert not (d.table.merged & d.table.reliable).any()
    assert merged >= 5


def test_an_image_gives_at_most_its_anchors():
    limited = draw(1, PairConfig(anchors_per_image=7, negatives=4))
    assert len(limited.pairs.anchors) == 7
    assert len(limited.mask.unique()) > 1


def two_masks() -> RandomScene:
    """Return an image with masks of 16 and of 256 cells, of two classes, predicted confidently."""
    ids = torch.cat([torch.full((16, 1), 1), torch.full((16, 16), 2)], 1)
    probabilities = torch.full((2, 16, 17), 0.01)
    probabilities[0, :, 0], probabilities[1, :, 1:] = 0.99, 0.99
    embeddings = F.normalize(torch.ones(2, 16, 17), dim=0)
    return RandomScene(ids, probabilities, embeddings, torch.full((2,), 0.5), ids.flatten() - 1)


def test_masks_win_anchors_in_proportion_to_their_weight():
    # Each mask sends 16 cells, all easy, with weights 1/16 and 1/256.
    scene = two_masks()
    config = PairConfig(anchors_per_image=1, negatives=1)
    table = scene.table(config)
    pool = pool_of([table], 0, 2)
    draws = [draw_from(scene, (table, pool), config, seed, image=0) for seed in range(600)]
    large = sum(int(d.mask[0]) for d in draws) / len(draws)
    assert large == pytest.approx(1 / 17, abs=0.03)  # three standard deviations


def test_anchors_are_drawn_by_the_generator_alone():
    config = PairConfig(anchors_per_image=20, negatives=4)
    first, again = draw(3, config), draw(3, config)
    other = draw_from(first.scene, first.inputs, config, seed=4)
    assert torch.equal(first.pairs.anchors, again.pairs.anchors)
    assert not torch.equal(first.pairs.anchors, other.pairs.anchors)
