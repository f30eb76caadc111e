"""The fast sort returns the order of a stable argsort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfss_ray.method.sorting import stable_order


@given(
    seed=st.integers(0, 10_000),
    number=st.integers(0, 300),
    highest=st.sampled_from([0, 3, 1000, (1 << 41) - 1, 1 << 41, 1 << 60]),
)
def test_order_is_that_of_a_stable_sort(seed, number, highest):
    rng = np.random.default_rng(seed)
    keys = rng.choice(rng.integers(0, highest, 40, endpoint=True), number)
    assert np.array_equal(stable_order(keys), keys.argsort(kind="stable"))


@pytest.mark.parametrize("number", [(1 << 22) - 1, 1 << 22, (1 << 22) + 1])
def test_indices_up_to_the_last_bit(number):
    keys = np.random.default_rng(0).integers(0, 5, number)
    assert np.array_equal(stable_order(keys), keys.argsort(kind="stable"))
