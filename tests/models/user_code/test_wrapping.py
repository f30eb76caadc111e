"""Tests of wrapping a user's module as a source model: outputs, cards, model files, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from segmentation_modules import OneSize, PooledNorm, UNet
from torch import nn
from wrapped_networks import CLASSES, Net, make_net, wrap

from sfss_ray import SourceModel, load_model, load_source_model, save_model, wrap_model
from sfss_ray.errors import CheckpointError, ConfigError, DataError


@pytest.mark.parametrize("output", ["tensor", "mapping", "object", "list"])
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
        (make_net(), {"classes": ["road"]}, "has 3 outputs but 1 classes were given"),
        (make_net(), {"classes": None}, "has 3 outputs, and nothing says what they mean"),
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


FIVE = ["sky", "road", "car", "tree", "sign"]


def test_features_sizes_and_the_name_need_not_be_given(tmp_path: Path):
    model = wrap_model(UNet(5), classes=FIVE)
    network = model.network
    assert network.size_multiple == 32
    assert model.title == "UNet"
    assert network.describe() == [
        "features: what 'head' reads (8 channels, stride 2); the logits have stride 1",
        "sizes: the module takes multiples of 32 pixels; other images are padded",
    ]
    images = torch.rand(1, 3, 64, 96)
    features, _ = network.eval()(images)
    assert features.shape == (1, 8, 32, 48)
    again = load_model(save_model(tmp_path / "x.pt", model), module=UNet(5))
    assert again.network.wrapping == network.wrapping


def test_the_name_is_kept_in_the_file(tmp_path: Path):
    model = wrap_model(UNet(2), classes=FIVE, name="Street U-Net 2.0")
    assert model.title == "Street U-Net 2.0"
    again = load_model(save_model(tmp_path / "x.pt", model), module=UNet(2))
    assert again.title == "Street U-Net 2.0"
    assert again.load_report is not None
    assert "-> Street U-Net 2.0:" in again.load_report.summary()


def test_files_of_earlier_versions_are_read(tmp_path: Path):
    """They have neither the multiple nor the name."""
    model = wrap_model(UNet(3), classes=FIVE, feature_layer="up.1")
    content = torch.load(save_model(tmp_path / "x.pt", model), weights_only=True)
    del content["size_multiple"], content["title"]
    torch.save(content, tmp_path / "old.pt")
    again = load_model(tmp_path / "old.pt", module=UNet(3))
    assert again.network.size_multiple == 8
    assert again.network.wrapping == model.network.wrapping


@pytest.mark.parametrize("size", [(45, 60), (90, 71), (32, 32), (1, 1)])
def test_a_module_with_a_multiple_takes_images_of_any_size(size):
    """Their last row and column are repeated, and the logits are cropped."""
    model = wrap_model(UNet(5), classes=FIVE).eval()
    images = torch.rand(2, 3, *size)
    rows, columns = (torch.arange(-(-side // 32) * 32).clamp(max=side - 1) for side in size)
    padded = images[:, :, rows][..., columns]
    with torch.no_grad():
        expected = model.network.body(model.network.prepare(padded))
        logits = model(images)
    assert logits.shape == (2, 5, *size)
    torch.testing.assert_close(logits, expected[..., : size[0], : size[1]])


def test_a_module_that_fails_later_is_refused_in_one_line():
    model = wrap_model(OneSize((96, 64)), classes=FIVE, example_size=(96, 64)).eval()
    assert model(torch.zeros(1, 3, 96, 64)).shape == (1, 5, 96, 64)
    message = r"fails on images of 48x48 pixels \(AssertionError: not my size\).*mode slide"
    with pytest.raises(ConfigError, match=message) as error:
        model(torch.zeros(1, 3, 48, 48))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "classes", "message"),
    [
        (UNet(2, classes=1), ["road"], "has 1 outputs: allowed are 2 to 254.*such as torch.cat"),
        (UNet(2, classes=300), None, "has 300 outputs: allowed are 2 to 254"),
        (nn.Sequential(UNet(2), nn.Softmax(1)), FIVE, "returns probabilities.*before the softmax"),
        (nn.Sequential(UNet(2), nn.Sigmoid()), FIVE, "returns probabilities.*before the sigmoid"),
        (
            nn.Sequential(UNet(2, 1), nn.Sigmoid()),
            None,
            "returns probabilities.*before the sigmoid",
        ),
        (UNet(2), FIVE[:4], "has 5 outputs but 4 classes were given"),
    ],
)
def test_outputs_that_are_no_logits_of_the_classes_are_refused(module, classes, message):
    with pytest.raises(ConfigError, match=message) as error:
        wrap_model(module, classes=classes)
    assert "\n" not in str(error.value)


class WithoutGradients(UNet):
    """Has a forward as people write it for inference only."""

    def __init__(self, kind: str):
        super().__init__(2)
        self.kind = kind

    def forward(self, x):
        if self.kind == "detach":
            return super().forward(x).detach()
        with torch.no_grad() if self.kind == "no_grad" else torch.inference_mode():
            return super().forward(x)


@pytest.mark.parametrize("feature_layer", [None, "head:input"])
@pytest.mark.parametrize("kind", ["no_grad", "inference_mode", "detach"])
def test_a_module_without_gradients_is_refused(kind, feature_layer):
    message = "computes its logits without gradients, so it cannot be trained: remove"
    with pytest.raises(ConfigError, match=message) as error:
        wrap_model(WithoutGradients(kind), classes=FIVE, feature_layer=feature_layer)
    assert "\n" not in str(error.value)


def test_a_module_that_fails_with_gradients_is_refused():
    class Numpy(UNet):
        def forward(self, x):
            return torch.from_numpy(super().forward(x).numpy())

    message = r"fails in a pass with gradients \(RuntimeError: Can't call numpy.*cannot be trained"
    with pytest.raises(ConfigError, match=message) as error:
        wrap_model(Numpy(2), classes=FIVE, feature_layer="head:input")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("feature_layer", [None, "head:input"])
def test_modules_that_change_their_input_or_are_frozen_work(feature_layer):
    class InPlace(UNet):
        def forward(self, x):
            return super().forward(x.mul_(2))

    for module in (InPlace(2), UNet(2).requires_grad_(False)):
        model = wrap_model(module, classes=FIVE, feature_layer=feature_layer)
        assert model.network.feature_layer == "head:input"


@pytest.mark.parametrize("kind", ["no_grad", "detach"])
def test_a_module_that_lost_its_gradients_does_not_load_a_student(kind, tmp_path: Path):
    path = save_model(tmp_path / "student.pt", wrap_model(UNet(2), classes=FIVE))
    with pytest.raises(ConfigError, match="computes its logits without gradients") as error:
        load_model(path, module=WithoutGradients(kind))
    assert "\n" not in str(error.value)


def test_weights_that_lead_to_frozen_logits_only_do_not_matter(tmp_path: Path):
    module = make_net("mapping").requires_grad_(False)
    module.auxiliary.requires_grad_(True)
    network = load_model(save_model(tmp_path / "x.pt", wrap(module)), module=module).network
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("module", [UNet(2, norm=False), UNet(2).half(), PooledNorm()])
def test_modules_without_batch_norm_in_half_precision_or_with_a_pooled_norm_work(module):
    model: SourceModel = wrap_model(module, classes=FIVE).eval()
    assert model(torch.zeros(1, 3, 40, 40)).dtype == torch.float32
