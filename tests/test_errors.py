"""The errors of the package."""

from __future__ import annotations

import inspect

import pytest

import sfss_ray
from sfss_ray import errors

ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if error.__module__ == errors.__name__
]


def test_one_base_class_catches_every_error_and_is_public():
    assert sfss_ray.SfssError is errors.SfssError
    assert len(ERRORS) > 1
    assert all(issubclass(error, errors.SfssError) for error in ERRORS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_a_value_error_with_a_purpose(error):
    """Callers that know nothing of this package can catch ValueError."""
    with pytest.raises(ValueError, match="the reason"):
        raise error("the reason")
    assert error.__doc__


def test_the_overview_lists_every_error():
    overview = errors.__doc__ or ""
    assert [error.__name__ for error in ERRORS if error.__name__ not in overview] == []


def test_siblings_do_not_catch_each_other():
    kinds = [error for error in ERRORS if error is not errors.SfssError]
    assert all(not issubclass(a, b) for a in kinds for b in kinds if a is not b)
