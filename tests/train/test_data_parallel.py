"""Wrapping a network for several workers, and moving batches to the device."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sfss_ray.config import AugmentConfig, TrainConfig
from sfss_ray.train.data_parallel import autocast, distribute, share_of, to_device
from sfss_ray.train.run_state import LocalRun
from sfss_ray.train.samples import Share


def test_only_uint8_is_scaled():
    batch = {"image": torch.tensor([0, 255]).byte(), "labels": torch.tensor([3, 255])}
    moved = to_device(batch, torch.device("cpu"))
    assert moved["image"].tolist() == [0.0, 1.0]
    assert moved["labels"].tolist() == [3, 255]


def test_a_single_worker_trains_the_module_itself(tmp_path):
    module, run = nn.Conv2d(3, 2, 1), LocalRun(tmp_path)
    assert distribute(module, run) is module
    assert share_of(run, TrainConfig(accumulate=3)) == Share(0, 1, 3)
    mixed = TrainConfig(augment=AugmentConfig(class_mix=0.5))
    assert share_of(run, mixed) == Share(0, 1, 1, unit=2)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_networks_run_in_the_configured_precision(precision, dtype, tmp_path):
    with autocast(LocalRun(tmp_path), precision):
        assert nn.Conv2d(3, 2, 1)(torch.rand(1, 3, 4, 4)).dtype == dtype


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*broadcast_buffers")
@pytest.mark.parametrize("name", ["modules", "parameters", "named_parameters", "named_children"])
def test_layers_that_hide_methods_of_torch_are_distributed(name, group):
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1)))
    hiding = [net[0][0]]
    setattr(net[0], name, hiding)
    run = SimpleNamespace(world=2, device=torch.device("cpu"))
    images = torch.rand(1, 3, 4, 4)
    distributed = distribute(net, run)  # pyright: ignore[reportArgumentType]
    distributed(images).sum().backward()
    assert torch.allclose(net[0][0].weight.grad[0, :, 0, 0], images.sum((0, 2, 3)))
    assert vars(net[0])[name] is hiding
