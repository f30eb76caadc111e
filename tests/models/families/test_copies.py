"""Tests of choosing between a student and its EMA copy, in files as public programs write them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_images, refusal, write
from family_states import (
    deeplab_v2_head,
    deeplab_v2_logits,
    prefixed,
    randomise_batch_norm,
    resnet101,
    to_caffe,
    to_imagenet,
    upsample_corners,
)
from torchvision.models import segmentation

from sfss_ray import load_source_model
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.copies import choose_copy

SIZE = (37, 50)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE)


def lraspp() -> torch.nn.Module:
    build = segmentation.lraspp_mobilenet_v3_large
    return build(weights=None, weights_backbone=None, num_classes=11)


def trained_optimizer(network: torch.nn.Module) -> tuple[Any, Any]:
    """Return the optimiser of torchvision's references with momenta, and its schedule with warm-up."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    schedulers = torch.optim.lr_scheduler
    warm_up = schedulers.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    main = schedulers.PolynomialLR(optimizer, total_iters=30, power=0.9)
    return optimizer, schedulers.SequentialLR(optimizer, [warm_up, main], milestones=[5])


def assert_notes(student: Any, copy: Any, name: str) -> None:
    """Check that the report of either model tells the user which weights it has."""
    note = student.load_report.notes[0]
    assert f"also holds an EMA copy ({name}): the student was loaded" in note
    assert f"those of the EMA copy ({name})" in copy.load_report.notes[0]


@torch.no_grad()
def test_crots_saves_an_ema_net_beside_the_net(images, tmp_path):
    student_state = resnet101() | deeplab_v2_head("layer5.", 19)
    teacher_state = resnet101(seed=3) | deeplab_v2_head("layer5.", 19, seed=4)
    state = prefixed("net.", student_state) | prefixed("ema_net.", teacher_state)
    state["image_mean"] = torch.tensor([104.0, 116.7, 122.7])
    path = write(tmp_path / "x.ckpt", {"state_dict": state, "global_step": 9})
    student, copy = load_source_model(path), load_source_model(path, weights="ema")
    assert_notes(student, copy, "ema_net.")
    for model, expected_state in ((student, student_state), (copy, teacher_state)):
        logits = deeplab_v2_logits(expected_state, to_caffe(images), "layer5.", caffe=True)
        expected = upsample_corners(logits, SIZE)
        assert (model(images) - expected).abs().max() < 2e-4 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_torchvisions_references_save_model_and_model_ema(prefix, images, tmp_path):
    """train.py saves both, the options of its command line, and the copy's counter."""
    torch.manual_seed(1)
    network, averaged = (randomise_batch_norm(lraspp()) for _ in range(2))
    optimizer, schedule = trained_optimizer(network)
    content = {
        "model": prefixed(prefix, network.state_dict()),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000},
        "model_ema": {"n_averaged": torch.tensor(7)} | prefixed("module.", averaged.state_dict()),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.02, output_dir=Path("runs"), classes=["a"]),
    }
    path = write(tmp_path / "checkpoint.pth", content)
    student, copy = load_source_model(path), load_source_model(path, weights="ema")
    assert_notes(student, copy, "model_ema")
    assert student.load_report.unexpected == copy.load_report.unexpected == ()
    for model, reference in ((student, network), (copy, averaged)):
        expected = reference(to_imagenet(images))["out"]
        assert (model(images) - expected).abs().max() < 2e-4 * expected.abs().max()
    alone = write(tmp_path / "alone.pth", {"model_ema": content["model_ema"]})
    assert "those of the EMA copy" in load_source_model(alone).load_report.notes[0]
    assert "but no student" in refusal(alone, weights="student")


def test_a_decay_and_a_counter_are_no_copy(tmp_path):
    state = lraspp().state_dict() | {"ema.decay": torch.tensor(0.9), "ema.steps": torch.tensor(3)}
    model = load_source_model(write(tmp_path / "x.pth", state))
    assert model.load_report.notes == ()
    assert "holds no EMA copy" in refusal(tmp_path / "x.pth", weights="ema")


@pytest.mark.parametrize(
    ("entry", "copy_entry"),
    [("student", "teacher"), ("state_dict", "state_dict_ema"), ("net", "ema_net")],
)
def test_other_programs_save_the_copy_in_an_entry(entry, copy_entry, tmp_path):
    torch.manual_seed(2)
    student, copy = lraspp().state_dict(), lraspp().state_dict()
    path = write(tmp_path / "x.pth", {entry: student, copy_entry: copy})
    for weights, expected in (("auto", student), ("student", student), ("ema", copy)):
        loaded = load_source_model(path, weights=weights).network.state_dict()
        assert torch.equal(loaded["body.cbr.0.weight"], expected["classifier.cbr.0.weight"])


def test_the_choice_lists_the_tensors_it_leaves_out():
    student = {"model.a": torch.zeros(1), "model.b": torch.zeros(1)}
    copy = {"ema_model.a": torch.ones(1), "ema_model.b": torch.ones(1)}
    state = student | copy | {"imnet_model.a": torch.ones(1)}
    chosen = choose_copy(state, "auto", "x.pth")
    assert list(chosen.state) == ["a", "b"]
    assert chosen.unused == ("ema_model.a", "ema_model.b", "imnet_model.a")
    chosen = choose_copy(state, "ema", "x.pth")
    assert list(chosen.state) == ["a", "b"]
    assert chosen.state["a"] == 1
    with pytest.raises(CheckpointError, match=r"'x\.pth' holds an EMA copy \(ema_model\.\) but no"):
        choose_copy(copy, "student", "x.pth")
    with pytest.raises(CheckpointError, match=r"'x\.pth' holds no EMA copy \(ema_model\."):
        choose_copy(student, "ema", "x.pth")
