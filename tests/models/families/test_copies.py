"""A student and its EMA copy in one file, as public programs write them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_states import bgr_255, enlarged, forward, head, imagenet, prefixed, resnet101, shaken
from torchvision.models import segmentation

from sfss_ray import load_source_model
from sfss_ray.errors import CheckpointError

SIZE = (37, 50)


@pytest.fixture(autouse=True)
def no_large_files_left(tmp_path: Path):
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, weights: Any) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_source_model(path, weights=weights)
    return str(refused.value)


@torch.no_grad()
def test_crots_keeps_an_ema_net_beside_the_net(images, tmp_path):
    """Its teacher is a second network whose weights, not its statistics, follow the first."""
    student, teacher = (
        resnet101() | head("layer5.", 19),
        resnet101(seed=3) | head("layer5.", 19, seed=4),
    )
    both = prefixed("net.", student) | prefixed("ema_net.", teacher)
    both["image_mean"] = torch.tensor([104.0, 116.7, 122.7])
    path = written(tmp_path / "x.ckpt", {"state_dict": both, "global_step": 9})
    found, of_copy = load_source_model(path), load_source_model(path, weights="ema")
    assert_noted(found, of_copy, "ema_net.")
    for model, state in ((found, student), (of_copy, teacher)):
        expected = enlarged(forward(state, bgr_255(images), "layer5.", caffe=True), SIZE)
        assert (model(images) - expected).abs().max() < 2e-4 * expected.abs().max()


def assert_noted(student: Any, copy: Any, name: str) -> None:
    assert (
        f"also holds an EMA copy ({name}): the student was loaded" in student.load_report.notes[0]
    )
    assert f"those of the EMA copy ({name})" in copy.load_report.notes[0]


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_torchvisions_references_keep_model_and_model_ema(prefix, images, tmp_path):
    """train.py writes both, the options of its command line, and the copy's counter."""
    torch.manual_seed(1)
    build = segmentation.lraspp_mobilenet_v3_large
    student, copy = (
        shaken(build(weights=None, weights_backbone=None, num_classes=11)) for _ in range(2)
    )
    content = {
        "model": prefixed(prefix, student.state_dict()),
        "model_ema": {"n_averaged": torch.tensor(7)} | prefixed("module.", copy.state_dict()),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.02, output_dir=Path("runs"), classes=["a"]),
    }
    path = written(tmp_path / "checkpoint.pth", content)
    found, of_copy = load_source_model(path), load_source_model(path, weights="ema")
    assert_noted(found, of_copy, "model_ema")
    assert found.load_report.unexpected == of_copy.load_report.unexpected == ()
    for model, reference in ((found, student), (of_copy, copy)):
        expected = reference(imagenet(images))["out"]
        assert (model(images) - expected).abs().max() < 2e-4 * expected.abs().max()
    alone = written(tmp_path / "alone.pth", {"model_ema": content["model_ema"]})
    assert "those of the EMA copy" in load_source_model(alone).load_report.notes[0]
    assert "alone" in refusal(alone, "student")


def test_a_decay_and_a_counter_are_no_copy(tmp_path):
    network = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=11
    )
    state = network.state_dict() | {"ema.decay": torch.tensor(0.9), "ema.steps": torch.tensor(3)}
    model = load_source_model(written(tmp_path / "x.pth", state))
    assert model.load_report.notes == ()
    assert "holds no EMA copy" in refusal(tmp_path / "x.pth", "ema")


@pytest.mark.parametrize(
    ("entry", "copy"),
    [("student", "teacher"), ("state_dict", "state_dict_ema"), ("net", "ema_net")],
)
def test_other_programs_keep_the_copy_in_an_entry(entry, copy, tmp_path):
    torch.manual_seed(2)
    build = segmentation.lraspp_mobilenet_v3_large
    two = [build(weights=None, weights_backbone=None, num_classes=11).state_dict() for _ in "ab"]
    path = written(tmp_path / "x.pth", {entry: two[0], copy: two[1]})
    key = "body.cbr.0.weight"
    for weights, state in (("auto", two[0]), ("student", two[0]), ("ema", two[1])):
        found = load_source_model(path, weights=weights).network.state_dict()
        assert torch.equal(found[key], state["classifier.cbr.0.weight"])
