"""Positives and whole draws: what must hold for every random scene."""

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair_draws import Draw, draw, draw_from, image_anchors, many_seeds, seeds
from train_samples import RandomScene, pool_of, random_scene

from sfss_ray.config import PairConfig
from sfss_ray.method.pairs import Pairs, sample_pairs
from sfss_ray.method.prototype_pool import PrototypePool


@many_seeds
@given(seed=seeds, positives=st.integers(1, 9), bank=st.sampled_from([0, 3, 60]))
def test_positives_are_other_cells_and_other_masks(seed, positives, bank):
    d = draw(seed, PairConfig(positives=positives, negatives=4), bank)
    flat = d.scene.ids.flatten()
    for a, mask in enumerate(d.mask.tolist()):
        cells = d.pairs.instance_positives[a]
        assert len(cells) == positives
        assert (cells != d.pairs.anchors[a]).all()
        assert (flat[cells] == flat[d.pairs.anchors[a]]).all()
        chosen = d.pairs.class_positives[a][d.pairs.class_valid[a]]
        assert (d.pool.classes[chosen] == d.table.label[mask]).all()
        assert (d.pool.keys[chosen] != d.first_key + mask).all()
        assert_validity(d, a, mask)


def assert_validity(d: Draw, a: int, mask: int) -> None:
    """Assert that all slots are filled if there are candidates, half of them from other images."""
    same = d.pool.classes == d.table.label[mask]
    candidates = same & (d.pool.keys != d.first_key + mask)
    valid = d.pairs.class_valid[a]
    if not d.table.reliable[mask] or not candidates.any():
        assert not valid.any()
        return
    assert valid.all()
    elsewhere = d.pool.images[d.pairs.class_positives[a]] != 1
    if (same & (d.pool.images != 1)).any():
        assert 2 * int(elsewhere.sum()) >= len(valid)


def test_every_candidate_can_be_drawn_as_a_positive():
    config = PairConfig(positives=64, negatives=4, anchors_per_mask=16)
    d = draw(4, config, bank=12, masks=12, classes=3)
    reached = 0
    for mask in d.mask.unique().tolist():
        if not d.table.reliable[mask]:
            continue
        own_key = d.first_key + mask
        same = (d.pool.classes == d.table.label[mask]) & (d.pool.keys != own_key)
        drawn = d.pairs.class_positives[d.mask == mask].unique()
        assert set(drawn.tolist()) == set(same.nonzero()[:, 0].tolist())
        reached += 1
    assert reached >= 3


def same_pairs(one: Pairs, other: Pairs) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Pairs))


@many_seeds
@given(seed=seeds)
def test_renaming_ids_in_order_and_shuffling_the_pool_changes_no_pair(seed):
    config = PairConfig(negatives=16)
    d = draw(seed, config, bank=0)
    renamed = RandomScene(**vars(d.scene) | {"ids": d.scene.ids * 3 + (d.scene.ids > 0)})
    pool = d.inputs[1]
    order = np.random.default_rng(seed).permutation(len(pool.keys))
    columns = (pool.vectors, pool.classes, pool.images, pool.keys)
    shuffled = (column[order] for column in columns)
    pool = PrototypePool.build(*shuffled, len(d.scene.thresholds))
    again = draw_from(renamed, (renamed.table(config), pool), config, seed)
    assert same_pairs(again.pairs, d.pairs)


def test_pairs_depend_on_the_generator_alone():
    config = PairConfig(negatives=16)
    first, again, other = draw(2, config), draw(2, config), draw(2, config)
    torch.rand(100)
    other = draw_from(other.scene, other.inputs, config, seed=99)
    assert same_pairs(first.pairs, again.pairs)
    assert not same_pairs(first.pairs, other.pairs)


def test_the_own_cell_can_be_taken_out_of_its_masks_sum():
    config = PairConfig(negatives=4)
    d = draw(3, config)
    t = d.scene.embeddings.flatten(1).T
    confidence = d.scene.probabilities.flatten(1).max(0).values
    flat = d.scene.ids.flatten()
    for a, cell in enumerate(d.pairs.anchors.tolist()):
        cells = (flat == flat[cell]).nonzero()[:, 0]
        rest = cells[cells != cell]
        expected = (confidence[rest, None] * t[rest]).sum(0)
        without_own = d.pairs.instance_prototype_sum[a] - d.pairs.own_weight[a] * t[cell]
        torch.testing.assert_close(without_own, expected, rtol=1e-4, atol=1e-5)


def test_weight_of_the_class_loss_is_purity_times_confidence():
    d = draw(3, PairConfig(negatives=4))
    expected = d.table.purity * d.table.confidence
    expected[~d.table.reliable] = 0
    assert torch.equal(d.pairs.class_weight, expected[d.mask])
    assert (d.pairs.class_weight == 0).any()
    assert (d.pairs.class_weight > 0).any()


def test_an_image_without_masks_gives_no_pairs():
    scene = random_scene(0)
    empty = RandomScene(**vars(scene) | {"ids": torch.zeros_like(scene.ids)})
    table = empty.table(PairConfig())
    assert len(table) == 0
    for pool in (pool_of([table], 0, 6), pool_of([table], 20, 6)):
        d = draw_from(empty, (table, pool), PairConfig(), 0)
        assert len(d.pairs.anchors) == 0
        assert d.pairs.negatives.shape == (0, 512)


def test_an_empty_pool_gives_anchors_without_valid_pairs():
    scene = random_scene(0)
    table = scene.table(PairConfig())
    nothing = np.zeros(0, np.int64)
    pool = PrototypePool.build(torch.zeros(0, 5), nothing, nothing, nothing, 6)
    d = draw_from(scene, (table, pool), PairConfig(), 0)
    assert len(d.pairs.anchors) > 0
    assert not d.pairs.negative_valid.any()
    assert not d.pairs.class_valid.any()


def test_pairs_of_a_batch_are_those_of_its_images():
    config = PairConfig(negatives=16, anchors_per_image=60)
    scenes = [random_scene(seed) for seed in range(3)]
    scenes[1] = RandomScene(**vars(scenes[1]) | {"ids": torch.zeros_like(scenes[1].ids)})
    thresholds, grid_cells = scenes[0].thresholds, scenes[0].ids.numel()
    scenes = [RandomScene(**vars(scene) | {"thresholds": thresholds}) for scene in scenes]
    tables = [scene.table(config) for scene in scenes]
    pool = pool_of(tables, 20, len(thresholds))
    singles = [draw_from(scenes[b], (tables[b], pool), config, b, image=b).pairs for b in range(3)]
    images = [image_anchors(scenes[b], tables[b], config, b, image=b) for b in range(3)]
    vectors = torch.cat([s.student()[i.cells] for s, i in zip(scenes, images, strict=True)])
    pairs = sample_pairs(images, pool, vectors, grid_cells, config)
    assert [len(single.anchors) for single in singles] == [60, 0, 60]
    for f in fields(Pairs):
        shift = grid_cells if f.name in ("anchors", "instance_positives") else 0
        expected = torch.cat([getattr(s, f.name) + shift * b for b, s in enumerate(singles)])
        torch.testing.assert_close(getattr(pairs, f.name), expected, check_dtype=False)
