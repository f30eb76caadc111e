"""The pool: sorted by class, image and key, with the range of each class."""

import numpy as np
import torch

from sfss_ray.method.prototype_pool import PrototypePool, sort_key

CLASSES = np.array([2, 0, 2, 0, 2])
IMAGES = np.array([7, 3, 1, 3, 7])
KEYS = np.array([50, 9, -1, 4, 20])


def pool() -> PrototypePool:
    return PrototypePool.build(torch.arange(5.0)[:, None], CLASSES, IMAGES, KEYS, 4)


def test_entries_are_sorted_by_class_image_and_key():
    expected = sorted(range(5), key=lambda i: (CLASSES[i], IMAGES[i], KEYS[i]))
    assert pool().vectors[:, 0].tolist() == expected
    for name, column in (("classes", CLASSES), ("images", IMAGES), ("keys", KEYS)):
        assert getattr(pool(), name).tolist() == column[expected].tolist()
    assert (np.diff(pool().sort_keys) >= 0).all()


def test_each_class_is_a_range():
    for label in range(4):
        start, count = pool().class_start[label], pool().class_count[label]
        assert count == (label == CLASSES).sum()
        assert (pool().classes[start : start + count] == label).all()


def test_masks_are_found_by_their_keys():
    found = pool().positions_of(np.array([4, 20, 5, 50]))
    assert found[2] == -1  # a mask that is not in the pool
    assert pool().keys[found[[0, 1, 3]]].tolist() == [4, 20, 50]


def test_bank_entries_are_no_masks_of_this_step():
    bank_only = PrototypePool.build(torch.zeros(2, 1), CLASSES[:2], IMAGES[:2], np.full(2, -1), 4)
    assert bank_only.positions_of(np.array([0, 3])).tolist() == [-1, -1]


def test_an_empty_pool_has_no_entries_of_any_class():
    nothing = np.zeros(0, np.int64)
    empty = PrototypePool.build(torch.zeros(0, 3), nothing, nothing, nothing, 4)
    assert empty.class_count.tolist() == [0] * 4
    assert empty.positions_of(np.array([1])).tolist() == [-1]


def test_the_sort_key_rises_with_the_class_then_the_image():
    keys = sort_key(np.array([0, 0, 1, 1]), np.array([5, 2**31, 0, 3]))
    assert (np.diff(keys) > 0).all()
