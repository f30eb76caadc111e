"""State dicts of the families from their key patterns, and forward passes written from the papers.

Nothing here uses the package: names, shapes and arithmetic are stated a second time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
BLOCKS = {1: 3, 2: 4, 3: 23, 4: 3}
WIDTHS = {1: 64, 2: 128, 3: 256, 4: 512}
DILATIONS = (6, 12, 18, 24)
BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)


def convolution(generator: torch.Generator, outputs: int, inputs: int, kernel: int) -> Tensor:
    spread = math.sqrt(2 / (inputs * kernel * kernel))
    return torch.randn(outputs, inputs, kernel, kernel, generator=generator) * spread


def normalisation(generator: torch.Generator, name: str, width: int, gain: float = 1.0) -> State:
    return {
        f"{name}.weight": gain * (0.8 + 0.4 * torch.rand(width, generator=generator)),
        f"{name}.bias": 0.1 * torch.randn(width, generator=generator),
        f"{name}.running_mean": 0.1 * torch.randn(width, generator=generator),
        f"{name}.running_var": 0.8 + 0.4 * torch.rand(width, generator=generator),
    }


def resnet101(seed: int = 0) -> State:
    """conv1, bn1, layer1-4 of a bottleneck ResNet with 3, 4, 23, 3 blocks."""
    generator = torch.Generator().manual_seed(seed)
    state = {"conv1.weight": convolution(generator, 64, 3, 7)}
    state |= normalisation(generator, "bn1", 64)
    inputs = 64
    for stage, blocks in BLOCKS.items():
        width = WIDTHS[stage]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            state[f"{name}.conv1.weight"] = convolution(generator, width, inputs, 1)
            state[f"{name}.conv2.weight"] = convolution(generator, width, width, 3)
            state[f"{name}.conv3.weight"] = convolution(generator, 4 * width, width, 1)
            state |= normalisation(generator, f"{name}.bn1", width)
            state |= normalisation(generator, f"{name}.bn2", width)
            state |= normalisation(generator, f"{name}.bn3", 4 * width, gain=0.3)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = convolution(generator, 4 * width, inputs, 1)
                state |= normalisation(generator, f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return state


def head(name: str, num_classes: int, inputs: int = 2048, seed: int = 1) -> State:
    """Four 3x3 convolutions with bias."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for i in range(4):
        weight = convolution(generator, num_classes, inputs, 3)
        state[f"{name}conv2d_list.{i}.weight"] = weight
        state[f"{name}conv2d_list.{i}.bias"] = torch.randn(num_classes, generator=generator)
    return state


def with_small_variances(state: State, lowest: float, highest: float, seed: int = 5) -> State:
    """A fifth of the channels of every BatchNorm, log-uniform between the two."""
    generator = torch.Generator().manual_seed(seed)
    changed = dict(state)
    for key, variance in state.items():
        if key.endswith("running_var"):
            share = torch.rand(variance.shape, generator=generator)
            small = lowest * (highest / lowest) ** torch.rand(variance.shape, generator=generator)
            changed[key] = torch.where(share < 0.2, small, variance)
            # A channel that varies little is as far from its mean: the scale makes up for it.
            start = key.removesuffix("running_var")
            scale = (changed[key] / variance).sqrt()
            changed[f"{start}weight"] = state[f"{start}weight"] * scale
    return changed


def counters(state: State) -> State:
    """What ordinary BatchNorm keeps besides, and a frozen one does not."""
    names = [key for key in state if key.endswith("running_var")]
    return {n.replace("running_var", "num_batches_tracked"): torch.tensor(3) for n in names}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def forward(
    state: State,
    x: Tensor,
    head_name: str,
    *,
    caffe: bool,
    branches: int = 4,
    epsilon: float = 1e-5,
) -> Tensor:
    """Prepared images -> logits on the grid: a ResNet-101 of stride 8 and a sum of convolutions.

    caffe: stride in the first 1x1, one dilation for a whole stage, pooling that rounds up. Else as
    torchvision: stride in the 3x3, the first block of a stage with the dilation of the one before.
    epsilon: that of BatchNorm; 0 is FADA's FrozenBatchNorm2d, weight * rsqrt(running_var).
    """

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(var + epsilon)
        shift = state[f"{name}.bias"] - mean * scale
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(torch.relu(norm(x, "bn1")), 3, 2, 1, ceil_mode=caffe)
    dilation_before = 1
    for stage, blocks in BLOCKS.items():
        stride = 2 if stage == 2 else 1
        dilation = {1: 1, 2: 1, 3: 2, 4: 4}[stage]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            step = stride if block == 0 else 1
            spread = dilation_before if block == 0 and not caffe else dilation
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=step if caffe else 1)
            y = torch.relu(norm(y, f"{name}.bn1"))
            y = F.conv2d(
                y,
                state[f"{name}.conv2.weight"],
                stride=1 if caffe else step,
                padding=spread,
                dilation=spread,
            )
            y = torch.relu(norm(y, f"{name}.bn2"))
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=step)
                x = norm(x, f"{name}.downsample.1")
            x = torch.relu(x + y)
        dilation_before = dilation
    logits = torch.zeros(())
    for i, rate in list(enumerate(DILATIONS))[:branches]:
        weight = state[f"{head_name}conv2d_list.{i}.weight"]
        bias = state[f"{head_name}conv2d_list.{i}.bias"]
        logits = logits + F.conv2d(x, weight, bias, padding=rate, dilation=rate)
    return logits


def bgr_255(images: Tensor) -> Tensor:
    """RGB in [0, 1] -> blue, green, red of 0 to 255 less their mean, channel by channel."""
    red, green, blue = images.unbind(1)
    planes = (blue * 255 - BGR_MEAN[0], green * 255 - BGR_MEAN[1], red * 255 - BGR_MEAN[2])
    return torch.stack(planes, 1)


def imagenet(images: Tensor) -> Tensor:
    """RGB in [0, 1] -> ImageNet's normalisation, channel by channel."""
    red, green, blue = images.unbind(1)
    planes = ((red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225)
    return torch.stack(planes, 1)


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


@torch.no_grad()
def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Statistics and gains that differ from layer to layer, so that a wrong place shows; eval mode."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.8, 1.2)
            layer.bias.normal_(0, 0.1)
    return network.eval()
