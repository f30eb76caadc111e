"""Negatives: which classes are allowed, and how their entries are drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair_draws import draw, draw_from, many_seeds, seeds
from train_samples import pool_of, random_scene

from sfss_ray.config import PairConfig
from sfss_ray.method.mask_table import MaskTable
from sfss_ray.method.negatives import (
    allowed_negative_classes,
    allowed_ranges,
    draw_negatives,
    generator_on,
)
from sfss_ray.method.prototype_pool import PrototypePool


@many_seeds
@given(seed=seeds, classes=st.integers(2, 20), bank=st.sampled_from([0, 1, 60]))
def test_no_negative_is_of_a_class_the_mask_may_have(seed, classes, bank):
    config = PairConfig(negatives=40)
    d = draw(seed, config, bank, classes=classes)
    negative_class = d.pool.classes[d.pairs.negatives]
    for a, mask in enumerate(d.mask.tolist()):
        likely = 1 if d.table.reliable[mask] else min(3, classes - 1)
        top = set(d.table.probabilities[mask].topk(likely).indices.tolist())
        drawn = set(negative_class[a][d.pairs.negative_valid[a]].tolist())
        assert not drawn & top
        assert drawn or set(d.pool.classes.tolist()) <= top  # none only where none is allowed


def test_a_reliable_mask_never_has_its_own_class_among_negatives_even_in_a_tie():
    scene = random_scene(0, classes=19)
    table = scene.table(PairConfig(min_cells=1))
    tied = np.full_like(table.probabilities, 1 / 19)
    table = MaskTable(**vars(table) | {"probabilities": tied, "label": tied.argmax(1)})
    allowed = allowed_negative_classes(table, 3)
    own_class_allowed = np.take_along_axis(allowed, table.label[:, None], 1)
    assert not own_class_allowed.any()


def test_the_only_class_is_no_negative():
    table = random_scene(0, classes=2).table(PairConfig(min_cells=1))
    masks = len(table.label)
    only = vars(table) | {
        "probabilities": np.ones((masks, 1), np.float32),
        "label": np.zeros(masks, int),
        "reliable": np.zeros(masks, bool),
    }
    assert not allowed_negative_classes(MaskTable(**only), 3).any()


def test_negatives_are_uniform_over_classes_and_semi_hard():
    config = PairConfig(negatives=400, anchors_per_image=8, unlabelled_top_k=1)
    d = draw(6, config, bank=200, classes=4, masks=12)
    vectors = torch.cat([d.pool.vectors, d.pool.vectors[d.pool.classes == 2].repeat(30, 1)])
    classes = torch.cat([d.pool.classes, torch.full((len(vectors) - len(d.pool.vectors),), 2)])
    absent = np.full(len(vectors), -1)
    pool = PrototypePool.build(vectors, classes.numpy(), absent + 50, absent, 4)
    d = draw_from(d.scene, (d.inputs[0], pool), config, 3)
    student = d.scene.student()[d.pairs.anchors]
    similarity = (student @ pool.vectors.T).gather(1, d.pairs.negatives)
    uniform, semi_hard = similarity[:, :200], similarity[:, 200:]
    assert (semi_hard.mean(1) > uniform.mean(1) + 0.2).all()
    drawn = d.pool.classes[d.pairs.negatives[:, :200]]
    for a in range(len(drawn)):
        share = torch.bincount(drawn[a], minlength=4) / 200
        assert share[share > 0].min() > 1 / 3 - 0.12  # class 2 holds nearly all of the pool
        assert share.max() < 1 / 3 + 0.12


def test_ranges_point_to_the_entries_of_allowed_classes_that_the_pool_has():
    tables = [random_scene(seed).table(PairConfig()) for seed in range(3)]
    pool = pool_of(tables, 9, 6)
    allowed = allowed_negative_classes(tables[0], 3)
    ranges, num_choices = allowed_ranges(pool, allowed)
    for k in range(len(tables[0])):
        expected = set(np.flatnonzero(allowed[k])) & set(pool.classes)
        assert num_choices[k] == len(expected)
        classes = set()
        for start, count in ranges[k][:, : num_choices[k, 0]].T:
            classes |= set(pool.classes[start : start + count])
            assert count == (pool.classes == pool.classes[start]).sum()
        assert classes == expected


@pytest.mark.parametrize("num_negatives", [1, 2, 7])
def test_semi_hard_negatives_are_the_most_similar_quarter(num_negatives):
    """One class of 40 entries: what is drawn can be drawn again from the same generator."""
    similarity = torch.linspace(-1, 1, 40).expand(3, 40)
    ranges = torch.tensor([[0], [40]]).expand(3, 2, 1)
    choices = torch.ones(3, 1, dtype=torch.long)
    generators = [(torch.Generator().manual_seed(b), n) for b, n in enumerate((2, 1))]
    drawn = draw_negatives(ranges, choices, similarity, num_negatives, generators)
    num_uniform, num_semi_hard = num_negatives - num_negatives // 2, num_negatives // 2
    generator, width = torch.Generator().manual_seed(0), num_uniform + 4 * num_semi_hard
    torch.rand(2, width, generator=generator)  # classes
    entries = (torch.rand(2, width, generator=generator) * 40).long()
    assert torch.equal(drawn[:2, :num_uniform], entries[:, :num_uniform])
    nearest = entries[:, num_uniform:].sort(1, descending=True).values[:, :num_semi_hard]
    assert torch.equal(drawn[:2, num_uniform:].sort(1, descending=True).values, nearest)


def test_an_empty_pool_gives_indices_that_no_anchor_may_use():
    nothing = torch.zeros(2, 2, 3, dtype=torch.long)
    generators = [(torch.Generator(), 2)]
    drawn = draw_negatives(nothing, torch.zeros(2, 1).long(), torch.zeros(2, 0), 5, generators)
    assert drawn.tolist() == [[0] * 5] * 2


def test_a_generator_stays_on_its_own_device():
    generator = torch.Generator().manual_seed(5)
    assert generator_on(torch.device("cpu"), generator) is generator
