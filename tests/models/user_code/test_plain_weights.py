"""Tests of weights alone as a source model, with the user's module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from segmentation_modules import OneSize, UNet
from torch import nn

from sfss_ray import load_source_model, save_model, wrap_model
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.card import Card
from sfss_ray.models.reading import file_sha256
from sfss_ray.models.source import open_source
from sfss_ray.streets.default import SOURCE_MODEL

CLASSES = ["sky", "road", "car", "tree", "sign"]


@pytest.fixture
def trained() -> UNet:
    """A module with weights of its own."""
    module = UNet(2)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    return module.eval()


def wrapped_in(name: str, module: nn.Module) -> dict:
    state = module.state_dict()
    prefixed = {f"{name}.{key}": tensor for key, tensor in state.items()}
    return {
        "plain": state,
        "module": prefixed,
        "state_dict": {"state_dict": state, "epoch": 3},
    }[name]


@pytest.mark.parametrize("kind", ["plain", "module", "state_dict"])
def test_weights_are_loaded_into_a_copy_of_the_module(kind, trained, tmp_path: Path):
    torch.save(wrapped_in(kind, trained), tmp_path / "weights.pth")
    blank = UNet(2)
    before = blank.head.weight.clone()
    model = load_source_model(
        tmp_path / "weights.pth", module=blank, classes=CLASSES, card={"value_range": 255}
    )
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        expected = trained(model.network.prepare(images))
        torch.testing.assert_close(model(images), expected)
    assert torch.equal(blank.head.weight, before)
    assert model.classes.classes == tuple(CLASSES)
    assert model.card == Card(value_range=255, classes=tuple(CLASSES))
    assert model.facts["file"] == "weights.pth"
    assert model.load_report is not None
    assert model.load_report.summary().startswith(
        f"a module of your own -> UNet: {len(trained.state_dict())} tensors matched, 0 missing"
    )


def test_names_that_look_like_wrappers_may_be_the_modules_own(trained, tmp_path: Path):
    module = nn.Module()
    module.model = trained
    module.forward = trained.forward
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    model = load_source_model(tmp_path / "weights.pth", module=module, classes=CLASSES)
    assert model.load_report is not None
    assert not model.load_report.unexpected


def test_tensors_that_the_module_lacks_are_reported(trained, tmp_path: Path):
    state = trained.state_dict() | {"auxiliary.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "weights.pth")
    model = load_source_model(tmp_path / "weights.pth", module=UNet(2), classes=CLASSES)
    assert model.load_report is not None
    assert model.load_report.notes == (
        "1 tensors of the file are not in the module, first 'auxiliary.weight'",
    )


def test_a_student_of_such_a_model_is_a_model_file(trained, tmp_path: Path):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    model = load_source_model(tmp_path / "weights.pth", module=UNet(2), classes=CLASSES)
    again = load_source_model(save_model(tmp_path / "student.pt", model), module=UNet(2))
    assert again.network.size_multiple == 4
    assert again.title == "UNet"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (UNet(2, classes=7).state_dict(), r"2 of wrong shape, first head.weight is \(7, 8, 1, 1\)"),
        (UNet(3).state_dict() | {"head.bias": torch.zeros(2)}, "head.bias is"),
        ({k: v for k, v in UNet(2).state_dict().items() if "head" not in k}, "2 tensors missing"),
        ({"a.weight": torch.zeros(2)}, r"has no tensor of the module UNet \(a.weight\)"),
        ({"epoch": 3}, r"has no tensor of the module UNet \(it has no tensors at all\)"),
        ([1, 2], "it has no tensors at all"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(state, message, tmp_path: Path):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_source_model(tmp_path / "weights.pth", module=UNet(2), classes=CLASSES)
    assert "\n" not in str(error.value)


def test_without_names_of_classes_they_are_refused(trained, tmp_path: Path):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"5 outputs, and nothing says.*--card"):
        load_source_model(tmp_path / "weights.pth", module=UNet(2))


def test_the_wrapping_of_the_module_may_be_given(tmp_path: Path):
    module = OneSize((96, 64))
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    options = {"name": "My net", "feature_layer": "head:input", "example_size": (96, 64)}
    model = load_source_model(tmp_path / "weights.pth", module=module, classes=CLASSES, **options)
    assert model.title == "My net"
    assert (model.network.feature_layer, model.network.example_size) == ("head:input", (96, 64))
    assert model(torch.zeros(1, 3, 96, 64)).shape == (1, 5, 96, 64)


def test_the_wrapping_of_a_wrapped_module_is_kept(trained, tmp_path: Path):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    groups = {"ground": ["road", "car"], "air": ["sky", "tree", "sign"]}
    wrapped = wrap_model(
        UNet(2),
        classes=CLASSES,
        name="Street U-Net",
        feature_layer="up.0",
        example_size=(64, 96),
        card={"channel_order": "bgr"},
        class_groups=groups,
    )
    for module in (wrapped, wrapped.network):
        model = load_source_model(tmp_path / "weights.pth", module=module)
        assert model.network.wrapping == wrapped.network.wrapping
        assert model.card == wrapped.card
        assert model.classes.classes == ("ground", "air")
        assert torch.equal(model.network.body.head.weight, trained.head.weight)
    model = load_source_model(
        tmp_path / "weights.pth",
        module=wrapped,
        name="",
        feature_layer="head:input",
        card={"value_range": 255},
    )
    assert (model.title, model.network.feature_layer) == ("", "head:input")
    assert (model.card.value_range, model.card.channel_order) == (255, "bgr")


def test_a_model_file_keeps_its_own_wrapping(tmp_path: Path):
    path = save_model(tmp_path / "student.pt", wrap_model(UNet(2), classes=CLASSES, name="Student"))
    wrapped = wrap_model(UNet(2), classes=CLASSES, name="Another", feature_layer="up.0")
    model = load_source_model(path, module=wrapped)
    assert (model.title, model.network.feature_layer) == ("Student", "head:input")
    with pytest.raises(ConfigError, match=r"given with name: a model file has its own"):
        load_source_model(path, module=UNet(2), name="Another")


def test_without_a_module_a_wrapping_is_refused():
    message = "given with name, example_size: they are for a module of your own: give module too"
    with pytest.raises(ConfigError, match=message) as error:
        load_source_model(SOURCE_MODEL, name="x", example_size=(64, 64))
    assert "\n" not in str(error.value)


def test_reports_name_the_checkpoint_while_its_weights_are_unchanged(trained, tmp_path: Path):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    model = load_source_model(tmp_path / "weights.pth", module=UNet(2), classes=CLASSES)
    source = open_source(model, {"channel_order": "bgr"})
    assert (source.origin, source.label) == (str(tmp_path / "weights.pth"), "weights")
    assert source.sha256 == file_sha256(tmp_path / "weights.pth")
    with torch.no_grad():
        model.network.body.head.bias += 1
    assert open_source(model).origin == "a UNet in memory"
