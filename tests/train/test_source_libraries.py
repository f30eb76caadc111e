"""Short adaptations of wrapped networks of segmentation_models_pytorch and timm."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from library_networks import smp_network, timm_network
from torch import nn
from train_samples import CLASSES, adaptation_task, small_config, write_dataset

from sfss_ray import load_model, save_model, wrap_model
from sfss_ray.errors import ConfigError
from sfss_ray.models.source import open_source
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.run_state import LocalRun, load_state

SMP_NETWORKS = ["Unet", "FPN", "DeepLabV3Plus", "UPerNet"]
TIMM_BACKBONES = ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "pvt_v2_b0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("libraries"), count=4)


def check_adaptation(module: nn.Module, root, folder) -> None:
    """Adapt a module in five steps, and use the student from its file."""
    images = torch.rand(1, 3, 64, 96)
    model = wrap_model(module, classes=CLASSES, example_size=(64, 64))
    with torch.no_grad():
        logits = model(images)
        own = module(model.network.prepare(images))
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-5)

    source = open_source(model).placed(folder)
    crop_size = [64, 64]  # a multiple of what every network needs
    config = small_config(
        num_steps=5, evaluate_every=5, batch_norm="auto", augment__crop_size=crop_size
    )
    task = adaptation_task(root, source.path, config)
    task = dataclasses.replace(task, architecture=source.carried)
    adapt_student(task, LocalRun(folder / "run"))
    state = load_state(folder / "run")["student"]
    student = source.load()
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    prefix = "segmenter."
    student.network.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    moved = [n for n, w in student.named_parameters() if not torch.equal(w, before[n])]
    trained = [n for n, w in student.named_parameters() if w.requires_grad]
    assert len(moved) > 0.9 * len(trained)
    path = save_model(folder / "student.pt", student)
    loaded = load_model(path, module=module)
    with torch.no_grad():
        predictions = loaded(images)
    assert predictions.shape == (1, len(CLASSES), 64, 96)
    assert predictions.isfinite().all()


@pytest.mark.parametrize("name", SMP_NETWORKS)
def test_networks_of_segmentation_models_pytorch(name, root, tmp_path):
    pytest.importorskip(
        "segmentation_models_pytorch", reason="pip install segmentation-models-pytorch"
    )
    check_adaptation(smp_network(name), root, tmp_path)


@pytest.mark.parametrize("backbone", TIMM_BACKBONES)
def test_backbones_of_timm(backbone, root, tmp_path):
    pytest.importorskip("timm", reason="pip install timm")
    check_adaptation(timm_network(backbone), root, tmp_path)


def test_a_backbone_of_one_size_is_refused_with_its_size():
    pytest.importorskip("timm", reason="pip install timm")
    module = timm_network("swin_tiny_patch4_window7_224")
    with pytest.raises(
        ConfigError, match=r"Input height \(64\) doesn't match model \(224\)"
    ) as error:
        wrap_model(module, classes=CLASSES, example_size=(64, 64))
    assert "\n" not in str(error.value)
    assert "example_size=(height, width) sets another size" in str(error.value)
