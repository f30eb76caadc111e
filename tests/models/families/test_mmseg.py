"""Tests of what all checkpoints of mmsegmentation have in common."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.models.families.mmseg import (
    classes_of_meta,
    is_unused,
    unknown_head_error,
    unknown_tensors,
)


@pytest.mark.parametrize(
    ("meta", "classes"),
    [
        ({"CLASSES": ("a", "b"), "PALETTE": [[0, 0, 0]]}, ("a", "b")),
        ({"dataset_meta": {"classes": ["c", "d"], "palette": None}}, ("c", "d")),
        ({"dataset_meta": {}, "CLASSES": ("a",)}, ()),
        ({"CLASSES": (1, 2)}, ()),
        ({"CLASSES": None}, ()),
        ({}, ()),
        (None, ()),
    ],
)
def test_class_names_are_read_from_meta(meta, classes):
    assert classes_of_meta({"meta": meta}) == classes
    assert classes_of_meta([meta]) == ()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("psp_modules.0.1.conv.weight", "UPerHead or PSPHead"),
        ("scale_attention.x", "HRDAHead"),
        ("object_context_block.x", "OCRHead"),
        ("convs.0.weight", "FCNHead"),
    ],
)
def test_unknown_heads_are_named(key, name):
    message = str(unknown_head_error({key: torch.zeros(1)}, "on a ResNet"))
    assert f"whose decode head {name} is not supported (on a ResNet; decode_head holds" in message
    assert "supported decode heads are SegFormer's" in message
    assert "wrap_model" in message


def test_a_head_without_a_known_name_is_described_by_its_parts():
    head = {"lateral_convs.0.weight": torch.zeros(1), "conv_seg.bias": torch.zeros(1)}
    message = str(unknown_head_error(head, "why"))
    assert "whose decode head is not supported (why; decode_head holds conv_seg, lateral" in message
    assert "decode_head holds nothing" in str(unknown_head_error({}, "why"))


def test_unused_and_unknown_tensors():
    for key in ("auxiliary_head.x", "proj_head.x", "feat_distributions.Amount", "backbone.fc.bias"):
        assert is_unused(key)
    assert not is_unused("backbone.layer1.0.conv1.weight")
    state = {"backbone.x": torch.zeros(1), "other.x": torch.zeros(1)}
    assert list(unknown_tensors(state, ("backbone.", "decode_head."))) == ["other.x"]
