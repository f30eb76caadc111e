"""DeepLab checkpoints of mmsegmentation and DAFormer on ResNets, loaded, compared number by number."""

from __future__ import annotations

import mmseg_resnet_states as mm
import pytest
import torch
from family_states import State
from torch.nn import functional as F

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel

NAME = "deeplabv3plus_mmseg_resnet50_v1c"
SIZE = (24, 328)  # 3 x 41 cells: every dilation of the heads, up to 36, reaches another cell


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def named(backbone: State, head: State, prefix: str = "") -> State:
    both = {f"{prefix}backbone.{k}": v for k, v in backbone.items()}
    return both | {f"{prefix}decode_head.{k}": v for k, v in head.items()}


def saved(path, content):
    torch.save(content, path)
    return path


def expected(backbone: State, head: State, logits, images: torch.Tensor) -> torch.Tensor:
    red, green, blue = (255 * images).unbind(1)
    planes = ((red - 123.675) / 58.395, (green - 116.28) / 57.12, (blue - 103.53) / 57.375)
    grid = logits(head, mm.stages_of(backbone, torch.stack(planes, 1)))
    return F.interpolate(grid, SIZE, mode="bilinear", align_corners=False)


CASES = {
    "deeplabv2_mmseg_resnet101_v1c": (101, True, mm.v2_head, mm.v2_logits),
    "deeplabv2_mmseg_resnet101": (101, False, mm.v2_head, mm.v2_logits),
    "deeplabv3_mmseg_resnet50_v1c": (50, True, mm.v3_head, mm.v3_logits),
    "deeplabv3plus_mmseg_resnet50_v1c": (50, True, mm.v3plus_head, mm.v3_logits),
    "deeplabv3plus_mmseg_resnet50": (50, False, mm.v3plus_head, mm.v3_logits),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_the_pattern(name, images, tmp_path):
    depth, deep_stem, make, logits = CASES[name]
    backbone, head = mm.backbone(depth, deep_stem), make()
    content = {"meta": {"CLASSES": CITYSCAPES_19.classes}, "state_dict": named(backbone, head)}
    content["state_dict"]["auxiliary_head.conv_seg.weight"] = torch.zeros(19, 256, 1, 1)
    model = load_source_model(saved(tmp_path / "x.pth", content))
    assert model.name == name
    assert model.classes == CITYSCAPES_19
    assert (model.card.channel_order, model.card.value_range) == ("rgb", 255)
    assert not model.card.align_corners
    assert model.load_report.unused == ("auxiliary_head.conv_seg.weight",)
    assert model.load_report.unexpected == ()
    assert "output stride 8" in model.load_report.notes[-1]
    reference = expected(backbone, head, logits, images)
    torch.testing.assert_close(model(images), reference, rtol=1e-4, atol=1e-4)
    assert reference.std() > 0.1


@torch.no_grad()
def test_daformers_file_holds_a_student_and_its_ema_copy(images, tmp_path):
    student, copy = mm.backbone(50, True, seed=4), mm.backbone(50, True, seed=5)
    state = named(student, mm.v2_head(), "model.") | named(copy, mm.v2_head(seed=8), "ema_model.")
    path = saved(tmp_path / "x.pth", {"meta": {}, "state_dict": state})
    ours = load_source_model(path)(images)
    reference = expected(student, mm.v2_head(), mm.v2_logits, images)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    ours = load_source_model(path, weights="ema")(images)
    reference = expected(copy, mm.v2_head(seed=8), mm.v2_logits, images)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fewer_classes_and_a_model_file_give_the_same_logits(images, tmp_path):
    state = named(mm.backbone(50, True), mm.v3plus_head())
    path = saved(tmp_path / "x.pth", {"state_dict": state})
    some = load_source_model(path, classes=("car", "road"))
    every = load_source_model(path)(images)
    torch.testing.assert_close(some(images), every[:, [13, 0]])
    save_model(tmp_path / "own.pt", some)
    assert torch.equal(load_model(tmp_path / "own.pt")(images), some(images))


@torch.no_grad()
def test_model_files_from_before_the_bottleneck_was_as_published_still_load(images, tmp_path):
    """DeepLabV3+ had a separable bottleneck then, and its files name no options."""
    torch.manual_seed(0)
    network = build_network(NAME, 19, {"separable_bottleneck": True}).eval()
    path = save_model(tmp_path / "new.pt", SourceModel(network, NAME, CITYSCAPES_19))
    content = torch.load(path, weights_only=True)
    assert content.pop("options") == {"separable_bottleneck": True}
    content["format"] = "sfss_ray.model/2"
    again = load_model(saved(tmp_path / "old.pt", content))
    assert torch.equal(again(images), network.logits(images))
    content |= {"format": "sfss_ray.model/3", "options": {"head_dilations": 3}}
    with pytest.raises(CheckpointError, match=r"the options \{'head_dilations': 3\} of network"):
        load_model(saved(tmp_path / "edited.pt", content))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("backbone.layer3.5.conv2.weight", "1 tensors missing, first .*layer3"),
        ("backbone.layer3.5.", "ResNet of 5 blocks in its third stage"),
        ("backbone.stem.", r"tensors missing, first .*backbone\.conv1\.weight"),
        ("decode_head.conv_seg.", r"its classifier decode_head\.conv_seg is missing"),
        ("decode_head.image_pool.", "decode head is not known"),
        ("decode_head.c1_bottleneck.", "6 tensors missing|5 tensors missing"),
    ],
)
def test_files_that_lack_a_tensor_are_refused(lost, said, tmp_path):
    state = named(mm.backbone(50, True), mm.v3plus_head())
    state = {key: value for key, value in state.items() if not key.startswith(lost)}
    with pytest.raises(CheckpointError, match=said):
        load_source_model(saved(tmp_path / "x.pth", state))


def test_other_resnets_and_heads_are_refused_by_name(tmp_path):
    backbone = mm.backbone(50, True)
    averaging = {k.replace("downsample.1.", "downsample.2."): v for k, v in backbone.items()}
    averaging = {k.replace("downsample.0.", "downsample.1."): v for k, v in averaging.items()}
    path = tmp_path / "x.pth"
    with pytest.raises(CheckpointError, match=r"on a ResNet-D.*wrap_model"):
        load_source_model(saved(path, named(averaging, mm.v2_head())))
    basic = {k: v for k, v in backbone.items() if ".conv3." not in k and ".bn3." not in k}
    with pytest.raises(CheckpointError, match=r"ResNet of basic blocks"):
        load_source_model(saved(path, named(basic, mm.v2_head())))
    pyramid = {"psp_modules.0.1.conv.weight": torch.zeros(512, 2048, 1, 1)}
    with pytest.raises(CheckpointError, match=r"on a ResNet; decode_head holds psp_modules"):
        load_source_model(saved(path, named(backbone, pyramid)))
