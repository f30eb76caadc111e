"""Tests of DAFormer's decode heads, against logits written from its code."""

from __future__ import annotations

from pathlib import Path

import daformer_states as da
import mit_states as mit
import pytest
import torch
from checkpoint_files import random_images, write
from family_states import to_mmseg
from mit_states import State, whole_network

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.models.architectures.daformer_head import Context, DAFormerHead, InterlacedAttention

SIZE = (72, 104)  # 18 x 26 cells, no multiple of ISA's patch


@pytest.fixture(scope="module")
def plain() -> State:
    return mit.plain_encoder()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE, count=2)


def save(path: Path, plain: State, head: State) -> Path:
    state = whole_network(mit.original_backbone(plain), head, "model.")
    return write(path, {"meta": {}, "state_dict": state})


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
def test_logits_are_those_of_the_original_code(name, plain, images, tmp_path):
    head, logits_of = CASES[name]
    model = load_source_model(save(tmp_path / "x.pth", plain, head))
    stages = mit.encode(plain, to_mmseg(images), 1e-5, 1e-6)
    expected = mit.upsample(logits_of(head, stages), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()
    assert model.load_report.missing == model.load_report.unexpected == ()
    again = load_model(save_model(tmp_path / "own.pt", model))
    assert torch.equal(again(images), model(images))
    reduced = load_source_model(tmp_path / "own.pt", classes=("car", "road"))
    torch.testing.assert_close(reduced(images), expected[:, [13, 0]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sep", [False, True])
def test_hrda_with_other_fusions(sep, plain, images, tmp_path, monkeypatch):
    """The attention keeps its 1x1 convolution if the head has context."""
    head = {k: v for k, v in mit.hrda_head().items() if not k.startswith("head.")}
    head |= {f"head.{key}": tensor for key, tensor in da.aspp_head(sep).items()}
    model = load_source_model(save(tmp_path / "x.pth", plain, head))
    assert model.name == "hrda_b0"
    assert model.network.options == ({} if sep else {"fusion": {"type": "aspp", "sep": False}})
    monkeypatch.setattr(mit, "daformer_logits", da.aspp_logits)
    expected = mit.upsample(mit.hrda_logits(head, plain, to_mmseg(images)), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (5, 11), (1, 1)])
def test_interlaced_attention_keeps_the_size_of_the_map(size):
    layer = InterlacedAttention(4, 6, down_factor=(4, 4)).eval()
    output = layer(torch.randn(2, 4, *size))
    assert output.shape == (2, 6, *size)
    assert output.isfinite().all()


@torch.no_grad()
def test_the_mean_of_the_image_is_the_first_branch():
    layer = Context(4, 6, sep=False, dilations=(1,), pool=True).eval()
    assert layer.bottleneck.conv.in_channels == 12
    x = torch.randn(1, 4, 5, 5)
    mean = layer.image_pool(x).expand(-1, -1, 5, 5)
    expected = layer.bottleneck(torch.cat([mean, layer.aspp_modules[0](x)], 1))
    torch.testing.assert_close(layer(x), expected)


def test_unknown_layers_and_arguments_raise():
    widths = (4, 4, 4, 4)
    with pytest.raises(KeyError, match="unknown"):
        DAFormerHead(widths, 8, {"type": "unknown"})
    with pytest.raises(TypeError, match="kernel"):
        DAFormerHead(widths, 8, {"type": "conv", "kernel": 3})
