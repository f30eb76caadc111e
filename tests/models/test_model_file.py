"""Tests of source models in memory and of the model file format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from object_storage import bucket_address, s3_options  # noqa: F401
from torch import nn

from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, class_set_of
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import Card
from sfss_ray.models.model_file import (
    FORMAT,
    SourceModel,
    as_source_model,
    is_model_file,
    load_model,
    save_model,
)
from sfss_ray.models.model_mark import mark_model, read_facts
from sfss_ray.storage.places import to_place
from sfss_ray.streets.default import SOURCE_MODEL

CLASSES = class_set_of(["road", "sky", "boat"])
V3PLUS = "deeplabv3plus_mmseg_resnet50_v1c"


@pytest.fixture(scope="module")
def model() -> SourceModel:
    torch.manual_seed(0)
    network = build_network("compact", len(CLASSES)).eval()
    network(torch.rand(2, 3, 32, 32))
    return SourceModel(network, "compact", CLASSES, {"seed": 0, "made_by": "a test"})


@pytest.fixture
def file(model: SourceModel, tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.pt", model)


def load_refusal(path: Path) -> str:
    """Return the error that `load_model` raises; it must be a single line."""
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def test_a_saved_model_is_loaded_unchanged(model, file):
    loaded = load_model(file)
    assert (loaded.name, loaded.classes, loaded.facts) == ("compact", CLASSES, model.facts)
    assert not loaded.network.training
    state = loaded.network.state_dict()
    for name, weight in model.network.state_dict().items():
        assert torch.equal(state[name], weight), name


def test_known_class_sets_are_loaded_as_themselves(tmp_path: Path):
    for class_set in (CITYSCAPES_19, CAMVID_11):
        network = build_network("compact", len(class_set))
        model = SourceModel(network, "compact", class_set)
        assert load_model(save_model(tmp_path / "x.pt", model)).classes is class_set


def test_the_network_of_a_source_model_is_enough(model):
    again = as_source_model(model.network)
    assert as_source_model(model) is model
    assert (again.name, again.classes, again.facts) == ("compact", CLASSES, model.facts)
    again.name = "renamed"
    assert model.network.name == "renamed"
    model.name = "compact"


@pytest.mark.parametrize(
    ("not_a_model", "message"),
    [
        (build_network("compact", 3), "has no class names: give sfss_ray.SourceModel"),
        (nn.Conv2d(3, 19, 1), r"is a torch module \(torch\.nn.*Conv2d\).*sfss_ray\.wrap_model\("),
        ({"state_dict": {}}, r"of type builtins\.dict: allowed are the path"),
    ],
)
def test_objects_that_are_no_source_models_are_refused(not_a_model, message):
    with pytest.raises(ConfigError, match=message):
        as_source_model(not_a_model)


def test_half_precision_files_are_half_as_large_and_load_in_float32(model, file, tmp_path: Path):
    small = save_model(tmp_path / "half.pt", model, half=True)
    assert small.stat().st_size < 0.6 * file.stat().st_size
    network = load_model(small).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(
            network.logits(images), model.network.logits(images), atol=1e-2, rtol=1e-2
        )


def test_plain_torch_reads_the_file(file):
    content = torch.load(file, weights_only=True)
    assert content["format"] == FORMAT
    assert is_model_file(content)
    assert not is_model_file(content | {"format": "sfss_ray.model/9"})
    assert content["classes"] == ["road", "sky", "boat"]
    assert content["card"]["classes"] == content["classes"]
    keys = {"format", "network", "classes", "class_set", "card", "state_dict", "facts"}
    assert set(content) == keys


def test_files_of_the_first_format_still_load(model, file):
    content = torch.load(file, weights_only=True)
    del content["card"]
    content["format"] = "sfss_ray.model/1"
    loaded = load_model(written(file, content))
    assert loaded.card == Card(classes=CLASSES.classes) == model.card
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.network.logits(images))
    shipped = load_model(SOURCE_MODEL)
    assert shipped.card == Card(classes=shipped.classes.classes)


@torch.no_grad()
def test_files_of_v3plus_before_options_still_load(tmp_path):
    """DeepLabV3+ had a separable bottleneck then, and its files name no options."""
    torch.manual_seed(0)
    images = torch.rand(1, 3, 24, 328)
    network = build_network(V3PLUS, 19, {"separable_bottleneck": True}).eval()
    path = save_model(tmp_path / "new.pt", SourceModel(network, V3PLUS, CITYSCAPES_19))
    content = torch.load(path, weights_only=True)
    assert content.pop("options") == {"separable_bottleneck": True}
    content["format"] = "sfss_ray.model/2"
    again = load_model(written(tmp_path / "old.pt", content))
    assert torch.equal(again(images), network.logits(images))
    for options in (r"{'head_dilations': 3}", r"{'backbone': {'strides': [1, 2]}}"):
        content |= {"format": "sfss_ray.model/3", "options": eval(options)}
        path = written(tmp_path / "edited.pt", content)
        assert f"the options {options} of network" in load_refusal(path)


def test_the_card_is_stored_in_the_file(file):
    content = torch.load(file, weights_only=True)
    content["card"] |= {"channel_order": "bgr", "value_range": 255, "align_corners": True}
    loaded = load_model(written(file, content))
    assert loaded.card == Card.from_dict(content["card"])
    content["card"]["channel_order"] = "gbr"
    assert "card: channel_order is 'gbr'" in load_refusal(written(file, content))


def test_saving_makes_folders_and_leaves_no_other_file(model, tmp_path: Path):
    path = save_model(tmp_path / "new" / "model.pt", model)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_half_copied_files_are_refused(share, file):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "model.pt" in load_refusal(file)


def test_checkpoints_of_another_kind_are_refused_with_their_keys(tmp_path: Path):
    message = load_refusal(written(tmp_path / "a.pt", {"epoch": 3, "state_dict": {}}))
    assert "another kind (found: epoch, state_dict)" in message
    assert "sfss-ray pretrain" in message
    assert "found: no dict" in load_refusal(written(tmp_path / "b.pt", [torch.zeros(1)]))
    assert "found: 1)" in load_refusal(written(tmp_path / "c.pt", {1: 2}))


def test_files_that_lack_an_entry_are_refused(file):
    content = torch.load(file, weights_only=True)
    del content["classes"], content["facts"]
    assert "lacks classes, facts" in load_refusal(written(file, content))


def test_weights_of_another_shape_are_refused_with_the_first(file):
    content = torch.load(file, weights_only=True)
    content["state_dict"]["classifier.weight"] = torch.zeros(7, 64, 1, 1)
    message = load_refusal(written(file, content))
    assert "does not fit network 'compact'" in message
    assert "classifier.weight" in message


def test_weights_of_another_network_are_refused_in_a_short_line(file):
    content = torch.load(file, weights_only=True)
    content["network"] = "deeplabv3_mobilenet_v3_large"
    message = load_refusal(written(file, content))
    assert "does not fit network 'deeplabv3_mobilenet_v3_large'" in message
    assert len(message) < 600


def test_unknown_networks_are_refused(file):
    content = torch.load(file, weights_only=True)
    content["network"] = "unet"
    assert "unknown network 'unet'" in load_refusal(written(file, content))


def with_groups() -> SourceModel:
    torch.manual_seed(0)
    model = SourceModel(build_network("compact", len(CLASSES)).eval(), "compact", CLASSES)
    groups = ClassGroups("mine", (("ground", ("road", "boat")),), ("sky",))
    model.network.use_groups(groups, CLASSES)
    return model


@torch.no_grad()
def test_class_groups_are_kept_in_a_file_that_earlier_versions_refuse(tmp_path: Path):
    model, images = with_groups(), torch.rand(1, 3, 32, 32)
    path = save_model(tmp_path / "grouped.pt", model)
    content = torch.load(path, weights_only=True)
    assert content["format"] not in ("sfss_ray.model/1", FORMAT, "sfss_ray.model/3")
    assert content["classes"] == ["ground"]
    assert content["card"]["classes"] == ["road", "sky", "boat"]
    loaded = load_model(path)
    assert loaded.classes == class_set_of(["ground"], "mine")
    assert loaded.classes.members == (("road", "boat"),)
    assert loaded.outputs == CLASSES
    assert loaded.network.class_groups == model.network.class_groups
    assert torch.equal(loaded(images), model(images))
    again = as_source_model(loaded.network)
    assert (again.classes, again.outputs) == (loaded.classes, CLASSES)


@torch.no_grad()
def test_files_of_v3plus_with_class_groups_keep_its_options(tmp_path: Path):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 24, 328)
    groups = ClassGroups("all", (("all", CITYSCAPES_19.classes),))
    for options in ({"separable_bottleneck": True}, {}):
        network = build_network(V3PLUS, 19, options).eval()
        model = SourceModel(network, V3PLUS, CITYSCAPES_19)
        network.use_groups(groups, CITYSCAPES_19)
        again = load_model(save_model(tmp_path / "new.pt", model))
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    "groups",
    [
        {"name": "x", "groups": [["ground", ["road", "ship"]]], "dropped": ["sky"]},
        {"name": "x", "groups": [["ground", ["road"]]], "dropped": ["sky"]},
        {"name": "x", "groups": [["ground", 3]], "dropped": []},
        {"name": "x"},
    ],
)
def test_edited_class_groups_are_refused(groups, tmp_path: Path):
    content = torch.load(save_model(tmp_path / "x.pt", with_groups()), weights_only=True)
    message = load_refusal(written(tmp_path / "y.pt", content | {"class_groups": groups}))
    assert "its class groups cannot be used: the file was edited" in message


def test_a_model_file_at_an_address(model: SourceModel, bucket_address):  # noqa: F811
    file = to_place(bucket_address.format("model.pt"))
    assert save_model(bucket_address.format("model.pt"), model) == file
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_model(file)(images), model.eval()(images))
    mark_model(file, "worse", "It is.")
    assert read_facts(file)["verdict"] == "worse"
    with pytest.raises(CheckpointError, match=r"'s3://fleet/.*/absent.pt' does not exist") as error:
        load_model(bucket_address.format("absent.pt"))
    assert "secret" not in str(error.value)
