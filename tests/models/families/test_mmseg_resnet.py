"""Tests of recognising DeepLabs on ResNets of mmsegmentation and DAFormer, against computed logits."""

from __future__ import annotations

import mmseg_resnet_states as mm
import pytest
import torch
from checkpoint_files import random_images, refusal, write
from family_states import State, to_mmseg
from mit_states import whole_network
from torch.nn import functional as F

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.mmseg_config import parse_config

SIZE = (24, 328)  # 3 x 41 cells: every dilation of the heads, up to 36, reaches another cell
LONG_SIZE = (33, 401)  # 26 cells at stride 16
D16 = {
    "strides=(1, 2, 1, 1)": "strides=(1, 2, 2, 1)",
    "dilations=(1, 1, 2, 4)": "dilations=(1, 1, 1, 2)",
    "contract_dilation=True": "contract_dilation=True, multi_grid=(1, 2, 4)",
    "(1, 12, 24, 36)": "(1, 6, 12, 18)",
}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE)


@pytest.fixture(scope="module")
def long_images() -> torch.Tensor:
    return random_images(LONG_SIZE)


@pytest.fixture(scope="module")
def backbone() -> State:
    return mm.backbone(50, True)


def expected_logits(backbone: State, head: State, logits_of, images: torch.Tensor) -> torch.Tensor:
    grid = logits_of(head, mm.stages_of(backbone, to_mmseg(images)))
    return F.interpolate(grid, SIZE, mode="bilinear", align_corners=False)


def assert_logits(actual: torch.Tensor, grid_logits: torch.Tensor) -> None:
    expected = F.interpolate(grid_logits, LONG_SIZE, mode="bilinear", align_corners=False)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (actual.argmax(1) == expected.argmax(1)).all()


CASES = {
    "deeplabv2_mmseg_resnet101_v1c": (101, True, mm.v2_head, mm.v2_logits),
    "deeplabv2_mmseg_resnet101": (101, False, mm.v2_head, mm.v2_logits),
    "deeplabv3_mmseg_resnet50_v1c": (50, True, mm.v3_head, mm.v3_logits),
    "deeplabv3plus_mmseg_resnet50_v1c": (50, True, mm.v3plus_head, mm.v3_logits),
    "deeplabv3plus_mmseg_resnet50": (50, False, mm.v3plus_head, mm.v3_logits),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_the_published_definition(name, images, tmp_path):
    depth, deep_stem, make_head, logits_of = CASES[name]
    backbone, head = mm.backbone(depth, deep_stem), make_head()
    state = whole_network(backbone, head)
    state["auxiliary_head.conv_seg.weight"] = torch.zeros(19, 256, 1, 1)
    content = {"meta": {"CLASSES": CITYSCAPES_19.classes}, "state_dict": state}
    model = load_source_model(write(tmp_path / "x.pth", content))
    assert model.name == name
    assert model.classes == CITYSCAPES_19
    assert (model.card.channel_order, model.card.value_range) == ("rgb", 255)
    assert not model.card.align_corners
    assert model.load_report.unused == ("auxiliary_head.conv_seg.weight",)
    assert model.load_report.unexpected == ()
    assert "output stride 8" in model.load_report.notes[-1]
    expected = expected_logits(backbone, head, logits_of, images)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


@torch.no_grad()
def test_a_file_of_daformer_holds_a_student_and_its_ema_copy(images, tmp_path):
    student, copy = mm.backbone(50, True, seed=4), mm.backbone(50, True, seed=5)
    student_head, copy_head = mm.v2_head(), mm.v2_head(seed=8)
    state = whole_network(student, student_head, "model.")
    state |= whole_network(copy, copy_head, "ema_model.")
    path = write(tmp_path / "x.pth", {"meta": {}, "state_dict": state})
    expected = expected_logits(student, student_head, mm.v2_logits, images)
    torch.testing.assert_close(load_source_model(path)(images), expected, rtol=1e-4, atol=1e-4)
    expected = expected_logits(copy, copy_head, mm.v2_logits, images)
    model = load_source_model(path, weights="ema")
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fewer_classes_and_a_model_file_give_the_same_logits(backbone, images, tmp_path):
    state = whole_network(backbone, mm.v3plus_head())
    path = write(tmp_path / "x.pth", {"state_dict": state})
    reduced = load_source_model(path, classes=("car", "road"))
    logits = load_source_model(path)(images)
    torch.testing.assert_close(reduced(images), logits[:, [13, 0]])
    save_model(tmp_path / "own.pt", reduced)
    assert torch.equal(load_model(tmp_path / "own.pt")(images), reduced(images))


@torch.no_grad()
@pytest.mark.parametrize("as_dict", [False, True])
def test_output_stride_16_with_a_multi_grid(as_dict, backbone, long_images, tmp_path):
    images, head = long_images, mm.v3plus_head()
    text = mm.edit_config(D16)
    meta = {"cfg": parse_config(text) if as_dict else text}
    model = load_source_model(mm.save_deeplab(tmp_path / "x.pth", backbone, head, meta))
    grid = mm.Grid((1, 2, 2, 1), (1, 1, 1, 2), True, (1, 2, 4))
    stages = mm.stages_of(backbone, to_mmseg(images), grid)
    logits = mm.v3_logits(head, stages, (1, 6, 12, 18))
    assert_logits(model(images), logits)
    assert "output stride 16" in model.load_report.notes[0]
    expected = F.interpolate(logits, LONG_SIZE, mode="bilinear", align_corners=False)
    for path in (tmp_path / "student.pt", tmp_path / "half.pt"):
        save_model(path, model, half=path.name == "half.pt")
        again = load_model(path)
        assert again.network.options == model.network.options
        assert (again(images) - expected).abs().max() < 0.05 * expected.abs().max()
    reduced = load_source_model(tmp_path / "student.pt", classes=("car", "road"))
    assert_logits(reduced(images), logits[:, [13, 0]])
    # Versions of this package without options would build it at stride 8.
    content = torch.load(tmp_path / "student.pt", weights_only=True)
    assert content["format"] != "sfss_ray.model/2"


@torch.no_grad()
def test_settings_left_out_have_mmsegmentations_defaults(backbone, long_images, tmp_path):
    """A complete configuration without strides and dilations is not one of output stride 8."""
    head = mm.v3_head()
    text = mm.edit_config(
        {
            "        dilations=(1, 1, 2, 4),\n        strides=(1, 2, 1, 1),\n": "",
            "contract_dilation=True": "with_cp=False",
            "DepthwiseSeparableASPPHead": "ASPPHead",
            "        dilations=(1, 12, 24, 36),\n": "",
            "        align_corners=False,\n": "",
        }
    )
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, head, {"cfg": text})
    grid = mm.Grid((1, 2, 2, 2), (1, 1, 1, 1), False)
    stages = mm.stages_of(backbone, to_mmseg(long_images), grid)
    logits = mm.v3_logits(head, stages, (1, 6, 12, 18))
    assert_logits(load_source_model(path)(long_images), logits)


@torch.no_grad()
def test_dilations_that_are_not_contracted(backbone, long_images, tmp_path):
    head = mm.v3plus_head()
    text = mm.edit_config({"contract_dilation=True": "contract_dilation=False"})
    path = mm.save_deeplab(tmp_path / "y.pth", backbone, head, {"cfg": text})
    stages = mm.stages_of(backbone, to_mmseg(long_images), mm.Grid(contract=False))
    assert_logits(load_source_model(path)(long_images), mm.v3_logits(head, stages))


@torch.no_grad()
def test_dlv2red_of_daformer_has_two_branches(backbone, long_images, tmp_path):
    images, head = long_images, mm.v2_head(branches=2)
    stages = mm.stages_of(backbone, to_mmseg(images))
    model = load_source_model(mm.save_deeplab(tmp_path / "x.pth", backbone, head, {}))
    assert_logits(model(images), mm.v2_logits(head, stages, (6, 12)))
    assert "the head's dilations 6, 12" in model.load_report.notes[0]
    again = load_model(save_model(tmp_path / "own.pt", model))
    assert torch.equal(again(images), model(images))


@torch.no_grad()
def test_three_branches_need_a_configuration(backbone, long_images, tmp_path):
    head = mm.v2_head(branches=3)
    path = mm.save_deeplab(tmp_path / "x.pth", backbone, head, {})
    assert "3 branches (aspp_modules), but only 4 dilations are known" in refusal(path)
    text = mm.edit_config(
        {"DepthwiseSeparableASPPHead": "DLV2Head", "(1, 12, 24, 36)": "(3, 7, 9)"}
    )
    model = load_source_model(mm.save_deeplab(path, backbone, head, {"cfg": text}))
    stages = mm.stages_of(backbone, to_mmseg(long_images))
    assert_logits(model(long_images), mm.v2_logits(head, stages, (3, 7, 9)))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("backbone.layer3.5.conv2.weight", "1 tensors missing, first .*layer3"),
        ("backbone.layer3.5.", "ResNet of 5 blocks in its third stage"),
        ("backbone.stem.", r"tensors missing, first .*backbone\.conv1\.weight"),
        ("decode_head.conv_seg.", r"its classifier decode_head\.conv_seg is missing"),
        ("decode_head.image_pool.", "decode head is not supported"),
        ("decode_head.c1_bottleneck.", "5 tensors missing"),
    ],
)
def test_files_that_lack_a_tensor_are_refused(removed, message, backbone, tmp_path):
    state = whole_network(backbone, mm.v3plus_head())
    state = {key: tensor for key, tensor in state.items() if not key.startswith(removed)}
    with pytest.raises(CheckpointError, match=message):
        load_source_model(write(tmp_path / "x.pth", state))


def test_other_resnets_and_heads_are_refused_by_name(backbone, tmp_path):
    averaging = {k.replace("downsample.1.", "downsample.2."): v for k, v in backbone.items()}
    averaging = {k.replace("downsample.0.", "downsample.1."): v for k, v in averaging.items()}
    basic = {k: v for k, v in backbone.items() if ".conv3." not in k and ".bn3." not in k}
    grouped = backbone | {"layer1.0.conv2.weight": torch.zeros(64, 2, 3, 3)}
    pyramid = {"psp_modules.0.1.conv.weight": torch.zeros(512, 2048, 1, 1)}
    for message, state in {
        r"on a ResNet-D.*wrap_model": whole_network(averaging, mm.v2_head()),
        r"ResNet of basic blocks": whole_network(basic, mm.v2_head()),
        r"on a ResNeXt": whole_network(grouped, mm.v2_head()),
        r"on a ResNet; decode_head holds psp_modules": whole_network(backbone, pyramid),
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_source_model(write(tmp_path / "x.pth", state))
