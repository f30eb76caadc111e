"""Tests of flattening checkpoints: containers, wrapper prefixes, subtrees."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.models.families.keys import (
    container_of,
    has_prefix,
    has_tensors,
    strip_wrappers,
    subtree,
    tensors_of,
)


@pytest.mark.parametrize(
    ("key", "stripped"),
    [
        ("module.conv1.weight", "conv1.weight"),
        ("net.conv1.weight", "conv1.weight"),
        ("module.net.conv1.weight", "conv1.weight"),
        ("model.backbone.x", "backbone.x"),
        ("module.model.module.backbone.x", "backbone.x"),
        ("ema_model.backbone.x", "ema_model.backbone.x"),
        ("imnet_model.backbone.x", "imnet_model.backbone.x"),
        ("backbone.module.x", "backbone.module.x"),
        ("subnet.x", "subnet.x"),
        ("_orig_mod.conv1.weight", "conv1.weight"),
        ("_orig_mod.module.conv1.weight", "conv1.weight"),
        ("module._orig_mod.conv1.weight", "conv1.weight"),
        ("model._orig_mod.backbone.x", "backbone.x"),
        ("model.backbone._orig_mod.layer1.x", "backbone.layer1.x"),
        ("my_orig_mod.x", "my_orig_mod.x"),
    ],
)
def test_wrappers_are_stripped_from_the_start_only(key, stripped):
    assert strip_wrappers(key) == stripped


def test_tensors_are_found_in_every_container():
    weight = torch.zeros(1)
    for name in ("state_dict", "model_state_dict", "model", "net"):
        content = {name: {"a.b": weight}, "epoch": 3}
        assert list(tensors_of(content)) == ["a.b"]
        assert container_of(content) == name
    assert list(tensors_of({"f": {"module.a": weight}, "g": {"b": weight}})) == ["f.a", "g.b"]
    assert tensors_of([weight]) == {}
    assert tensors_of({"state_dict": {}, "epoch": 3}) == {}


def test_a_container_without_tensors_is_not_opened():
    assert container_of({"model": {"name": "x"}, "weight": torch.zeros(1)}) is None
    assert has_tensors({"a": 1, "b": torch.zeros(1)})
    assert not has_tensors({"a": [torch.zeros(1)]})


def test_subtrees_have_keys_without_the_prefix():
    state = {"a.b.c": torch.zeros(1), "a.d": torch.ones(1), "ab.e": torch.ones(2)}
    assert list(subtree(state, "a.")) == ["b.c", "d"]
    assert has_prefix(state, "a.b")
    assert not has_prefix(state, "b")
