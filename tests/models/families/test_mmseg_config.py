"""Tests of parsing the configuration in a checkpoint of mmsegmentation without running it."""

from __future__ import annotations

import pytest
from mmseg_resnet_states import CONFIG

from sfss_ray.models.families.mmseg_config import (
    config_of,
    has_config,
    nested_entry,
    parse_config,
)


def test_a_whole_configuration_is_parsed():
    config = parse_config(CONFIG)
    assert nested_entry(config, "model", "backbone", "strides") == [1, 2, 1, 1]
    assert nested_entry(config, "model", "decode_head", "align_corners") is False
    assert nested_entry(config, "crop_size") == [769, 769]
    assert nested_entry(config, "model", "auxiliary_head", "type") is None
    assert nested_entry(None, "model") is None


def test_the_text_is_never_run(tmp_path):
    proof = tmp_path / "ran"
    source = f"""
import pathlib
pathlib.Path({str(proof)!r}).touch()
touched = pathlib.Path({str(proof)!r}).touch()
base = dict(a=1, b=dict(c=2, d=[1, -2]))
model = dict(base, b=dict(e=open({str(proof)!r}, 'w'), f=3 * 2), **dict(g=None))
huge = 9 ** 9 ** 9
"""
    config = parse_config(source)
    assert not proof.exists()
    assert config == {
        "base": {"a": 1, "b": {"c": 2, "d": [1, -2]}},
        "model": {"a": 1, "b": {"f": 6}, "g": None},
    }


def test_hostile_texts_use_little_memory():
    growing = "a = [0, 0]\n" + "a = a + a\n" * 64 + "b = 9\n" + "b = b * b\n" * 64
    assert len(parse_config(growing).get("a", [])) <= 10**4
    for source in ("not python at all {", "(" * 10_000, "\x00"):
        assert parse_config(source) == {}


def test_texts_of_a_file_and_its_bases_are_merged():
    """mmcv's Config.text has each text after a line with its path, bases first."""
    text = """/home/u/configs/_base_/models/m.py
norm_cfg = dict(type='SyncBN')
model = dict(backbone=dict(type='ResNetV1c', depth=50, norm_cfg=norm_cfg), head=dict(a=1, b=2))
/home/u/configs/x.py
_base_ = ['_base_/models/m.py']
model = dict(backbone=dict(depth=101), head=dict(_delete_=True, c=3))
"""
    model = config_of({"meta": {"config": text}})["model"]
    assert model["backbone"] == {"type": "ResNetV1c", "depth": 101, "norm_cfg": {"type": "SyncBN"}}
    assert model["head"] == {"c": 3}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("-3", -3),
        ("7 // 2 + 1", 4),
        ("[1] + [2]", [1, 2]),
        ("tuple([1, 2])", [1, 2]),
        ("{'a': 1, **dict(b=2)}", {"a": 1, "b": 2}),
    ],
)
def test_simple_expressions_are_evaluated(expression, expected):
    assert parse_config(f"x = {expression}") == {"x": expected}


@pytest.mark.parametrize("expression", ["f(1)", "1 / 0", "[f(1)]", "unknown", "'a' * 9"])
def test_other_expressions_are_dropped(expression):
    assert parse_config(f"x = {expression}\ny = 1") == {"y": 1}


@pytest.mark.parametrize("meta", [None, {}, {"cfg": "x = ("}, {"cfg": 3}, {"cfg": "a = 1"}])
def test_files_without_a_readable_configuration(meta):
    assert config_of({"meta": meta}) is None
    assert has_config({"meta": meta}) == bool(meta)
    assert config_of([]) is None
