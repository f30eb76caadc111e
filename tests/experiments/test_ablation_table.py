"""The table of an ablation: what stands in it beside the means."""

from __future__ import annotations

import pytest


def entry(key, *mious):
    return {"key": key, "seeds": [{"seed": s, "student_last": m} for s, m in enumerate(mious)]}


@pytest.fixture
def paired(experiment):
    return experiment("ablation_table").paired_differences


def test_differences_are_those_of_the_same_seed(paired):
    plain = entry("self_training", 50.0, 52.0, 48.0)
    assert paired(entry("full", 50.8, 51.7, 48.04), plain) == "+0.8, -0.3, +0.0"
    shuffled = {"key": "full", "seeds": entry("full", 50.8, 51.7, 48.0)["seeds"][1:]}
    assert paired(shuffled, plain) == "-0.3, +0.0"


def test_seeds_and_rows_without_a_partner_have_no_difference(paired):
    plain = entry("self_training", 50.0)
    assert paired(entry("full", 51.0, 60.0), plain) == "+1.0"
    assert paired(plain, plain) == ""
    assert paired(entry("full", 51.0), None) == ""
