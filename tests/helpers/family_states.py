"""State dicts of DeepLabV2 by the published key patterns, and a forward pass written from the paper.

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


def conv_weight(generator: torch.Generator, outputs: int, inputs: int, kernel: int) -> Tensor:
    """Return the weight of a convolution that roughly keeps the variance of its input."""
    deviation = math.sqrt(2 / (inputs * kernel * kernel))
    return torch.randn(outputs, inputs, kernel, kernel, generator=generator) * deviation


def batch_norm(generator: torch.Generator, name: str, width: int, gain: float = 1.0) -> State:
    """Return a BatchNorm without its batch counter."""
    return {
        f"{name}.weight": gain * (0.8 + 0.4 * torch.rand(width, generator=generator)),
        f"{name}.bias": 0.1 * torch.randn(width, generator=generator),
        f"{name}.running_mean": 0.1 * torch.randn(width, generator=generator),
        f"{name}.running_var": 0.8 + 0.4 * torch.rand(width, generator=generator),
    }


def resnet101(seed: int = 0) -> State:
    """Return conv1, bn1 and layer1-4 of a bottleneck ResNet with 3, 4, 23, 3 blocks."""
    generator = torch.Generator().manual_seed(seed)
    state = {"conv1.weight": conv_weight(generator, 64, 3, 7)}
    state |= batch_norm(generator, "bn1", 64)
    inputs = 64
    for stage, blocks in BLOCKS.items():
        width = WIDTHS[stage]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            state[f"{name}.conv1.weight"] = conv_weight(generator, width, inputs, 1)
            state[f"{name}.conv2.weight"] = conv_weight(generator, width, width, 3)
            state[f"{name}.conv3.weight"] = conv_weight(generator, 4 * width, width, 1)
            state |= batch_norm(generator, f"{name}.bn1", width)
            state |= batch_norm(generator, f"{name}.bn2", width)
            state |= batch_norm(generator, f"{name}.bn3", 4 * width, gain=0.3)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = conv_weight(generator, 4 * width, inputs, 1)
                state |= batch_norm(generator, f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return state


def deeplab_v2_head(prefix: str, num_classes: int, inputs: int = 2048, seed: int = 1) -> State:
    """Return the four 3x3 convolutions with bias of a classifier."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for i in range(4):
        weight = conv_weight(generator, num_classes, inputs, 3)
        state[f"{prefix}conv2d_list.{i}.weight"] = weight
        state[f"{prefix}conv2d_list.{i}.bias"] = torch.randn(num_classes, generator=generator)
    return state


def with_small_variances(state: State, lowest: float, highest: float, seed: int = 5) -> State:
    """Replace the variance of a fifth of all BatchNorm channels, log-uniformly between two bounds."""
    generator = torch.Generator().manual_seed(seed)
    changed = dict(state)
    for key, variance in state.items():
        if key.endswith("running_var"):
            chosen = torch.rand(variance.shape, generator=generator) < 0.2
            small = lowest * (highest / lowest) ** torch.rand(variance.shape, generator=generator)
            changed[key] = torch.where(chosen, small, variance)
            # The test images do not vary less, so a smaller scale keeps the gain of the channel.
            layer = key.removesuffix("running_var")
            scale = (changed[key] / variance).sqrt()
            changed[f"{layer}weight"] = state[f"{layer}weight"] * scale
    return changed


def batch_counters(state: State) -> State:
    """Return the batch counters of ordinary BatchNorms, which frozen ones do not have."""
    names = [key for key in state if key.endswith("running_var")]
    return {n.replace("running_var", "num_batches_tracked"): torch.tensor(3) for n in names}


def prefixed(prefix: str, state: State) -> State:
    """Return a state dict with a prefix before every key."""
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def deeplab_v2_logits(
    state: State,
    x: Tensor,
    head_prefix: str,
    *,
    caffe: bool,
    branches: int = 4,
    epsilon: float = 1e-5,
) -> Tensor:
    """Return the logits of prepared images: a ResNet-101 of stride 8 and a sum of convolutions.

    Args:
        state: The whole network.
        x: Prepared images.
        head_prefix: The prefix of the classifier's keys.
        caffe: Whether a block's stride is in its first 1x1 convolution, all blocks of a stage have its
            dilation, and pooling rounds up. Otherwise as in torchvision: the stride is in the 3x3, and
            the first block of a stage has the dilation of the previous stage.
        branches: How many of the classifier's convolutions are summed.
        epsilon: BatchNorm's; 0 is FADA's FrozenBatchNorm2d, weight * rsqrt(running_var).
    """

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(var + epsilon)
        shift = state[f"{name}.bias"] - mean * scale
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(torch.relu(norm(x, "bn1")), 3, 2, 1, ceil_mode=caffe)
    previous_dilation = 1
    for stage, blocks in BLOCKS.items():
        stage_stride = 2 if stage == 2 else 1
        stage_dilation = {1: 1, 2: 1, 3: 2, 4: 4}[stage]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = stage_stride if block == 0 else 1
            dilation = previous_dilation if block == 0 and not caffe else stage_dilation
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride if caffe else 1)
            y = torch.relu(norm(y, f"{name}.bn1"))
            y = F.conv2d(
                y,
                state[f"{name}.conv2.weight"],
                stride=1 if caffe else stride,
                padding=dilation,
                dilation=dilation,
            )
            y = torch.relu(norm(y, f"{name}.bn2"))
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = torch.relu(x + y)
        previous_dilation = stage_dilation
    logits = torch.zeros(())
    for i, dilation in list(enumerate(DILATIONS))[:branches]:
        weight = state[f"{head_prefix}conv2d_list.{i}.weight"]
        bias = state[f"{head_prefix}conv2d_list.{i}.bias"]
        logits = logits + F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    return logits


def to_caffe(images: Tensor) -> Tensor:
    """Convert RGB in [0, 1] to blue, green, red of 0 to 255 minus their mean, channel by channel."""
    red, green, blue = images.unbind(1)
    planes = (blue * 255 - BGR_MEAN[0], green * 255 - BGR_MEAN[1], red * 255 - BGR_MEAN[2])
    return torch.stack(planes, 1)


def to_imagenet(images: Tensor) -> Tensor:
    """Convert RGB in [0, 1] to ImageNet's normalisation, channel by channel."""
    red, green, blue = images.unbind(1)
    planes = ((red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225)
    return torch.stack(planes, 1)


def to_mmseg(images: Tensor) -> Tensor:
    """Convert RGB in [0, 1] to mmsegmentation's preprocessing of RGB of 0 to 255, channel by channel."""
    red, green, blue = (255 * images).unbind(1)
    planes = ((red - 123.675) / 58.395, (green - 116.28) / 57.12, (blue - 103.53) / 57.375)
    return torch.stack(planes, 1)


def upsample_corners(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample bilinearly with aligned corners."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


@torch.no_grad()
def randomise_batch_norm(network: torch.nn.Module) -> torch.nn.Module:
    """Give each BatchNorm its own statistics, so that swapped layers show; return it in eval mode."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.8, 1.2)
            layer.bias.normal_(0, 0.1)
    return network.eval()
