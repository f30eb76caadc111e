"""The configuration inside a checkpoint of mmsegmentation: read as text, and obeyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmseg_resnet_states as mm
import pytest
import torch
from family_states import State
from torch.nn import functional as F

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.mmseg_config import config_of, parse_config

SIZE = (33, 401)  # 51 cells at stride 8, 26 at 16: the head's dilations reach other cells
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PRETTY = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
crop_size = (769, 769)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    size=(769, 769))
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None,
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
launcher = 'none'
"""
D16 = {
    "strides=(1, 2, 1, 1)": "strides=(1, 2, 2, 1)",
    "dilations=(1, 1, 2, 4)": "dilations=(1, 1, 1, 2)",
    "contract_dilation=True": "contract_dilation=True, multi_grid=(1, 2, 4)",
    "(1, 12, 24, 36)": "(1, 6, 12, 18)",
}


def edited(replaced: dict[str, str]) -> str:
    text = PRETTY
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def backbone() -> State:
    return mm.backbone(50, True)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def saved(path: Path, backbone: State, head: State, meta: Any) -> Path:
    state = {f"backbone.{k}": v for k, v in backbone.items()}
    state |= {f"decode_head.{k}": v for k, v in head.items()}
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


def prepared(images: torch.Tensor, order: str = "rgb", mean=MEAN, std=STD) -> torch.Tensor:
    planes = dict(zip("rgb", (255 * images).unbind(1), strict=True))
    return torch.stack([(planes[c] - mean[i]) / std[i] for i, c in enumerate(order)], 1)


def assert_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (found.argmax(1) == expected.argmax(1)).all()


@torch.no_grad()
@pytest.mark.parametrize("entry", ["cfg", "config"])
def test_crops_of_769_have_align_corners(entry, backbone, images, tmp_path):
    head = mm.v3plus_head()
    text = edited({"align_corners=False": "align_corners=True", "mode='whole'": "mode='slide'"})
    path = saved(tmp_path / "x.pth", backbone, head, {entry: text})
    grid = mm.v3_logits(head, mm.stages_of(backbone, prepared(images)), align_corners=True)
    expected = F.interpolate(grid, SIZE, mode="bilinear", align_corners=True)
    model = load_source_model(path)
    assert_logits(model(images), expected)
    assert model.card.align_corners
    first, second = model.load_report.notes
    assert first.startswith("read from the file's configuration (meta.cfg): ")
    assert "align_corners true" in first
    assert "sliding windows" in second
    again = load_model(save_model(tmp_path / "own.pt", model))
    assert torch.equal(again(images), model(images))
    # The card's rule is that of the head's own resizing, too.
    plain = saved(tmp_path / "y.pth", backbone, head, {})
    assert_logits(load_source_model(plain, card={"align_corners": True})(images), expected)
    unread = load_source_model(plain)
    assert (unread(images) - expected).abs().max() > 0.01 * expected.abs().max()
    assert "align_corners false" in unread.load_report.notes[0]
    assert "are assumed" in unread.load_report.notes[0]


@torch.no_grad()
@pytest.mark.parametrize("as_dict", [False, True])
def test_output_stride_16_with_a_multi_grid(as_dict, backbone, images, tmp_path):
    head = mm.v3plus_head()
    text = edited(D16)
    meta = {"cfg": parse_config(text) if as_dict else text}
    model = load_source_model(saved(tmp_path / "x.pth", backbone, head, meta))
    grid = mm.Grid((1, 2, 2, 1), (1, 1, 1, 2), True, (1, 2, 4))
    logits = mm.v3_logits(head, mm.stages_of(backbone, prepared(images), grid), (1, 6, 12, 18))
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    assert_logits(model(images), expected)
    assert "output stride 16" in model.load_report.notes[0]
    for path in (tmp_path / "student.pt", tmp_path / "half.pt"):
        save_model(path, model, half=path.name == "half.pt")
        again = load_model(path)
        assert again.network.options == model.network.options
        assert (again(images) - expected).abs().max() < 0.05 * expected.abs().max()
    fewer = load_source_model(tmp_path / "student.pt", classes=("car", "road"))
    assert_logits(fewer(images), expected[:, [13, 0]])
    content = torch.load(tmp_path / "student.pt", weights_only=True)
    assert content["format"] != "sfss_ray.model/2"  # which would be built at stride 8 elsewhere


@torch.no_grad()
def test_dilations_that_are_not_contracted_and_defaults_of_mmseg(backbone, images, tmp_path):
    """What a whole configuration leaves out is mmsegmentation's default, not that of d8 files."""
    head = mm.v3_head()
    text = edited(
        {
            "        dilations=(1, 1, 2, 4),\n        strides=(1, 2, 1, 1),\n": "",
            "contract_dilation=True": "with_cp=False",
            "DepthwiseSeparableASPPHead": "ASPPHead",
            "        dilations=(1, 12, 24, 36),\n": "",
            "        align_corners=False,\n": "",
        }
    )
    model = load_source_model(saved(tmp_path / "x.pth", backbone, head, {"cfg": text}))
    grid = mm.Grid((1, 2, 2, 2), (1, 1, 1, 1), False)
    logits = mm.v3_logits(head, mm.stages_of(backbone, prepared(images), grid), (1, 6, 12, 18))
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    assert_logits(model(images), expected)
    text = edited({"contract_dilation=True": "contract_dilation=False"})
    model = load_source_model(saved(tmp_path / "y.pth", backbone, mm.v3plus_head(), {"cfg": text}))
    grid = mm.Grid(contract=False)
    logits = mm.v3_logits(mm.v3plus_head(), mm.stages_of(backbone, prepared(images), grid))
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    assert_logits(model(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("generation", ["mmseg 0", "mmseg 1"])
def test_preprocessing_is_that_of_the_configuration(generation, backbone, images, tmp_path):
    head, mean, std = mm.v2_head(), (104.0, 117.0, 123.0), (1.0, 2.0, 3.0)
    replaced = {
        "mean=[123.675, 116.28, 103.53]": "mean=[104.0, 117.0, 123.0]",
        "std=[58.395, 57.12, 57.375]": "std=[1.0, 2.0, 3.0]",
        "bgr_to_rgb=True": "bgr_to_rgb=False",
        "DepthwiseSeparableASPPHead": "DLV2Head",
        "(1, 12, 24, 36)": "(6, 12, 18, 24)",
    }
    text = edited(replaced)
    if generation == "mmseg 0":
        text = text.replace("data_preprocessor", "unused")
        text += "img_norm_cfg = dict(mean=[104.0, 117.0, 123.0], std=[1.0, 2, 3.0], to_rgb=False)\n"
    model = load_source_model(saved(tmp_path / "x.pth", backbone, head, {"cfg": text}))
    stages = mm.stages_of(backbone, prepared(images, "bgr", mean, std))
    expected = F.interpolate(mm.v2_logits(head, stages), SIZE, mode="bilinear")
    assert_logits(model(images), expected)
    assert model.card.channel_order == "bgr"


@torch.no_grad()
def test_an_epsilon_of_batch_norm_in_the_configuration(backbone, images, tmp_path):
    """(x - mean) / sqrt(var + e) is the same with another var for PyTorch's epsilon."""
    head, epsilon = mm.v3plus_head(), 1e-1
    text = edited({"requires_grad=True": f"requires_grad=True, eps={epsilon}"})
    model = load_source_model(saved(tmp_path / "x.pth", backbone, head, {"cfg": text}))

    def shifted(state: State) -> State:
        more = epsilon - 1e-5
        return {k: v + more if k.endswith("running_var") else v for k, v in state.items()}

    stages = mm.stages_of(shifted(backbone), prepared(images))
    logits = mm.v3_logits(shifted(head), stages)
    assert_logits(model(images), F.interpolate(logits, SIZE, mode="bilinear"))


@torch.no_grad()
def test_dlv2red_of_daformer_has_two_branches(backbone, images, tmp_path):
    head = mm.v2_head(branches=2)
    expected = mm.v2_logits(head, mm.stages_of(backbone, prepared(images)), (6, 12))
    expected = F.interpolate(expected, SIZE, mode="bilinear")
    model = load_source_model(saved(tmp_path / "x.pth", backbone, head, {}))
    assert_logits(model(images), expected)
    assert "the head's dilations 6, 12" in model.load_report.notes[0]
    own = load_model(save_model(tmp_path / "own.pt", model))
    assert torch.equal(own(images), model(images))
    three = mm.v2_head(branches=3)
    with pytest.raises(CheckpointError, match="3 branches"):
        load_source_model(saved(tmp_path / "y.pth", backbone, three, {}))
    text = edited({"DepthwiseSeparableASPPHead": "DLV2Head", "(1, 12, 24, 36)": "(3, 7, 9)"})
    model = load_source_model(saved(tmp_path / "z.pth", backbone, three, {"cfg": text}))
    expected = mm.v2_logits(three, mm.stages_of(backbone, prepared(images)), (3, 7, 9))
    assert_logits(model(images), F.interpolate(expected, SIZE, mode="bilinear"))


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"'ResNetV1c'": "'ResNetV1d'"}, "backbone.type 'ResNetV1d': known is ResNet or ResNetV1c"),
        ({"num_classes=19": "num_classes=16"}, "decode_head.num_classes 16: known is 19"),
        ({"'DepthwiseSeparableASPPHead'": "'ASPPHead'"}, "decode_head.type 'ASPPHead': known is"),
        ({"strides=(1, 2, 1, 1)": "strides=(1, 2)"}, "backbone.strides [1, 2]: known is 4 numbers"),
        ({"dilations=(1, 1, 2, 4)": "dilations='d8'"}, "backbone.dilations 'd8'"),
        ({"(1, 12, 24, 36)": "(1, 12)"}, "5 branches|4 branches"),
        ({"mean=[123.675, 116.28, 103.53]": "mean=[1, 2, 3, 4]"}, "mean [1, 2, 3, 4]: known is"),
        ({"std=[58.395, 57.12, 57.375]": "std=[1, 0, 1]"}, "std [1, 0, 1]"),
        ({"style='pytorch'": "style='tf'"}, "backbone.style 'tf'"),
        ({"style='pytorch'": "plugins=[dict(cfg=1)]"}, "backbone.plugins"),
        ({"align_corners=False": "align_corners='yes'"}, "decode_head.align_corners 'yes'"),
        ({"auxiliary_head=None": "neck=dict(type='FPN')"}, "neck 'FPN'"),
    ],
)
def test_what_no_network_here_represents_is_one_line(replaced, said, backbone, tmp_path):
    path = saved(tmp_path / "x.pth", backbone, mm.v3plus_head(), {"cfg": edited(replaced)})
    with pytest.raises(CheckpointError) as refused:
        load_source_model(path)
    message = str(refused.value)
    assert "\n" not in message
    assert any(part in message for part in said.split("|"))


def test_the_text_is_never_run(tmp_path):
    mark = tmp_path / "ran"
    text = f"""
import pathlib
pathlib.Path({str(mark)!r}).touch()
touched = pathlib.Path({str(mark)!r}).touch()
base = dict(a=1, b=dict(c=2, d=[1, -2]))
model = dict(base, b=dict(e=open({str(mark)!r}, 'w'), f=3 * 2), **dict(g=None))
huge = 9 ** 9 ** 9
"""
    found = parse_config(text)
    assert not mark.exists()
    assert found == {
        "base": {"a": 1, "b": {"c": 2, "d": [1, -2]}},
        "model": {"a": 1, "b": {"f": 6}, "g": None},
    }
    growing = "a = [0, 0]\n" + "a = a + a\n" * 64 + "b = 9\n" + "b = b * b\n" * 64
    assert len(parse_config(growing).get("a", [])) <= 10**4
    for text in ("not python at all {", "(" * 10_000, "\x00"):
        assert parse_config(text) == {}


def test_texts_of_a_file_and_its_bases_are_merged():
    """mmcv's Config.text: each text after a line with its path, bases first."""
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


def test_a_configuration_that_cannot_be_read_is_said(backbone, tmp_path):
    path = saved(tmp_path / "x.pth", backbone, mm.v2_head(), {"cfg": "model = ("})
    (note,) = load_source_model(path).load_report.notes
    assert "the configuration (meta.cfg) cannot be read" in note
    assert "output stride 8" in note
    partly = {"cfg": "_base_ = ['d8.py']\nmodel = dict(decode_head=dict(align_corners=True))"}
    model = load_source_model(saved(path, backbone, mm.v2_head(), partly))
    read, assumed = model.load_report.notes
    assert "align_corners true" in read
    assert "leaves out these" in assumed
    assert "strides 1, 2, 1, 1" in assumed
    assert model.card.align_corners


@pytest.mark.parametrize("meta", [None, {}, {"cfg": "x = ("}, {"cfg": 3}, {"cfg": "a = 1"}])
def test_files_without_a_configuration_that_can_be_read(meta):
    assert config_of({"meta": meta}) is None
    assert config_of([]) is None
