"""Prototypes of a step: origins after class-mix, gathering, and writing to the bank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from train_samples import random_scene

from sfss_ray.config import PairConfig
from sfss_ray.method.mask_table import MaskTable
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.prototypes import (
    KEYS_PER_SAMPLE,
    Prototypes,
    gather_prototypes,
    origins_of,
    pool_with_bank,
    remember,
)

CLASSES = 6


def scene_tables(number: int = 3) -> list[MaskTable]:
    """Return tables with lenient thresholds, so that many masks are reliable."""
    scenes = [random_scene(seed) for seed in range(number)]
    low = torch.full((CLASSES,), 0.2)
    return [replace(scene, thresholds=low).table(PairConfig()) for scene in scenes]


def test_without_class_mix_all_masks_are_at_home():
    tables = scene_tables()
    origins = origins_of(tables, [5, 6, 7], [10, 11, 12], None)
    for b, (table, origin) in enumerate(zip(tables, origins, strict=True)):
        assert origin.at_home.all()
        assert set(origin.images.tolist()) == {5 + b}
        assert origin.keys.tolist() == [(10 + b) * KEYS_PER_SAMPLE + i for i in table.ids.tolist()]


def test_pasted_masks_come_from_the_neighbour_under_their_original_key():
    first, second, third = scene_tables()
    tables = [
        replace(first, ids=np.arange(len(first)) + 48),  # 48 to 50 are its own, the rest is pasted
        replace(second, ids=np.arange(len(second)) + 1),
        replace(third, ids=np.arange(len(third)) + 1),
    ]
    origins = origins_of(tables, [5, 6, 7], [10, 11, 12], highest_own_id=50)
    assert origins[0].at_home.tolist() == [True] * 3 + [False] * (len(first) - 3)
    assert origins[0].images.tolist() == [5] * 3 + [6] * (len(first) - 3)
    assert origins[0].keys[3] == origins[1].keys[0] == 11 * KEYS_PER_SAMPLE + 1
    assert origins[2].at_home.all()


def test_reliable_masks_are_gathered_and_pasted_copies_are_not():
    tables = scene_tables()
    origins = origins_of(tables, [5, 6, 7], [10, 11, 12], None)
    origins[1] = replace(origins[1], at_home=np.zeros(len(tables[1]), bool))
    fresh = gather_prototypes(tables, origins)
    expected = [
        (table.label[k], image, table.purity[k] * table.confidence[k], table.prototype[k])
        for table, image in ((tables[0], 5), (tables[2], 7))
        for k in np.flatnonzero(table.reliable)
    ]
    labels, images, scores, vectors = zip(*expected, strict=True)
    assert fresh.classes.tolist() == list(labels)
    assert fresh.images.tolist() == list(images)
    np.testing.assert_allclose(fresh.scores, scores)
    assert torch.equal(fresh.vectors, torch.stack(vectors))


def numbered(scores: list[float], classes: list[int], samples: list[int]) -> Prototypes:
    """Return prototypes whose vectors contain their index."""
    index = np.arange(len(scores))
    keys = np.array(samples) * KEYS_PER_SAMPLE + index
    vectors = torch.from_numpy(index).float()[:, None]
    return Prototypes(vectors, np.array(classes), np.array(samples), keys, np.array(scores))


@pytest.mark.parametrize(("per_image", "remembered"), [(1, [1, 2, 4]), (2, [0, 1, 2, 4])])
def test_the_bank_remembers_the_best_of_each_image_and_class(per_image, remembered):
    fresh = numbered([0.5, 0.9, 0.1, 0.4, 0.7], [0, 0, 1, 0, 0], [3, 3, 3, 3, 8])
    bank = PrototypeBank(2, 8, 1)
    remember(bank, fresh, per_image)
    vectors, classes, images = bank.contents()
    assert sorted(vectors[:, 0].tolist()) == remembered
    assert classes.tolist() == [0] * (len(remembered) - 1) + [1]
    assert set(images.tolist()) == {3, 8}


def test_a_bank_that_is_off_remembers_nothing():
    bank = PrototypeBank(2, 0, 1)
    remember(bank, numbered([0.5], [1], [3]), 4)
    assert len(bank.contents()[0]) == 0


def test_the_pool_has_the_prototypes_of_step_and_bank():
    bank = PrototypeBank(2, 8, 1)
    bank.write(torch.tensor([[70.0], [80.0]]), np.array([1, 0]), np.array([2, 2]))
    pool = pool_with_bank(numbered([0.5, 0.9], [1, 0], [3, 3]), bank, 2)
    assert sorted(pool.vectors[:, 0].tolist()) == [0.0, 1.0, 70.0, 80.0]
    from_bank = torch.from_numpy(pool.keys == -1)
    assert sorted(pool.vectors[from_bank][:, 0].tolist()) == [70.0, 80.0]
    assert pool.class_count.tolist() == [2, 2]
