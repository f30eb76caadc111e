"""Rings around masks against slow loops over the cells of random scenes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from train_samples import random_scene

from sfss_ray.config import PairConfig
from sfss_ray.method.boundary_rings import RingPairs, draw_ring_pairs, sum_ring_contrast
from sfss_ray.method.losses import pair_loss

GRID = (20, 24)
CONFIG = PairConfig(min_purity=0.3, min_cells=2, merged_share=0.5)


def table_of(seed: int):
    scene = random_scene(seed, classes=4, masks=9, grid=GRID)
    scene.thresholds[:] = 0.1
    return scene.table(CONFIG)


def owner_grid(table) -> np.ndarray:
    owner = np.full(GRID[0] * GRID[1], -1)
    owner[table.cells] = table.owner
    return owner.reshape(GRID)


def slow_ring(table, mask: int) -> set[int]:
    """Return the cells at most 2 rows and columns from a mask, in reliable masks of other classes."""
    owner = owner_grid(table)
    ring = set()
    for y, x in np.ndindex(*GRID):
        other = owner[y, x]
        if other < 0 or not table.reliable[other] or table.label[other] == table.label[mask]:
            continue
        if (owner[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] == mask).any():
            ring.add(y * GRID[1] + x)
    return ring


def is_inside(owner: np.ndarray, y: int, x: int) -> bool:
    neighbours = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    within = [(r, c) for r, c in neighbours if 0 <= r < GRID[0] and 0 <= c < GRID[1]]
    return all(owner[r, c] == owner[y, x] for r, c in within)


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_those_of_a_slow_loop(seed):
    table = table_of(seed)
    owner = owner_grid(table)
    pairs = draw_ring_pairs(table, GRID, (10_000, 6, 40), seed)
    inside = {
        y * GRID[1] + x
        for y, x in np.ndindex(*GRID)
        if owner[y, x] >= 0
        and table.reliable[owner[y, x]]
        and is_inside(owner, y, x)
        and slow_ring(table, owner[y, x])
    }
    assert set(pairs.anchors.tolist()) == inside
    for anchor, positives, negatives in zip(
        pairs.anchors, pairs.positives, pairs.negatives, strict=True
    ):
        mask = owner.ravel()[anchor]
        assert set(owner.ravel()[positives]) == {mask}
        assert set(positives.tolist()) <= inside
        assert set(negatives.tolist()) <= slow_ring(table, mask)


def test_some_scenes_have_anchors():
    assert (
        sum(len(draw_ring_pairs(table_of(s), GRID, (99, 2, 2), s).anchors) for s in range(6)) > 50
    )


def test_all_cells_of_a_ring_are_drawn():
    table = table_of(1)
    pairs = draw_ring_pairs(table, GRID, (10_000, 1, 4000), 0)
    mask = owner_grid(table).ravel()[pairs.anchors[0]]
    assert set(pairs.negatives[0].tolist()) == slow_ring(table, mask)


def test_a_seed_repeats_its_draws_and_limits_the_anchors():
    table = table_of(1)
    first, again, other = (draw_ring_pairs(table, GRID, (12, 3, 5), seed) for seed in (7, 7, 8))
    assert len(first.anchors) == 12
    assert all(np.array_equal(getattr(first, n), getattr(again, n)) for n in vars(first))
    assert not np.array_equal(first.anchors, other.anchors)


def test_rare_classes_come_first():
    """With one anchor per draw, each class is drawn about equally often, whatever its size."""
    table = table_of(1)
    owner = owner_grid(table).ravel()
    everything = draw_ring_pairs(table, GRID, (10_000, 1, 1), 0)
    classes, sizes = np.unique(table.label[owner[everything.anchors]], return_counts=True)
    drawn = [draw_ring_pairs(table, GRID, (1, 1, 1), seed).anchors[0] for seed in range(600)]
    share = np.bincount(table.label[owner[drawn]], minlength=classes.max() + 1)[classes] / 600
    assert len(classes) > 1
    assert sizes.max() > 1.5 * sizes.min()
    np.testing.assert_allclose(share, 1 / len(classes), atol=0.08)


def test_the_sum_is_that_of_the_pair_loss():
    generator = torch.Generator().manual_seed(0)
    teacher = F.normalize(torch.randn(2, 30, 5, generator=generator), dim=2)
    vectors = F.normalize(torch.randn(7, 5, generator=generator), dim=1)
    rng = np.random.default_rng(0)
    images = [
        RingPairs(np.zeros(n, np.int64), rng.integers(0, 30, (n, 3)), rng.integers(0, 30, (n, 4)))
        for n in (3, 4)
    ]
    total, count = sum_ring_contrast(vectors, teacher, images, 0.2)
    expected = 0.0
    for a in range(7):
        image, row = (0, a) if a < 3 else (1, a - 3)
        pulled, pushed = (
            (teacher[image][indices[row]] @ vectors[a])[None]
            for indices in (images[image].positives, images[image].negatives)
        )
        expected += pair_loss(pulled, pushed, 0.2).item()
    assert count == 7
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_without_reliable_masks_the_sum_is_zero_with_a_gradient():
    table = table_of(0)
    table.reliable[:] = False
    pairs = draw_ring_pairs(table, GRID, (50, 3, 4), 0)
    assert pairs.anchors.shape == (0,)
    assert pairs.negatives.shape == (0, 4)
    vectors = torch.zeros(0, 5, requires_grad=True)
    total, count = sum_ring_contrast(vectors, torch.zeros(1, 480, 5), [pairs], 0.1)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
