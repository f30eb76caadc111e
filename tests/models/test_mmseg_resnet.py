"""mmsegmentation's ResNets with DeepLabV2's and V3's heads: from key patterns, number by number."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from family_states import WIDTHS, State, convolution, normalisation
from torch import Tensor
from torch.nn import functional as F

from sfss_ray import load_source_model
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError

SIZE = (41, 58)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
V2_RATES, V3_RATES = (6, 12, 18, 24), (1, 12, 24, 36)
META = {"CLASSES": list(CITYSCAPES_19.classes), "PALETTE": [[0, 0, 0]] * 19}


@pytest.fixture(autouse=True)
def no_large_files_left(tmp_path: Path):
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def conv_bn(g, name: str, outputs: int, inputs: int, kernel: int) -> State:
    weight = {f"{name}.conv.weight": convolution(g, outputs, inputs, kernel)}
    return weight | normalisation(g, f"{name}.bn", outputs)


def backbone(depth: int, deep: bool) -> State:
    g = torch.Generator().manual_seed(depth)
    state: State = {}
    if deep:
        for place, (outputs, inputs) in zip((0, 3, 6), ((32, 3), (32, 32), (64, 32)), strict=True):
            state[f"stem.{place}.weight"] = convolution(g, outputs, inputs, 3)
            state |= normalisation(g, f"stem.{place + 1}", outputs)
    else:
        state["conv1.weight"] = convolution(g, 64, 3, 7)
        state |= normalisation(g, "bn1", 64)
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        width = WIDTHS[stage]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
            for i, (outputs, ins, kernel) in enumerate(shapes, start=1):
                state[f"{name}.conv{i}.weight"] = convolution(g, outputs, ins, kernel)
                state |= normalisation(g, f"{name}.bn{i}", outputs, gain=0.3 if i == 3 else 1.0)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = convolution(g, 4 * width, inputs, 1)
                state |= normalisation(g, f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return state


def v2_head(classes: int = 19) -> State:
    g = torch.Generator().manual_seed(1)
    state = {}
    for i in range(4):
        state[f"aspp_modules.{i}.conv.weight"] = convolution(g, classes, 2048, 3)
        state[f"aspp_modules.{i}.conv.bias"] = torch.randn(classes, generator=g)
    return state


def v3_head(classes: int = 19) -> State:
    g = torch.Generator().manual_seed(2)
    state = conv_bn(g, "image_pool.1", 512, 2048, 1)
    for i, rate in enumerate(V3_RATES):
        state |= conv_bn(g, f"aspp_modules.{i}", 512, 2048, 1 if rate == 1 else 3)
    state |= conv_bn(g, "bottleneck", 512, 5 * 512, 3)
    state["conv_seg.weight"] = convolution(g, classes, 512, 1)
    return state | {"conv_seg.bias": torch.randn(classes, generator=g)}


def norm(state: State, name: str, x: Tensor) -> Tensor:
    scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
    shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
    return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


def features(state: State, depth: int, deep: bool, x: Tensor) -> Tensor:
    if deep:
        for place, stride in ((0, 2), (3, 1), (6, 1)):
            x = F.conv2d(x, state[f"stem.{place}.weight"], stride=stride, padding=1)
            x = torch.relu(norm(state, f"stem.{place + 1}", x))
    else:
        x = torch.relu(norm(state, "bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage == 2 and block == 0 else 1
            # dilations 1, 1, 2, 4; the first block of a dilated stage has half of it
            rate = {1: 1, 2: 1, 3: 2, 4: 4}[stage]
            rate = rate // 2 if block == 0 and rate > 1 else rate
            y = torch.relu(norm(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])))
            weight = state[f"{name}.conv2.weight"]
            y = F.conv2d(y, weight, stride=stride, padding=rate, dilation=rate)
            y = torch.relu(norm(state, f"{name}.bn2", y))
            y = norm(state, f"{name}.bn3", F.conv2d(y, state[f"{name}.conv3.weight"]))
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(state, f"{name}.downsample.1", x)
            x = torch.relu(x + y)
    return x


def v2_logits(head: State, x: Tensor) -> Tensor:
    parts = [
        F.conv2d(
            x,
            head[f"aspp_modules.{i}.conv.weight"],
            head[f"aspp_modules.{i}.conv.bias"],
            padding=rate,
            dilation=rate,
        )
        for i, rate in enumerate(V2_RATES)
    ]
    return torch.stack(parts).sum(0)


def v3_logits(head: State, x: Tensor) -> Tensor:
    def layer(name: str, x: Tensor, rate: int = 0) -> Tensor:
        y = F.conv2d(x, head[f"{name}.conv.weight"], padding=rate, dilation=max(rate, 1))
        return torch.relu(norm(head, f"{name}.bn", y))

    pooled = layer("image_pool.1", x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
    parts = [layer("aspp_modules.0", x)]
    parts += [layer(f"aspp_modules.{i}", x, V3_RATES[i]) for i in (1, 2, 3)]
    mixed = layer("bottleneck", torch.cat([pooled, *parts], 1), 1)
    return F.conv2d(mixed, head["conv_seg.weight"], head["conv_seg.bias"])


def prepared(images: Tensor) -> Tensor:
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (255 * images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def saved(path: Path, body: State, head: State, start: str = "", **more) -> Path:
    state = {f"{start}backbone.{k}": v for k, v in body.items()}
    state |= {f"{start}decode_head.{k}": v for k, v in head.items()}
    torch.save({"meta": META, "state_dict": state | more}, path)
    return path


@pytest.mark.parametrize(
    ("version", "depth", "deep", "start"),
    [(2, 101, True, "model."), (2, 50, False, ""), (3, 50, True, ""), (3, 101, False, "")],
)
@torch.no_grad()
def test_logits_are_those_of_the_pattern(version, depth, deep, start, images, tmp_path):
    body, head = backbone(depth, deep), v2_head() if version == 2 else v3_head()
    auxiliary = {f"{start}auxiliary_head.conv_seg.weight": torch.zeros(19, 256, 1, 1)}
    model = load_source_model(saved(tmp_path / "x.pth", body, head, start, **auxiliary))
    grid = features(body, depth, deep, prepared(images))
    logits = v2_logits(head, grid) if version == 2 else v3_logits(head, grid)
    expected = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    scale = expected.abs().max().item()
    assert 0.1 < scale < 1e4
    assert (model(images) - expected).abs().max().item() < 2e-4 * scale
    assert model.name == f"deeplabv{version}_mmseg_resnet{depth}{'_v1c' if deep else ''}"
    assert model.classes.classes == CITYSCAPES_19.classes
    assert model.load_report.missing == model.load_report.unexpected == ()
    assert len(model.load_report.unused) == 1
    assert model.card.value_range == 255
    assert not model.card.align_corners


@torch.no_grad()
def test_the_ema_copy_is_taken_when_asked_for(images, tmp_path):
    student, copy = backbone(50, True), backbone(50, True)
    copy = {name: 1.1 * value for name, value in copy.items()}
    copies = {f"ema_model.backbone.{k}": v for k, v in copy.items()}
    copies |= {f"ema_model.decode_head.{k}": v for k, v in v2_head().items()}
    path = saved(tmp_path / "x.pth", student, v2_head(), "model.", **copies)
    one, other = load_source_model(path), load_source_model(path, weights="ema")
    assert not torch.allclose(one(images), other(images))
    expected = v2_logits(v2_head(), features(copy, 50, True, prepared(images)))
    expected = F.interpolate(expected, SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(other(images), expected, rtol=1e-3, atol=1e-3)


def test_missing_parts_and_other_heads_are_refused(tmp_path):
    body, head = backbone(50, True), v3_head()
    del head["conv_seg.weight"], head["conv_seg.bias"]
    with pytest.raises(CheckpointError, match=r"decode_head\.conv_seg is missing"):
        load_source_model(saved(tmp_path / "a.pth", body, head))
    short = {k: v for k, v in body.items() if k != "layer2.1.conv2.weight"}
    with pytest.raises(CheckpointError, match=r"layer2\.1\.conv2\.weight"):
        load_source_model(saved(tmp_path / "b.pth", short, v2_head()))
    other = {"psp_modules.0.1.conv.weight": torch.zeros(512, 2048, 1, 1)}
    with pytest.raises(CheckpointError, match="known decode heads are"):
        load_source_model(saved(tmp_path / "c.pth", body, other))
    few = {k: v for k, v in body.items() if not k.startswith(("layer3.4.", "layer3.5."))}
    with pytest.raises(CheckpointError, match="4 blocks in stage 3"):
        load_source_model(saved(tmp_path / "d.pth", few, v2_head()))
