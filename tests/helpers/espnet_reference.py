"""ESPNet and ESPNetv2 as plain functions of named weights, from the papers and the public checkpoints.

The functions ask for each weight by its name in the authors' checkpoints and by its shape. `Weights`
makes those that it does not have, so that one pass yields the state dict of a checkpoint.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

V2_WIDTHS = {0.5: (16, 32, 64, 128), 1.0: (32, 64, 128, 256), 2.0: (32, 128, 256, 512)}


class Weights:
    """Random weights by name, made when they are first asked for."""

    def __init__(self, eps: float):
        self.state: dict[str, Tensor] = {}
        self.eps = eps
        self.generator = torch.Generator().manual_seed(0)

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
            self.state[name] = torch.randn(shape, generator=self.generator) * scale
        assert tuple(self.state[name].shape) == shape, name
        return self.state[name]

    def conv(self, name, x, outputs, size, stride=1, dilation=1, groups=1, bias=False) -> Tensor:
        weight = self.get(f"{name}.weight", outputs, x.shape[1] // groups, size, size)
        offset = self.get(f"{name}.bias", outputs) if bias else None
        return F.conv2d(x, weight, offset, stride, dilation * (size // 2), dilation, groups)

    def up(self, name, x) -> Tensor:
        channels = x.shape[1]
        return F.conv_transpose2d(x, self.get(f"{name}.weight", channels, channels, 2, 2), stride=2)

    def norm(self, name, x) -> Tensor:
        channels = x.shape[1]
        self.state.setdefault(f"{name}.running_mean", torch.linspace(-0.1, 0.1, channels))
        self.state.setdefault(f"{name}.running_var", torch.linspace(0.5, 1.5, channels))
        scale, shift = (self.get(f"{name}.{part}", channels) for part in ("weight", "bias"))
        mean, var = (self.state[f"{name}.running_{part}"] for part in ("mean", "var"))
        return F.batch_norm(x, mean, var, scale, shift, eps=self.eps)

    def act(self, name, x) -> Tensor:
        return F.prelu(x, self.get(f"{name}.weight", x.shape[1]))


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 2, 1)


def espnet(w: Weights, x: Tensor, classes: int, p: int, q: int) -> Tensor:
    """Logits (B, classes, H, W) for images (B, 3, H, W) whose sides are multiples of 8."""

    def norm_act(name, x):
        return w.act(f"{name}.act", w.norm(f"{name}.bn", x))

    def conv_norm_act(name, x, outputs, size, stride=1):
        return norm_act(name, w.conv(f"{name}.conv", x, outputs, size, stride))

    def pyramid(name, x, outputs, size, stride):
        width = outputs // 5
        reduced = w.conv(f"{name}.c1.conv", x, width, size, stride)
        d1, d2, d4, d8, d16 = (
            w.conv(f"{name}.d{d}.conv", reduced, outputs - 4 * width if d == 1 else width, 3, 1, d)
            for d in (1, 2, 4, 8, 16)
        )
        return torch.cat([d1, d2, d2 + d4, d2 + d4 + d8, d2 + d4 + d8 + d16], 1)

    def down(name, x, outputs):
        joined = pyramid(name, x, outputs, 3, 2)
        return w.act(f"{name}.act", w.norm(f"{name}.bn", joined))

    def block(name, x, outputs, residual=True):
        joined = pyramid(name, x, outputs, 1, 1)
        return norm_act(f"{name}.bn", x + joined if residual else joined)

    e = "encoder."
    first = conv_norm_act(f"{e}level1", x, 16, 3, 2)
    second_0 = second = down(
        f"{e}level2_0", norm_act(f"{e}b1", torch.cat([first, halve(x)], 1)), 64
    )
    for i in range(p):
        second = block(f"{e}level2.{i}", second, 64)
    second = norm_act(f"{e}b2", torch.cat([second, second_0, halve(halve(x))], 1))
    third_0 = third = down(f"{e}level3_0", second, 128)
    for i in range(q):
        third = block(f"{e}level3.{i}", third, 128)
    third = norm_act(f"{e}b3", torch.cat([third_0, third], 1))

    scores = w.up("up_l3.0", w.norm("br", w.conv(f"{e}classifier.conv", third, classes, 1)))
    joined = torch.cat([w.conv("level3_C.conv", second, classes, 1), scores], 1)
    joined = block("combine_l2_l3.1", norm_act("combine_l2_l3.0", joined), classes, residual=False)
    joined = norm_act("up_l2.1", w.up("up_l2.0", joined))
    return w.up("classifier", conv_norm_act("conv", torch.cat([joined, first], 1), classes, 3))


def espnet_v2(w: Weights, x: Tensor, classes: int, scale: float) -> Tensor:
    """Logits (B, classes, H, W) for images (B, 3, H, W) whose sides are multiples of 16."""
    n1, n2, n3, n4 = V2_WIDTHS[scale]

    def conv_norm(name, x, outputs, size, groups=1, stride=1):
        return w.norm(f"{name}.bn", w.conv(f"{name}.conv", x, outputs, size, stride, 1, groups))

    def conv_norm_act(name, x, outputs, size, groups=1, stride=1):
        return w.act(f"{name}.act", conv_norm(name, x, outputs, size, groups, stride))

    def pyramid(name, x, outputs, dilations, stride=1):
        width = outputs // 4
        reduced = conv_norm_act(f"{name}.proj_1x1", x, width, 1, 4)
        branches = []
        for i, d in enumerate(dilations):
            branch = w.conv(f"{name}.spp_dw.{i}.conv", reduced, width, 3, stride, d, width)
            branches.append(branch + branches[-1] if branches else branch)
        joined = w.norm(f"{name}.br_after_cat.bn", torch.cat(branches, 1))
        joined = w.act(f"{name}.br_after_cat.act", joined)
        expanded = conv_norm(f"{name}.conv_1x1_exp", joined, outputs, 1, 4)
        activated = w.act(f"{name}.module_act", x + expanded if stride == 1 else expanded)
        return activated if stride == 1 else expanded

    def down(name, x, image, outputs, dilations):
        expanded = pyramid(f"{name}.eesp", x, outputs - x.shape[1], dilations, 2)
        small = conv_norm_act(f"{name}.inp_reinf.0", image, 3, 3)
        small = conv_norm(f"{name}.inp_reinf.1", small, outputs, 1)
        return w.act(f"{name}.act", torch.cat([halve(x), expanded], 1) + small)

    def sequence(name, x, outputs, size, groups=1):
        x = w.conv(f"{name}.cbr.0", x, outputs, size, groups=groups)
        return w.act(f"{name}.cbr.2", w.norm(f"{name}.cbr.1", x))

    def pooling(name, x, outputs, last=False):
        width = min(classes // 2, 16)
        x = sequence(f"{name}.projection_layer", x, width, 1)
        grid = x.shape[-2:]
        zoomed = []
        for i, zoom in enumerate((2.0, 1.5, 1.0, 0.5, 0.1)):
            size = tuple(max(5, math.ceil(side * zoom)) for side in grid)
            stage = f"{name}.stages.{i}"
            if zoom > 1:
                z = F.interpolate(x, size, mode="bilinear", align_corners=True)
                z = F.adaptive_avg_pool2d(w.conv(stage, z, width, 3, groups=width), grid)
            elif zoom < 1:
                z = w.conv(stage, F.adaptive_avg_pool2d(x, size), width, 3, groups=width)
                z = F.interpolate(z, grid, mode="bilinear", align_corners=True)
            else:
                z = w.conv(stage, x, width, 3, groups=width)
            zoomed.append(z)
        merge = f"{name}.merge_layer"
        joined = w.act(f"{merge}.0.br.1", w.norm(f"{merge}.0.br.0", torch.cat(zoomed, 1)))
        # The channels of the five zooms are interleaved: the first of each, the second of each, ...
        order = [zoom * width + channel for channel in range(width) for zoom in range(5)]
        merged = sequence(f"{merge}.2", joined[:, order], width, 3, width)
        out = w.conv(f"{merge}.3", merged, outputs, 1, bias=last)
        return out if last else w.act(f"{name}.br.br.1", w.norm(f"{name}.br.br.0", out))

    def gated(name, x, outputs):
        gate = w.conv(f"{name}.wt_layer.1", x.mean((2, 3), keepdim=True), outputs, 1).sigmoid()
        groups = math.gcd(x.shape[1], outputs)
        return sequence(f"{name}.expansion_layer", x, outputs, 3, groups) * gate

    def joined(number, fine, coarse, width):
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=True)
        total = gated(f"merge_enc_dec_l{number}", fine, width) + coarse
        total = w.norm(f"bu_br_l{number}.0", total)
        return w.act(f"bu_br_l{number}.1", total)

    # Branch i of four sees 3 + 2i cells, or 3 where that is beyond the stage's limit of 13, 11, 9, 7.
    early, late = (1, 2, 3, 4), (1, 1, 2, 3)
    b, quarter = "base_net.", halve(halve(x))
    first = conv_norm_act(f"{b}level1", x, n1, 3, stride=2)
    second = down(f"{b}level2_0", first, quarter, n2, early)
    third = down(f"{b}level3_0", second, halve(quarter), n3, early)
    for i in range(3):
        third = pyramid(f"{b}level3.{i}", third, n3, early)
    fourth = down(f"{b}level4_0", third, halve(halve(quarter)), n4, early)
    for i in range(7):
        fourth = pyramid(f"{b}level4.{i}", fourth, n4, late)

    decoded = joined(2, third, pooling("bu_dec_l1", fourth, 64), 64)
    decoded = joined(3, second, pooling("bu_dec_l2", decoded, 48), 48)
    decoded = joined(4, first, pooling("bu_dec_l3", decoded, 32), 32)
    logits = pooling("bu_dec_l4", decoded, classes, last=True)
    return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=True)
