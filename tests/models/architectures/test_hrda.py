"""Tests of HRDA: context of the image at half size, fused with the detail of crops."""

from __future__ import annotations

import mit_states as mit
import pytest
import torch
from checkpoint_files import random_images, write
from family_states import to_mmseg
from mit_states import State, whole_network
from torch import Tensor, nn

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray import load_source_model
from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.architectures.hrda import CROP, MIN_SIZE, HRDABody, HRDASegmenter


@pytest.fixture(scope="module")
def plain() -> State:
    return mit.plain_encoder()


@pytest.mark.parametrize("size", [(64, 96), (64, 560)])
def test_context_is_fused_with_the_detail_of_crops(size, plain, tmp_path):
    head = mit.hrda_head()
    state = whole_network(mit.original_backbone(plain), head, "model.")
    model = load_source_model(write(tmp_path / "x.pth", {"state_dict": state}))
    assert model.name == "hrda_b0"
    assert model.load_report.missing == model.load_report.unexpected == ()
    images = random_images(size, seed=3)
    with torch.no_grad():
        expected = mit.upsample(mit.hrda_logits(head, plain, to_mmseg(images)), size)
        logits = model(images)
    assert (logits - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
def test_images_of_any_size_are_accepted():
    network = build_network("hrda_b0", 3).eval()
    for size in ((70, 61), (66, 525)):
        logits = network.logits(torch.rand(1, 3, *size))
        assert logits.shape == (1, 3, *size)
        assert logits.isfinite().all()


def test_images_that_are_too_small_are_refused():
    network = build_network("hrda_b0", 3).eval()
    assert network.logits(torch.rand(1, 3, MIN_SIZE, MIN_SIZE)).shape == (1, 3, 58, 58)
    with pytest.raises(ConfigError, match="57x64, too small for HRDA: allowed are heights and"):
        network.logits(torch.rand(1, 3, 57, 64))


class _Encoder(nn.Module):
    """A single stage of mean colours at stride 4, which records the sizes of its inputs."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.AvgPool2d(4)])
        self.sizes: list[tuple[int, ...]] = []
        self.stages[0].register_forward_pre_hook(
            lambda _layer, inputs: self.sizes.append(tuple(inputs[0].shape))
        )


class _FirstStage(nn.Module):
    def forward(self, stages: list[Tensor]) -> Tensor:
        return stages[0]


@torch.no_grad()
def test_large_images_are_cut_into_overlapping_crops_of_one_batch():
    encoder = _Encoder()
    body = HRDABody(encoder, _FirstStage(), _FirstStage())
    images = torch.rand(2, 3, 600, 1030)
    detail, context, attention = body(images)
    # Starts are 0 and 88 for the height; 0, 256, 512 and 520 for the padded width of 1032.
    assert encoder.sizes[-1] == (2 * 2 * 4, 3, CROP, CROP)
    assert context.shape == attention.shape == (2, 3, 75, 128)
    # Crops on the grid of cells leave the mean colours of cells unchanged.
    expected = nn.functional.avg_pool2d(images[..., :1028], 4)
    torch.testing.assert_close(detail[..., :257], expected)


@torch.no_grad()
def test_the_attention_weighs_detail_against_context():
    def constant(value: float) -> nn.Module:
        layer = nn.Conv2d(3, 2, 1)
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, value)
        return layer

    body = HRDABody(_Encoder(), _FirstStage(), _FirstStage())
    classifier = nn.Conv2d(3, 2, 1)
    images = torch.rand(1, 3, 64, 64)
    only_detail = HRDASegmenter(body, classifier, constant(50.0))
    features, logits = only_detail(images)
    torch.testing.assert_close(logits, classifier(features))
    only_context = HRDASegmenter(body, classifier, constant(-50.0))
    half = nn.functional.interpolate(images, scale_factor=0.5, mode="bilinear")
    context = nn.functional.avg_pool2d(only_context.prepare(half), 4)
    expected = mit.upsample(classifier(context), (16, 16))
    torch.testing.assert_close(only_context(images).logits, expected, rtol=1e-4, atol=1e-5)
