"""A training step of DeepLabV2-ResNet101, with BatchNorm frozen and adapted."""

import shutil

import pytest
import torch
from train_samples import CLASSES, adaptation_task, small_config, write_dataset

from sfss_ray.data.class_sets import class_set_of
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.run_state import LocalRun, load_state


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    yield write_dataset(folder := tmp_path_factory.mktemp("big"), count=2)
    shutil.rmtree(folder)  # hundreds of MB


@pytest.fixture(scope="module")
def source(root):
    torch.manual_seed(0)
    network = build_network("deeplabv2_resnet101", len(CLASSES))
    model = SourceModel(network, "deeplabv2_resnet101", class_set_of(CLASSES))
    return save_model(root / "deeplab.pt", model)


@pytest.mark.parametrize("batch_norm", ["frozen", "adapt"])
def test_deeplab_v2_takes_a_step(batch_norm, root, source):
    folder = root / batch_norm  # goes with the root
    config = small_config(num_steps=1, evaluate_every=1, statistics_images=2, batch_norm=batch_norm)
    folder = root / batch_norm
    adapt_student(adaptation_task(root, source, config), LocalRun(folder))
    before = torch.load(source, weights_only=True)["state_dict"]
    after = load_state(folder)["student"]
    moved = {name for name in before if not torch.equal(before[name], after[f"segmenter.{name}"])}
    assert "body.layer3.10.conv2.weight" in moved
    assert "classifier.conv2d_list.3.weight" in moved
    statistics = {name for name in before if name.endswith("running_mean")}
    assert moved & statistics == (statistics if batch_norm == "adapt" else set())
