"""Tests of wrapping a user's module as a source model: outputs, cards, model files, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from wrapped_networks import CLASSES, Net, make_net, wrap

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.errors import CheckpointError, ConfigError, DataError


@pytest.mark.parametrize("output", ["tensor", "mapping", "object"])
@torch.no_grad()
def test_logits_are_the_modules_own(output):
    card = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    model = wrap(make_net(output), card=card)
    images = torch.rand(2, 3, 40, 64)
    expected = make_net()((images - 0.5) / 0.25)
    assert torch.allclose(model(images), expected, atol=1e-5)
    assert model.classes.classes == tuple(CLASSES)
    assert model.card.mean == (0.5, 0.5, 0.5)


def test_classes_may_be_in_the_card():
    model = wrap(make_net(), classes=None, card={"classes": CLASSES})
    assert model.classes.classes == tuple(CLASSES)
    assert model.facts == {"made_by": "wrapped_networks.Net"}


def test_wrapping_leaves_the_module_unchanged():
    module = make_net().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    wrap(module)
    assert module.training
    assert not module.decoder["fuse"]._forward_hooks
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_unknown_layers_are_refused_with_similar_names():
    for name in ("decoder.fuze", "decodr.fuse"):
        message = rf"no layer '{name}': similar names are .*decoder.fuse"
        with pytest.raises(ConfigError, match=message):
            wrap(make_net(), feature_layer=name)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (make_net("list"), {}, "the module returns list: allowed are logits"),
        (make_net(), {"classes": ["road"]}, "has 3 outputs but 1 classes were given"),
        (make_net(), {"classes": None}, "has 3 outputs but 0 classes were given"),
        (make_net(), {"feature_layer": "auxiliary"}, "'auxiliary' ran 0 times in one pass"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3, 3)),
            {"feature_layer": "0", "example_size": (1, 1)},
            r"returns \(1, 3\): allowed are",
        ),
        (nn.Sequential(nn.Linear(7, 7)), {"feature_layer": "0"}, "failed on an image of 128x128"),
    ],
)
def test_modules_that_are_no_segmenters_are_refused(module, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        wrap(module, **options)
    assert "\n" not in str(error.value)


def test_model_files_hold_the_weights_and_need_the_module(tmp_path: Path):
    model = wrap(make_net(), card={"channel_order": "bgr"})
    path = save_model(tmp_path / "student.pt", model)
    images = torch.rand(1, 3, 32, 32)
    torch.manual_seed(1)
    blank = Net()
    before = blank.classifier.weight.clone()
    for load in (load_model, load_source_model):
        with pytest.raises(CheckpointError, match=r"a module of your own.*module=\.\.\."):
            load(path)
        again = load(path, module=blank)
        assert again.card == model.card
        with torch.no_grad():
            assert torch.equal(again(images), model.eval()(images))
    assert torch.equal(blank.classifier.weight, before)
    with pytest.raises(CheckpointError, match="give the module that the file was made with"):
        load_model(path, module=nn.Sequential(nn.Conv2d(3, 3, 1)))


@torch.no_grad()
def test_outputs_of_a_module_are_grouped_on_both_grids():
    groups = {"ground": ["road", "boat"], "air": ["sky"]}
    model, images = wrap(make_net(), class_groups=groups), torch.rand(2, 3, 40, 64)
    plain = wrap(make_net())
    assert model.classes.classes == ("ground", "air")
    expected = plain(images).softmax(1)
    expected = torch.stack([expected[:, 0] + expected[:, 2], expected[:, 1]], 1)
    torch.testing.assert_close(model(images).softmax(1), expected)
    output = plain.network(images).logits.softmax(1)
    expected = torch.stack([output[:, 0] + output[:, 2], output[:, 1]], 1)
    torch.testing.assert_close(model.network(images).logits.softmax(1), expected)
    with pytest.raises(DataError, match="leave out 'boat' of the model's classes"):
        wrap(make_net(), class_groups={"ground": ["road", "sky"]})
