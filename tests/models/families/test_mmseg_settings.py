"""Tests of the settings that an mmsegmentation checkpoint's configuration decides."""

from __future__ import annotations

import mmseg_resnet_states as mm
import pytest
import torch
from checkpoint_files import random_images, refusal
from family_states import State
from torch.nn import functional as F

from sfss_ray import Card, load_model, load_source_model, save_model
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.mmseg_settings import (
    MMSEG_MEAN,
    MMSEG_STD,
    format_setting,
    read_settings,
    unsupported_setting,
)

SIZE = (33, 401)  # 51 cells at stride 8: the head's dilations reach other cells


@pytest.fixture(scope="module")
def backbone() -> State:
    return mm.backbone(50, True)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE)


def prepare(images: torch.Tensor, order="rgb", mean=MMSEG_MEAN, std=MMSEG_STD) -> torch.Tensor:
    planes = dict(zip("rgb", (255 * images).unbind(1), strict=True))
    return torch.stack([(planes[c] - mean[i]) / std[i] for i, c in enumerate(order)], 1)


def assert_logits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (actual.argmax(1) == expected.argmax(1)).all()


@torch.no_grad()
@pytest.mark.parametrize("entry", ["cfg", "config"])
def test_models_of_769_crops_have_align_corners(entry, backbone, images, tmp_path):
    head = mm.v3plus_head()
    text = mm.edit_config(
        {"align_corners=False": "align_corners=True", "mode='whole'": "mode='slide'"}
    )
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, head, {entry: text})
    grid = mm.v3_logits(head, mm.stages_of(backbone, prepare(images)), align_corners=True)
    expected = F.interpolate(grid, SIZE, mode="bilinear", align_corners=True)
    model = load_source_model(path)
    assert_logits(model(images), expected)
    assert model.card.align_corners
    settings_note, windows_note = model.load_report.notes
    assert settings_note.startswith("read from the file's configuration (meta.cfg): ")
    assert "align_corners true" in settings_note
    assert "sliding windows" in windows_note
    again = load_model(save_model(tmp_path / "own.pt", model))
    assert torch.equal(again(images), model(images))


@torch.no_grad()
def test_the_corner_rule_of_a_given_card_is_that_of_the_head_too(backbone, images, tmp_path):
    head = mm.v3plus_head()
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, head, {})
    grid = mm.v3_logits(head, mm.stages_of(backbone, prepare(images)), align_corners=True)
    expected = F.interpolate(grid, SIZE, mode="bilinear", align_corners=True)
    assert_logits(load_source_model(path, card={"align_corners": True})(images), expected)
    assumed = load_source_model(path)
    assert (assumed(images) - expected).abs().max() > 0.01 * expected.abs().max()
    assert "align_corners false" in assumed.load_report.notes[0]
    assert "are assumed" in assumed.load_report.notes[0]


@torch.no_grad()
@pytest.mark.parametrize("generation", ["mmseg 0", "mmseg 1"])
def test_preprocessing_is_that_of_the_configuration(generation, backbone, images, tmp_path):
    head, mean, std = mm.v2_head(), (104.0, 117.0, 123.0), (1.0, 2.0, 3.0)
    text = mm.edit_config(
        {
            "mean=[123.675, 116.28, 103.53]": "mean=[104.0, 117.0, 123.0]",
            "std=[58.395, 57.12, 57.375]": "std=[1.0, 2.0, 3.0]",
            "bgr_to_rgb=True": "bgr_to_rgb=False",
            "DepthwiseSeparableASPPHead": "DLV2Head",
            "(1, 12, 24, 36)": "(6, 12, 18, 24)",
        }
    )
    if generation == "mmseg 0":
        text = text.replace("data_preprocessor", "unused")
        text += "img_norm_cfg = dict(mean=[104.0, 117.0, 123.0], std=[1.0, 2, 3.0], to_rgb=False)\n"
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, head, {"cfg": text})
    model = load_source_model(path)
    stages = mm.stages_of(backbone, prepare(images, "bgr", mean, std))
    expected = F.interpolate(mm.v2_logits(head, stages), SIZE, mode="bilinear")
    assert_logits(model(images), expected)
    assert model.card.channel_order == "bgr"


def test_the_normalize_step_of_a_pipeline_is_found():
    text = """
model = dict(backbone=dict(type='ResNetV1c'))
step = dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True)
data = dict(test=dict(pipeline=[dict(type='Load'), dict(type='Flip', transforms=[step])]))
"""
    settings = read_settings({"meta": {"cfg": text}}, "deeplabv3", 19)
    assert settings.card() == Card((1, 2, 3), (4, 5, 6), "rgb", 255)


@torch.no_grad()
def test_an_epsilon_of_batch_norm_in_the_configuration(backbone, images, tmp_path):
    """(x - mean) / sqrt(var + e) equals ordinary BatchNorm with a variance of var + e - 1e-5."""
    head, epsilon = mm.v3plus_head(), 1e-1
    text = mm.edit_config({"requires_grad=True": f"requires_grad=True, eps={epsilon}"})
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, head, {"cfg": text})
    model = load_source_model(path)

    def shifted(state: State) -> State:
        shift = epsilon - 1e-5
        return {k: v + shift if k.endswith("running_var") else v for k, v in state.items()}

    stages = mm.stages_of(shifted(backbone), prepare(images))
    logits = mm.v3_logits(shifted(head), stages)
    assert_logits(model(images), F.interpolate(logits, SIZE, mode="bilinear"))


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        (
            {"'ResNetV1c'": "'ResNetV1d'"},
            "backbone.type 'ResNetV1d': supported is ResNet or ResNetV1c",
        ),
        ({"num_classes=19": "num_classes=16"}, "decode_head.num_classes 16: supported is 19"),
        (
            {"'DepthwiseSeparableASPPHead'": "'ASPPHead'"},
            "decode_head.type 'ASPPHead': supported is",
        ),
        (
            {"strides=(1, 2, 1, 1)": "strides=(1, 2)"},
            "backbone.strides [1, 2]: supported is 4 integers",
        ),
        ({"dilations=(1, 1, 2, 4)": "dilations='d8'"}, "backbone.dilations 'd8'"),
        ({"(1, 12, 24, 36)": "(1, 12)"}, "4 branches"),
        (
            {"mean=[123.675, 116.28, 103.53]": "mean=[1, 2, 3, 4]"},
            "mean [1, 2, 3, 4]: supported is",
        ),
        ({"std=[58.395, 57.12, 57.375]": "std=[1, 0, 1]"}, "std [1, 0, 1]"),
        ({"style='pytorch'": "style='tf'"}, "backbone.style 'tf'"),
        ({"style='pytorch'": "plugins=[dict(cfg=1)]"}, "backbone.plugins"),
        ({"align_corners=False": "align_corners='yes'"}, "decode_head.align_corners 'yes'"),
        ({"auxiliary_head=None": "neck=dict(type='FPN')"}, "neck 'FPN'"),
    ],
)
def test_unsupported_settings_are_refused_in_one_line(replacements, message, backbone, tmp_path):
    meta = {"cfg": mm.edit_config(replacements)}
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, mm.v3plus_head(), meta)
    assert message in refusal(path)


def test_an_unreadable_or_incomplete_configuration_is_noted(backbone, tmp_path):
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, mm.v2_head(), {"cfg": "model = ("})
    (note,) = load_source_model(path).load_report.notes
    assert "the configuration (meta.cfg) cannot be read" in note
    assert "output stride 8" in note
    meta = {"cfg": "_base_ = ['d8.py']\nmodel = dict(decode_head=dict(align_corners=True))"}
    model = load_source_model(mm.save_deeplab(path, backbone, mm.v2_head(), meta))
    read, assumed = model.load_report.notes
    assert "align_corners true" in read
    assert "is incomplete" in assumed
    assert "strides 1, 2, 1, 1" in assumed
    assert model.card.align_corners


def test_without_a_configuration_mmsegmentations_preprocessing_is_assumed():
    settings = read_settings({"meta": {}}, "deeplabv3", 19)
    assert settings.card(("a", "b")) == Card(MMSEG_MEAN, MMSEG_STD, "rgb", 255, False, ("a", "b"))
    (note,) = settings.notes()
    assert note.startswith("the configuration (meta.cfg) is not in the file, so these settings are")
    assert settings.integers("strides", ("backbone", "strides"), ((9,), (1, 2))) == [1, 2]


def test_a_complete_configuration_leaves_defaults_out():
    meta = {"cfg": {"model": {"backbone": {"type": "ResNet", "norm_cfg": {"eps": 0.5}}}}}
    settings = read_settings({"meta": meta}, "deeplabv3", 19)
    assert settings.is_complete
    assert settings.integers("strides", ("backbone", "strides"), ((9,), (1, 2))) == [9]
    assert settings.epsilon("backbone") == 0.5
    assert settings.epsilon("decode_head") == 1e-5
    settings.config["model"]["backbone"]["norm_cfg"]["eps"] = -1
    with pytest.raises(CheckpointError, match=r"backbone\.norm_cfg\.eps -1: supported is a number"):
        settings.epsilon("backbone")


def test_long_settings_are_shortened_in_errors():
    assert "1111..." in str(unsupported_setting("x", "1" * 99, "y"))
    assert format_setting([True, (1, 2)]) == "true, 1, 2"
