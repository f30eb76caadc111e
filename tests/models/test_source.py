"""Tests of opening a source model and of saving it for workers."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import torch
from checkpoint_files import random_images
from ray import cloudpickle
from segmentation_modules import UNet
from torch import nn
from torchvision.models import segmentation
from wrapped_networks import CLASSES, Net, make_net, wrap

from sfss_ray import SourceModel, load_source_model, save_model, wrap_model
from sfss_ray.data.class_sets import CAMVID_11, class_set_of
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.reading import file_sha256
from sfss_ray.models.source import open_source
from sfss_ray.streets.default import SOURCE_MODEL


def compact(seed: int = 0) -> SourceModel:
    torch.manual_seed(seed)
    return SourceModel(build_network("compact", 3), "compact", class_set_of(CLASSES))


def wrapped() -> SourceModel:
    return wrap(make_net())


def test_a_model_file_is_read_by_workers_as_it_is(tmp_path: Path):
    model = compact()
    model.facts = {"white_level": 1023.0}
    path = save_model(tmp_path / "model.pt", model)
    source = open_source(path)
    assert source.origin == str(path)
    assert source.sha256 == file_sha256(path)
    assert (source.network, source.classes, source.white_level) == ("compact", model.classes, 1023)
    assert source.placed(tmp_path / "run") is source
    assert source.path == path
    with torch.no_grad():
        images = random_images((32, 32))
        assert torch.equal(source.load()(images), model.eval()(images))


def test_a_model_file_with_another_card_is_saved_again(tmp_path: Path):
    path = save_model(tmp_path / "model.pt", compact())
    source = open_source(path, card={"channel_order": "bgr"}).placed(tmp_path / "run")
    assert source.path == tmp_path / "run" / "source_model.pt"
    assert source.sha256 == file_sha256(path)
    assert load_source_model(source.path).card.channel_order == "bgr"


@torch.no_grad()
def test_a_foreign_checkpoint_becomes_a_model_file(tmp_path: Path):
    network = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=11
    )
    torch.save(network.state_dict(), tmp_path / "x.pth")
    source = open_source(tmp_path / "x.pth")
    placed = source.placed(tmp_path / "run")
    assert placed.path.name == "source_model.pt"
    assert (placed.origin, placed.sha256) == (source.origin, file_sha256(tmp_path / "x.pth"))
    assert placed.classes is CAMVID_11
    images = random_images((32, 64))
    assert torch.equal(placed.load()(images), load_source_model(tmp_path / "x.pth")(images))


def test_a_model_file_in_the_run_folder_is_not_written_again(tmp_path: Path):
    source = open_source(compact())
    written = source.placed(tmp_path).path.stat().st_mtime_ns
    assert open_source(compact()).placed(tmp_path).path.stat().st_mtime_ns == written


def test_a_model_in_memory_is_saved_in_the_run_folder(tmp_path: Path):
    model = wrapped()
    source = open_source(model, {"align_corners": True})
    assert source.card.align_corners
    assert source.origin == "a Net in memory"
    placed = source.placed(tmp_path)
    assert placed.path == tmp_path / "source_model.pt"
    assert placed.unsaved is None
    received = cloudpickle.loads(cloudpickle.dumps(placed))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(received.load()(images), model.eval()(images))


def test_the_hash_of_a_model_in_memory_is_that_of_its_weights():
    model = wrapped()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.network.body.classifier.bias += 1
    assert open_source(model).sha256 == open_source(wrapped()).sha256
    assert open_source(model).sha256 != open_source(changed).sha256


def test_the_model_of_the_caller_stays_as_it_was():
    model = wrapped().train()
    source = open_source(model, {"channel_order": "bgr", "classes": ["sea", "land", "air"]})
    source.load()
    assert source.card.classes == ("sea", "land", "air")
    assert model.training
    assert model.card.channel_order == "rgb"
    assert model.classes.classes == tuple(CLASSES)


def test_networks_of_the_package_have_no_code_to_send():
    source = open_source(compact().network)
    assert source.carried is None
    assert source.architecture is None
    assert source.origin == "a compact in memory"
    assert isinstance(open_source(wrapped()).architecture, Net)


def test_models_that_cannot_be_copied_are_refused_in_one_line():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    module.lock = threading.Lock()
    model = wrap_model(module, classes=CLASSES, feature_layer="1")
    with pytest.raises(ConfigError, match=r"cannot be copied \(TypeError.*lock.*remove") as error:
        open_source(model)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth' does not exist"):
        open_source(tmp_path / "nowhere.pth")


GROUPS = {"ground": ["road", "boat"], "dropped": ["sky"]}


@torch.no_grad()
@pytest.mark.parametrize("make_model", [compact, wrapped])
def test_class_groups_travel_to_workers_and_leave_the_callers_model(make_model, tmp_path: Path):
    model = make_model().eval()
    source = open_source(model, class_groups=GROUPS)
    assert source.classes.classes == ("ground",)
    assert source.card.classes == tuple(CLASSES)
    assert source.class_groups is not None
    assert source.class_groups.line() == "ground = road + boat; dropped: sky"
    assert (model.classes.classes, model.network.class_groups) == (tuple(CLASSES), None)
    received = cloudpickle.loads(cloudpickle.dumps(source.placed(tmp_path))).load()
    images = random_images((32, 32))
    assert torch.equal(received(images), model(images)[:, [0, 2]].logsumexp(1, keepdim=True))
    assert open_source(model).sha256 == source.sha256


def test_groups_of_a_model_are_kept_or_replaced(tmp_path: Path):
    model = compact()
    grouped = open_source(model, class_groups=GROUPS).load()
    assert open_source(grouped).class_groups == grouped.network.class_groups
    both = {"ground": ["road", "boat"], "air": ["sky"]}
    assert open_source(grouped, class_groups=both).classes.classes == ("ground", "air")
    path = save_model(tmp_path / "grouped.pt", grouped)
    assert open_source(path).path == path
    replaced = open_source(path, class_groups=both).placed(tmp_path / "run")
    assert replaced.path == tmp_path / "run" / "source_model.pt"
    assert load_source_model(replaced.path).classes.classes == ("ground", "air")


def test_a_module_is_called_by_its_name_and_keeps_its_notes(tmp_path: Path):
    model = wrap_model(UNet(4), classes=["a", "b", "c", "d", "e"], name="Street U-Net 2.0")
    for source in (open_source(model), open_source(model).placed(tmp_path)):
        assert source.network == source.label == "Street U-Net 2.0"
        assert source.origin == "a Street U-Net 2.0 in memory"
        assert source.size_multiple == 16
        assert source.notes == tuple(model.network.describe())
    assert open_source(SOURCE_MODEL).label == SOURCE_MODEL.stem
    assert open_source(SOURCE_MODEL).notes == ()
