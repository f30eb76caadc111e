"""Tests of the recognised file and of the order in which families are tried."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sfss_ray import Card
from sfss_ray.models.families import FAMILIES, RecognisedFile


def test_a_recognised_file_has_the_default_preprocessing_unless_it_says_otherwise():
    file = RecognisedFile("a family", "compact", 3, {"classifier.weight": torch.zeros(3, 1)})
    assert file.card == Card()
    assert (file.unused, file.options, file.notes) == ((), {}, ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        file.network = "unet"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("content", [{}, {"weight": torch.zeros(1)}])
def test_no_family_recognises_other_content(content):
    assert [recogniser(content, content) for _, recogniser in FAMILIES] == [None] * len(FAMILIES)


def test_families_have_names_of_their_own():
    names = [name for name, _ in FAMILIES]
    assert len(set(names)) == len(names)
    assert names[-1].startswith("torchvision")  # it recognises the most general keys
