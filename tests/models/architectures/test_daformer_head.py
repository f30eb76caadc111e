"""Checkpoints of DAFormer's code with each kind of its decode heads, compared number by number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daformer_states as da
import mit_states as mit
import pytest
import torch
from mit_states import State

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.architectures.catalogue import build_network

SIZE = (72, 104)  # 18 x 26 cells, no multiple of ISA's patch


@pytest.fixture(scope="module")
def plain() -> State:
    return mit.plain_encoder()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def saved(path: Path, plain: State, head: State, meta: Any = None, start: str = "model.") -> Path:
    state = {f"{start}backbone.{k}": v for k, v in mit.original_backbone(plain).items()}
    state |= {f"{start}decode_head.{k}": v for k, v in head.items()}
    torch.save({"meta": meta or {}, "state_dict": state}, path)
    return path


def prepared(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return (255 * images - mean) / std


def config(decode_head: str, more: str = "") -> dict[str, str]:
    text = f"""
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='mit_b0', style='pytorch'),
    decode_head=dict({decode_head}, num_classes=19, align_corners=False){more})
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""
    return {"config": text}


CASES = {
    "daformer_aspp": (da.aspp_head(), da.aspp_logits),
    "daformer_aspp with the image's mean": (da.aspp_head(pool=True), da.aspp_logits),
    "daformer_sepaspp with the image's mean": (da.aspp_head(True, True), da.aspp_logits),
    "daformer_sepaspp": (da.aspp_head(True), da.aspp_logits),
    "daformer_conv1": (da.conv_head(1), da.conv_logits),
    "daformer_conv3": (da.conv_head(3), da.conv_logits),
    "sep_conv": (da.separable_head(), da.separable_logits),
    "daformer_sepaspp_bottleneck": (da.last_stage_head(), da.last_stage_logits),
    "daformer_isa": (da.isa_head(), da.isa_logits),
    "daformer_isa, two convolutions": (da.isa_head(2), da.isa_logits),
    "segformer": (da.segformer_head(), da.segformer_logits),
    "segformer, another width": (da.segformer_head(96), da.segformer_logits),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_makers_code(name, plain, images, tmp_path):
    head, logits_of = CASES[name]
    model = load_source_model(saved(tmp_path / "x.pth", plain, head))
    expected = mit.enlarged(logits_of(head, mit.encode(plain, prepared(images), 1e-5, 1e-6)), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()
    assert model.load_report.missing == model.load_report.unexpected == ()
    again = load_model(save_model(tmp_path / "own.pt", model))
    assert torch.equal(again(images), model(images))
    some = load_source_model(tmp_path / "own.pt", classes=("car", "road"))
    torch.testing.assert_close(some(images), expected[:, [13, 0]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sep", [False, True])
def test_hrda_on_other_fusions(sep, plain, images, tmp_path, monkeypatch):
    """Attention keeps its 1x1 convolution where the head has context."""
    head = mit.hrda_head()
    own = {f"head.{key}": value for key, value in da.aspp_head(sep).items()}
    head = {k: v for k, v in head.items() if not k.startswith("head.")} | own
    model = load_source_model(saved(tmp_path / "x.pth", plain, head))
    assert model.name == "hrda_b0"
    assert model.network.options == ({} if sep else {"fusion": {"type": "aspp", "sep": False}})
    monkeypatch.setattr(mit, "daformer_logits", da.aspp_logits)
    expected = mit.enlarged(mit.hrda_logits(head, plain, prepared(images)), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
def test_dilations_and_patches_are_those_of_the_configuration(plain, images, tmp_path):
    fusion = "decoder_params=dict(fusion_cfg=dict(type='aspp', sep=False, dilations=(1, 2, 3, 5)))"
    head = da.aspp_head()
    meta = config(f"type='DAFormerHead', {fusion}")
    model = load_source_model(saved(tmp_path / "x.pth", plain, head, meta))
    stages = mit.encode(plain, prepared(images), 1e-5, 1e-6)
    expected = mit.enlarged(da.aspp_logits(head, stages, (1, 2, 3, 5)), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()
    fusion = "decoder_params=dict(fusion_cfg=dict(type='isa', down_factor=(4, 4)))"
    meta, head = config(f"type='DAFormerHead', {fusion}"), da.isa_head()
    model = load_source_model(saved(tmp_path / "y.pth", plain, head, meta))
    expected = mit.enlarged(da.isa_logits(head, stages, 4), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
def test_mmsegs_segformer_with_align_corners(plain, images, tmp_path):
    head = mit.mmseg_head()
    meta = config("type='SegformerHead'")
    meta["config"] = meta["config"].replace("align_corners=False", "align_corners=True")
    state = {f"backbone.{k}": v for k, v in mit.mmseg_backbone(plain).items()}
    state |= {f"decode_head.{k}": v for k, v in head.items()}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "x.pth")
    stages = mit.encode(plain, prepared(images), 1e-6, 1e-6)
    expected = mit.enlarged(mit.mmseg_logits(head, stages, True), SIZE, True)
    found = load_source_model(tmp_path / "x.pth")(images)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


NECK = ", neck=dict(type='SegFormerAdapter', scales=[8])"
PLAIN_HEADS = {"daformer": da.aspp_head(True), "last": da.last_stage_head()}


@pytest.mark.parametrize(
    ("head", "decode_head", "more", "said"),
    [
        ("daformer", "type='DAFormerHead'", ", neck=dict(type='FPN')", "neck 'FPN': known is none"),
        ("daformer", "type='SegFormerHead'", "", "'SegFormerHead': known is DAFormerHead"),
        ("last", "type='DAFormerHead'", NECK.replace("8", "4"), "neck {"),
        (
            "daformer",
            "type='DAFormerHead'",
            ", backbone=dict(type='m', sr_ratios=[4, 4, 2, 1])",
            "sr_",
        ),
    ],
)
def test_what_no_network_here_represents_is_one_line(
    head, decode_head, more, said, plain, tmp_path
):
    meta = config(decode_head, more)
    if "backbone" in more:
        meta["config"] = meta["config"].replace(
            "backbone=dict(type='mit_b0', style='pytorch'),", ""
        )
    path = saved(tmp_path / "x.pth", plain, PLAIN_HEADS[head], meta)
    with pytest.raises(CheckpointError) as refused:
        load_source_model(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_neck_of_context_at_the_last_stage_is_known(plain, tmp_path):
    meta = config("type='DAFormerHead'", NECK)
    path = saved(tmp_path / "x.pth", plain, da.last_stage_head(), meta)
    assert "the last stage enlarged by 8" in load_source_model(path).load_report.notes[0]


def test_an_unknown_type_with_known_keys_is_said(plain, tmp_path):
    path = saved(tmp_path / "x.pth", plain, da.aspp_head(True), config("type='MyHead'"))
    assert "MyHead is not known" in load_source_model(path).load_report.notes[-1]


def test_other_heads_are_named(plain, tmp_path):
    start = {"conv_seg.weight": torch.zeros(19, 256, 1, 1)}
    heads = {
        "UPerHead": {"psp_modules.0.1.conv.weight": torch.zeros(1)},
        "DAFormerHead": {
            "embed_layers.0.proj.weight": torch.zeros(256, 32),
            "fuse_layer.proj.weight": torch.zeros(256, 1024),
        },
        "HRDAHead": {"scale_attention.aspp_modules.0.conv.weight": torch.zeros(1)},
    }
    for name, head in heads.items():
        with pytest.raises(CheckpointError, match=f"whose decode head {name}"):
            load_source_model(saved(tmp_path / "x.pth", plain, start | head))


def test_unknown_options_are_refused_with_the_known():
    with pytest.raises(ConfigError, match="no option 'fusions': known are fusion, last"):
        build_network("daformer_b0", 19, {"fusions": {}})
