"""Tests of the hash of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sfss_ray.models.read_file import weights_sha256


def test_the_hash_is_that_of_names_and_values():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    same, other, buffer = (copy.deepcopy(network) for _ in range(3))
    with torch.no_grad():
        other[0].bias += 1
        buffer[1].running_mean += 1
    assert weights_sha256(same) == weights_sha256(network)
    renamed = nn.Sequential(nn.Sequential(network))
    digests = {weights_sha256(module) for module in (network, other, buffer, renamed)}
    assert len(digests) == 4
