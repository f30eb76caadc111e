"""Tests of telling outputs that a module forces into [0, 1] from logits that lie there by chance."""

from __future__ import annotations

import pytest
import torch
from segmentation_modules import NUM_CLASSES, UNet
from torch import Tensor, nn
from torchvision.models import segmentation

from sfss_ray.models.user_code.bounded_outputs import are_bounded, lie_in_unit_range
from sfss_ray.models.user_code.module_outputs import find_logits

IMAGES = [
    torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
]


def bounded(module: nn.Module) -> bool:
    return are_bounded(module.eval(), IMAGES, find_logits)


def small(classes: int = 2) -> UNet:
    """An untrained network whose logits lie in [0, 1] by chance."""
    module = UNet(2, classes=classes)
    with torch.no_grad():
        module.head.weight.mul_(0.01)
        module.head.bias.copy_(torch.linspace(0.3, 0.6, classes))
    return module


class Formula(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))


class IdleHead(UNet):
    """Runs another head after its own."""

    def __init__(self):
        super().__init__(2)
        self.idle = nn.Conv2d(NUM_CLASSES, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.idle(logits)
        return logits.sigmoid()


class Background(nn.Module):
    """Drops the first of the probabilities, so the others do not add up to 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1)[:, 1:]


@pytest.mark.parametrize("squash", [nn.Sigmoid(), nn.Hardsigmoid(), Formula(), Background()])
def test_outputs_that_a_module_forces_into_the_range_are_recognised(squash):
    assert bounded(nn.Sequential(UNet(2), squash))
    assert bounded(nn.Sequential(small(), squash, nn.Upsample(scale_factor=2, mode="bilinear")))


def test_a_head_that_takes_no_part_does_not_hide_them():
    assert bounded(IdleHead())


@pytest.mark.parametrize("seed", range(10))
def test_logits_of_untrained_networks_are_not_taken_for_them(seed):
    torch.manual_seed(seed)
    assert not bounded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.ReLU()))
    assert not bounded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)))


@pytest.mark.parametrize("end", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.LogSigmoid(), nn.Tanh()])
def test_logits_in_the_range_by_chance_are_not_taken_for_them(end):
    module = nn.Sequential(small(), end)
    assert lie_in_unit_range(module.eval()(IMAGES[0])) != isinstance(end, nn.LogSigmoid)
    assert not bounded(module)


def test_constant_outputs_are_not_taken_for_them():
    module = small()
    nn.init.zeros_(module.head.weight)
    assert not bounded(module)
    assert not bounded(nn.Sequential(module, nn.Sigmoid()))


def test_networks_of_torchvision():
    network = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=2
    )
    assert not bounded(network)


def test_the_module_keeps_its_weights_and_no_hooks():
    module = nn.Sequential(UNet(2), nn.Sigmoid())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bounded(module)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert not any(layer._forward_hooks for layer in module.modules())
