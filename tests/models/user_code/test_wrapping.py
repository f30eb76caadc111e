"""Modules of the user's own as source models: features, grids, files, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray import load_model, load_source_model, save_model, wrap_model
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.source import open_source
from sfss_ray.models.user_code.custom import (
    WrappedSegmenter,
    with_room_for_weights,
    without_weights,
)

CLASSES = ["road", "sky", "boat"]


class Net(nn.Module):
    """Features at stride 4, logits at full size, and a head that takes no part."""

    def __init__(self, output: str = "tensor"):
        super().__init__()
        self.output = output
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(8))
        self.decoder = nn.ModuleDict({"fuse": nn.Conv2d(8, 6, 3, 2, 1)})
        self.classifier = nn.Conv2d(6, 3, 1)
        self.auxiliary = nn.Conv2d(6, 3, 1)
        self.register_buffer("offset", torch.tensor(0.25), persistent=False)

    def forward(self, x: Tensor) -> Any:
        features = self.decoder["fuse"](self.encoder(x)) + self.offset
        logits = F.interpolate(self.classifier(features), x.shape[-2:], mode="bilinear")
        if self.output == "mapping":
            return {"out": logits, "aux": self.auxiliary(features)}
        if self.output == "object":
            return type("Output", (), {"logits": logits})()
        return [logits] if self.output == "list" else logits


def net(output: str = "tensor") -> Net:
    torch.manual_seed(0)
    return Net(output).eval()


def wrapped(module: nn.Module, **options: Any):
    options = {"classes": CLASSES, "feature_layer": "decoder.fuse"} | options
    return wrap_model(module, **options)


@pytest.mark.parametrize("output", ["tensor", "mapping", "object"])
@torch.no_grad()
def test_logits_are_the_modules_own(output):
    module = net(output)
    model = wrapped(module, card={"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]})
    images = torch.rand(2, 3, 40, 64)
    expected = net()((images - 0.5) / 0.25)
    assert torch.allclose(model(images), expected, atol=1e-5)
    assert model.classes.classes == tuple(CLASSES)
    assert model.card.mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_features_are_those_of_the_named_layer_and_logits_on_their_grid():
    module, images = net(), torch.rand(2, 3, 40, 64)
    model = wrapped(module)
    features, logits = model.network(images)
    expected = module.decoder["fuse"](module.encoder(model.network.prepare(images)))
    assert torch.equal(features, expected)
    assert model.network.feature_width == 6
    assert features.shape == (2, 6, 10, 16)
    blocks = model(images).reshape(2, 3, 10, 4, 16, 4).mean((3, 5))
    assert torch.allclose(logits, blocks, atol=1e-5)


@torch.no_grad()
def test_logits_coarser_than_the_features_are_scaled_up():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 3, 3, 8, 1))
    model = wrap_model(module, classes=CLASSES, feature_layer="0")
    features, logits = model.network(torch.rand(1, 3, 32, 48))
    assert features.shape == (1, 4, 32, 48)
    assert logits.shape == (1, 3, 32, 48)


def test_wrapping_leaves_the_module_as_it_was():
    module = net().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    wrapped(module)
    assert module.training
    assert not module.decoder["fuse"]._forward_hooks
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_wrong_layers_are_refused_with_close_names():
    for name in ("decoder.fuze", "decodr.fuse"):
        with pytest.raises(
            ConfigError, match=rf"no layer '{name}': close names are .*decoder.fuse"
        ):
            wrapped(net(), feature_layer=name)


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (net("list"), {}, "the module returns list: allowed are logits"),
        (net(), {"classes": ["road"]}, "has 3 outputs but 1 classes were given"),
        (net(), {"classes": None}, "has 3 outputs but 0 classes were given"),
        (net(), {"feature_layer": "auxiliary"}, "'auxiliary' ran 0 times in one pass"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3, 3)),
            {"feature_layer": "0", "example_size": (1, 1)},
            r"returns \(1, 3\): allowed are",
        ),
        (nn.Sequential(nn.Linear(7, 7)), {"feature_layer": "0"}, "failed on an image of 128x128"),
    ],
)
def test_modules_that_are_no_segmenters_are_refused(module, options, said):
    with pytest.raises(ConfigError, match=said) as refused:
        wrapped(module, **options)
    assert "\n" not in str(refused.value)


def test_files_hold_the_weights_and_ask_for_the_module(tmp_path: Path):
    model = wrapped(net(), card={"channel_order": "bgr"})
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


def test_weights_that_take_no_part_do_not_train(tmp_path: Path):
    path = save_model(tmp_path / "x.pt", wrapped(net()))
    network = load_model(path, module=net()).network
    assert isinstance(network, WrappedSegmenter)
    idle = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert idle == {"body.auxiliary.weight", "body.auxiliary.bias"}


def test_the_architecture_travels_without_weights():
    module = net()
    module.tied = module.classifier  # one layer under two names
    bare = without_weights(module)
    assert all(p.is_meta for p in bare.parameters())
    sent = cloudpickle.dumps(bare)
    with_weights = with_room_for_weights(cloudpickle.loads(sent))
    assert with_weights.tied is with_weights.classifier
    assert with_weights.offset == 0.25  # a state dict leaves it out
    with_weights.load_state_dict(module.state_dict())
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(with_weights.eval()(images), module(images))


def test_large_weights_do_not_travel_with_the_architecture():
    module = nn.Sequential(nn.Conv2d(3, 512, 3), nn.Conv2d(512, 512, 3))
    assert len(cloudpickle.dumps(module)) > 9_000_000
    assert len(cloudpickle.dumps(without_weights(module))) < 20_000


def test_stages_leave_a_model_in_memory_as_it_was():
    model = wrapped(net().train()).train()
    source = open_source(model, {"channel_order": "bgr", "classes": ["sea", "land", "air"]})
    source.load()
    assert source.card.classes == ("sea", "land", "air")
    assert model.training
    assert model.card.channel_order == "rgb"
    assert model.classes.classes == tuple(CLASSES)


def test_a_source_in_memory_is_placed_in_the_runs_folder(tmp_path: Path):
    model = wrapped(net())
    source = open_source(model, {"align_corners": True})
    assert source.card.align_corners
    placed = source.placed(tmp_path)
    assert placed.path == tmp_path / "source_model.pt"
    assert placed.unplaced is None
    travelled = cloudpickle.loads(cloudpickle.dumps(placed))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(travelled.load()(images), model(images))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.network.body.classifier.bias += 1
    assert open_source(model).sha256 == source.sha256 != open_source(other).sha256
