"""Tests of the comparison of a checkpoint's tensors with a network."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.errors import CheckpointError
from sfss_ray.models.load_report import LoadReport, compare, require_fit

EXPECTED = {
    "a.weight": torch.zeros(2, 3),
    "a.bias": torch.zeros(2),
    "bn.weight": torch.zeros(4),
    "bn.num_batches_tracked": torch.tensor(0),
}


def test_tensors_are_sorted_into_four_groups():
    checkpoint = {
        "a.weight": torch.zeros(2, 3),
        "bn.weight": torch.zeros(5),
        "extra": torch.zeros(1),
    }
    report = compare("a family", "a network", checkpoint, EXPECTED, unused=("aux.weight",))
    assert report.matched == ("a.weight",)
    assert report.missing == ("a.bias",)  # a batch counter is never missing
    assert report.unexpected == ("extra",)
    assert report.wrong_shape == ("bn.weight is (5,), not (4,)",)
    assert report.unused == ("aux.weight",)
    assert report.summary() == (
        "a family -> a network: 1 tensors matched, 1 missing, 1 unexpected, 1 of wrong shape,"
        " 1 not needed"
    )


def test_batch_counters_are_loaded_if_the_file_has_them():
    report = compare("f", "n", EXPECTED, EXPECTED)
    assert report.matched == tuple(EXPECTED)
    assert report.missing == report.unexpected == report.wrong_shape == ()


def test_a_file_that_fits_is_not_refused():
    require_fit(LoadReport("f", "n", matched=("a",), unexpected=("b",)), "x.pth", "do this")


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"missing": ("a", "b")}, r"\(2 tensors missing, first 'a'\)"),
        ({"wrong_shape": ("c is (1,), not (2,)",)}, r"\(1 of wrong shape, first c is \(1,\), not"),
        (
            {"missing": ("a",), "unexpected": ("d", "e")},
            r"\(1 tensors missing, first 'a'; 2 unexpected, first 'd'\)",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_first_faults(faults, message):
    with pytest.raises(CheckpointError, match=message) as error:
        require_fit(LoadReport("f", "n", **faults), "x.pth", "copy it again")
    assert str(error.value).startswith(
        "source model 'x.pth' does not fit network 'n' of the family"
    )
    assert str(error.value).endswith(": copy it again")
