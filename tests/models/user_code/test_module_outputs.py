"""Tests of finding the logits in what a module returns."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import SemanticSegmenterOutput

from sfss_ray.errors import ConfigError
from sfss_ray.models.user_code.module_outputs import (
    are_probabilities,
    find_logits,
    require_gradients,
)

LOGITS = torch.randn(2, 5, 4, 6)
AUXILIARY = torch.randn(2, 5, 2, 3)
FEATURES = torch.randn(2, 16, 4, 6)


@dataclasses.dataclass
class Fields:
    features: Tensor
    scores: Tensor | None


Named = collections.namedtuple("Named", "features prediction")


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, AUXILIARY),
        [LOGITS],
        (FEATURES, LOGITS, AUXILIARY),
        ([FEATURES, (LOGITS,)], AUXILIARY),
        {"out": LOGITS, "aux": AUXILIARY},
        {"aux": AUXILIARY, "out": LOGITS},
        {"aux": AUXILIARY, "logits": LOGITS},
        {"loss": torch.tensor(1.0), "segmentation": LOGITS},
        {"out": (LOGITS, AUXILIARY)},
        Fields(FEATURES, LOGITS),
        Named(FEATURES, LOGITS),
        SemanticSegmenterOutput(logits=LOGITS, hidden_states=(FEATURES, AUXILIARY)),
        type("Output", (), {"logits": LOGITS})(),
        (LOGITS, None, 3, "text"),
    ],
)
def test_the_first_map_with_a_channel_per_class_is_the_logits(output):
    assert find_logits(output, 5) is LOGITS


def test_without_a_number_of_classes_the_first_map_counts():
    assert find_logits([torch.zeros(3), FEATURES, LOGITS]) is FEATURES
    assert find_logits([FEATURES, LOGITS], 7) is FEATURES


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "the module returns NoneType: allowed are logits"),
        (torch.zeros(1, 3), r"the module returns \(1, 3\): allowed are"),
        ((1, torch.zeros(3)), "the module returns tuple: allowed are"),
        ({}, "the module returns dict: allowed are"),
        (Fields(torch.zeros(1), None), "the module returns Fields: allowed are"),
        (
            torch.zeros(1, 1, 4, 4).long(),
            "returns torch.int64 numbers: return the logits, before argmax",
        ),
    ],
)
def test_outputs_without_logits_are_refused_in_one_line(output: Any, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        find_logits(output, 5)
    assert "\n" not in str(error.value)


def test_probabilities_are_recognised():
    assert are_probabilities(LOGITS.softmax(1))
    assert are_probabilities(LOGITS.softmax(1).half())
    assert not are_probabilities(LOGITS)
    assert not are_probabilities(LOGITS.log_softmax(1))
    assert not are_probabilities(LOGITS.sigmoid())
    assert not are_probabilities(torch.ones(1, 1, 2, 2))


def test_logits_without_gradients_are_refused():
    logits = LOGITS.clone().requires_grad_() * 2
    require_gradients(logits)
    with pytest.raises(ConfigError, match=r"without gradients.*remove torch\.no_grad\(\)"):
        require_gradients(logits.detach())
