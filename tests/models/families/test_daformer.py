"""Tests of recognising the layers of DAFormer's heads, by their keys and the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daformer_states as da
import mit_states as mit
import pytest
import torch
from checkpoint_files import random_images, refusal, write
from family_states import to_mmseg
from mit_states import State

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray import load_source_model
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.daformer import daformer_options, describe_layer, hrda_options
from sfss_ray.models.families.mmseg_settings import Settings

SIZE = (72, 104)  # 18 x 26 cells, no multiple of ISA's patch


@pytest.fixture(scope="module")
def plain() -> State:
    return mit.plain_encoder()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE, count=2)


def save(path: Path, plain: State, head: State, meta: Any = None) -> Path:
    state = mit.whole_network(mit.original_backbone(plain), head, "model.")
    return write(path, {"meta": meta or {}, "state_dict": state})


def config(decode_head: str, extra: str = "") -> dict[str, str]:
    """Return a `meta` with the configuration of a decode head, and of other parts of the model."""
    text = f"""
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='mit_b0', style='pytorch'),
    decode_head=dict({decode_head}, num_classes=19, align_corners=False){extra})
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""
    return {"config": text}


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (da.aspp_head(sep=True), {}),
        (da.aspp_head(), {"fusion": {"type": "aspp", "sep": False}}),
        (da.aspp_head(True, True), {"fusion": {"type": "aspp", "sep": True, "pool": True}}),
        (da.conv_head(3), {"fusion": {"type": "conv", "kernel_size": 3}}),
        (da.separable_head(), {"fusion": {"type": "sep_conv", "kernel_size": 3}}),
        (da.isa_head(2), {"fusion": {"type": "isa", "key_query_num_convs": 2}}),
        (
            da.last_stage_head(),
            {
                "last": {"type": "rawconv_and_aspp", "kernel_size": 1, "sep": True},
                "fusion": {"type": "conv", "kernel_size": 1},
            },
        ),
    ],
)
def test_layers_are_described_by_their_keys(head, options):
    assert daformer_options(head, Settings(None)) == options


def test_heads_of_hrda_have_two_fusions():
    head = mit.hrda_head()
    assert hrda_options(head, Settings(None)) == {}
    plain_head = {f"head.{key}": tensor for key, tensor in da.aspp_head().items()}
    head = {k: v for k, v in head.items() if not k.startswith("head.")} | plain_head
    assert hrda_options(head, Settings(None)) == {"fusion": {"type": "aspp", "sep": False}}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"scales": [0.25, 1]}, r"scales \[0\.25, 1\]: supported is 0\.5 and 1"),
        ({"hr_crop_size": [256, 256]}, "supported is 512, 512"),
        ({"blur_hr_crop": True}, "blur_hr_crop True: supported is False"),
    ],
)
def test_other_scales_and_crops_of_hrda_are_refused(entry, message):
    with pytest.raises(CheckpointError, match=message):
        hrda_options(mit.hrda_head(), Settings({"model": entry}))


def test_unknown_layers_are_refused():
    with pytest.raises(CheckpointError, match=r"DAFormerHead is not supported \(fusion_cfg; "):
        describe_layer({"proj.weight": torch.zeros(1)}, Settings(None), "fusion_cfg")
    layer = {"aspp_modules.0.conv.weight": torch.zeros(1), "context_layer.x": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="its fuse_layer has a context_layer"):
        describe_layer(layer, Settings(None), "fusion_cfg")


@torch.no_grad()
def test_dilations_are_those_of_the_configuration(plain, images, tmp_path):
    fusion = "decoder_params=dict(fusion_cfg=dict(type='aspp', sep=False, dilations=(1, 2, 3, 5)))"
    head = da.aspp_head()
    meta = config(f"type='DAFormerHead', {fusion}")
    model = load_source_model(save(tmp_path / "x.pth", plain, head, meta))
    stages = mit.encode(plain, to_mmseg(images), 1e-5, 1e-6)
    expected = mit.upsample(da.aspp_logits(head, stages, (1, 2, 3, 5)), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
def test_patches_are_those_of_the_configuration(plain, images, tmp_path):
    fusion = "decoder_params=dict(fusion_cfg=dict(type='isa', down_factor=(4, 4)))"
    head = da.isa_head()
    meta = config(f"type='DAFormerHead', {fusion}")
    model = load_source_model(save(tmp_path / "y.pth", plain, head, meta))
    stages = mit.encode(plain, to_mmseg(images), 1e-5, 1e-6)
    expected = mit.upsample(da.isa_logits(head, stages, 4), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()


NECK = ", neck=dict(type='SegFormerAdapter', scales=[8])"
HEADS = {"daformer": da.aspp_head(True), "last": da.last_stage_head()}


@pytest.mark.parametrize(
    ("head", "decode_head", "extra", "message"),
    [
        (
            "daformer",
            "type='DAFormerHead'",
            ", neck=dict(type='FPN')",
            "neck 'FPN': supported is none",
        ),
        ("daformer", "type='SegFormerHead'", "", "'SegFormerHead': supported is DAFormerHead"),
        ("last", "type='DAFormerHead'", NECK.replace("8", "4"), "neck {"),
        (
            "daformer",
            "type='DAFormerHead'",
            ", backbone=dict(type='m', sr_ratios=[4, 4, 2, 1])",
            "backbone.sr_ratios [4, 4, 2, 1]: supported is 8, 4, 2, 1",
        ),
    ],
)
def test_unsupported_settings_are_refused_in_one_line(
    head, decode_head, extra, message, plain, tmp_path
):
    meta = config(decode_head, extra)
    if "backbone" in extra:
        default = "backbone=dict(type='mit_b0', style='pytorch'),"
        meta["config"] = meta["config"].replace(default, "")
    path = save(tmp_path / "x.pth", plain, HEADS[head], meta)
    assert message in refusal(path)


def test_the_neck_of_context_at_the_last_stage_is_known(plain, tmp_path):
    meta = config("type='DAFormerHead'", NECK)
    path = save(tmp_path / "x.pth", plain, da.last_stage_head(), meta)
    assert "the last stage enlarged by 8" in load_source_model(path).load_report.notes[0]


def test_an_unknown_head_type_with_known_keys_is_noted(plain, tmp_path):
    path = save(tmp_path / "x.pth", plain, da.aspp_head(True), config("type='MyHead'"))
    assert "MyHead is unknown" in load_source_model(path).load_report.notes[-1]


def test_other_heads_are_refused_by_name(plain, tmp_path):
    classifier = {"conv_seg.weight": torch.zeros(19, 256, 1, 1)}
    heads = {
        "UPerHead": {"psp_modules.0.1.conv.weight": torch.zeros(1)},
        "DAFormerHead": {
            "embed_layers.0.proj.weight": torch.zeros(256, 32),
            "fuse_layer.proj.weight": torch.zeros(256, 1024),
        },
        "HRDAHead": {"scale_attention.aspp_modules.0.conv.weight": torch.zeros(1)},
    }
    for name, head in heads.items():
        path = save(tmp_path / "x.pth", plain, classifier | head)
        with pytest.raises(CheckpointError, match=f"whose decode head {name}"):
            load_source_model(path)
