"""Tests of networks of transformers as segmenters: logits, features, sizes and gradients."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

import transformers_models as models

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.architectures.transformers_networks import TransformersSegmenter
from sfss_ray.models.card import Card

PLAIN = Card(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
TASK = [49406, 518, 10549, 533, 29119, 1550, 49407]
"""CLIP's ids of <|startoftext|> the task is seman-tic <|endoftext|>."""
SIDE = 64


def network_of(model: Any) -> TransformersSegmenter:
    """Build the network from the model's configuration and load the model's weights."""
    options = {"architecture": type(model).__name__, "configuration": model.config.to_dict()}
    network = build_network("transformers", len(models.CLASSES), options)
    body = {k: v for k, v in model.state_dict().items() if not k.startswith("auxiliary_head.")}
    network.body.load_state_dict(body)
    assert isinstance(network, TransformersSegmenter)
    return network.use_card(PLAIN).eval()


def images(size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))


def published_scores(output: Any) -> Tensor:
    """Return the class scores as the papers' semantic inference computes them."""
    classes = F.softmax(output.class_queries_logits, -1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", classes, output.masks_queries_logits.sigmoid())


def run_model(model: Any, pixels: Tensor) -> Any:
    if model.config.model_type != "oneformer":
        return model(pixels, output_hidden_states=True)
    tokens = torch.tensor([TASK + [0] * 70] * len(pixels))
    return model(pixels, task_inputs=tokens)


@torch.no_grad()
@pytest.mark.parametrize("builder", models.SEMANTIC)
def test_logits_of_semantic_networks_are_their_own(builder):
    model = models.make(builder)
    network = network_of(model)
    size = (SIDE, SIDE) if network.input_size else (SIDE, 96)
    expected = model(images(size)).logits
    expected = F.interpolate(expected, size, mode="bilinear", align_corners=False)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(network.logits(images(size)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("builder", models.SEMANTIC)
def test_features_are_what_the_last_convolution_reads(builder):
    network = network_of(models.make(builder))
    features, logits = network(images())
    assert features.shape[1] == network.feature_width
    convolution = network.body.get_submodule(network.feature_layer)
    own = F.conv2d(features, convolution.weight, convolution.bias)
    # DPT alone scales its logits up after the convolution.
    own = F.interpolate(own, logits.shape[-2:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(own, logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("builder", models.UNIVERSAL)
def test_logits_of_universal_networks_are_the_log_of_their_class_scores(builder):
    model = models.make(builder)
    network = network_of(model)
    scores = published_scores(run_model(model, images()))
    features, logits = network(images())
    assert float(logits.std()) > 0.01
    torch.testing.assert_close(logits.exp(), scores, rtol=1e-4, atol=1e-5)
    # Every mask is the scalar product of a query with the features.
    assert features.shape == (2, network.feature_width, *logits.shape[-2:])


@torch.no_grad()
@pytest.mark.parametrize("builder", [models.mask2former, models.maskformer])
def test_features_of_universal_networks_are_the_mask_features(builder):
    model = models.make(builder)
    features, _ = network_of(model)(images())
    output = run_model(model, images())
    torch.testing.assert_close(features, output.pixel_decoder_last_hidden_state)


@torch.no_grad()
def test_networks_of_one_size_see_the_whole_image_resized():
    model = models.make(models.beit)
    network = network_of(model)
    assert network.input_size == (SIDE, SIDE)
    larger = images((80, 96))
    resized = F.interpolate(larger, (SIDE, SIDE), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(larger).logits, model(resized).logits)
    assert network.logits(larger).shape == (2, 5, 80, 96)


@torch.no_grad()
def test_outputs_may_be_some_of_the_classes():
    model = models.make(models.mask2former)
    network = network_of(model)
    options = network.options | {"outputs": [3, 0]}
    smaller = build_network("transformers", 2, options).use_card(PLAIN).eval()
    smaller.load_state_dict(network.state_dict())
    assert torch.equal(smaller(images()).logits, network(images()).logits[:, [3, 0]])


@pytest.mark.parametrize("builder", [*models.SEMANTIC, *models.UNIVERSAL])
def test_every_weight_that_trains_gets_a_gradient(builder):
    """Data-parallel training would wait for a missing gradient."""
    network = network_of(models.make(builder)).train()
    features, logits = network(images())
    (features.square().sum() + logits.square().sum()).backward()
    weights = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    assert [name for name, weight in weights if weight.grad is None] == []
    assert len(weights) > 20
    heads = {id(p) for head in network.heads for p in head.parameters()}
    assert 0 < len(heads) < len(weights)


def test_auxiliary_heads_are_not_built():
    network = network_of(models.make(models.upernet_swin))
    assert not any("auxiliary" in name for name, _ in network.named_parameters())


def refusal(num_classes: int, architecture: str, configuration: dict[str, Any]) -> str:
    options = {"architecture": architecture, "configuration": configuration}
    with pytest.raises(ConfigError) as error:
        build_network("transformers", num_classes, options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_configurations_that_transformers_cannot_use_are_refused_in_one_line():
    configuration = models.make(models.upernet_swin).config.to_dict()
    name = "UperNetForSemanticSegmentation"
    assert "has 5 classes, not 7: set num_labels or id2label" in refusal(7, name, configuration)
    assert "no segmentation network 'NoForSemanticSegmentation'" in refusal(
        5, "NoForSemanticSegmentation", configuration
    )
    assert "no segmentation network 'BertModel'" in refusal(5, "BertModel", configuration)
    broken = configuration | {"backbone_config": {"model_type": "swin", "embed_dim": "wide"}}
    assert f"transformers cannot build {name} from its config.json" in refusal(5, name, broken)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    plain_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    message = refusal(5, "UperNetForSemanticSegmentation", {})
    assert (
        "transformers, which is not installed: run `pip install 'sfss-ray[transformers]'`"
        in message
    )
