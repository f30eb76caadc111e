"""A small network of a user, and wrapping it as a source model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray import SourceModel, wrap_model

CLASSES = ["road", "sky", "boat"]


class Net(nn.Module):
    """Features at stride 4, logits at full size, and an auxiliary head that may not take part."""

    def __init__(self, output: str = "tensor"):
        super().__init__()
        self.output = output
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(8))
        self.decoder = nn.ModuleDict({"fuse": nn.Conv2d(8, 6, 3, 2, 1)})
        self.classifier = nn.Conv2d(6, 3, 1)
        self.auxiliary = nn.Conv2d(6, 3, 1)
        self.register_buffer("offset", torch.tensor(0.25), persistent=False)

    def forward(self, x: Tensor) -> Any:
        features = self.decoder["fuse"](self.encoder(x)) + self.offset
        logits = F.interpolate(self.classifier(features), x.shape[-2:], mode="bilinear")
        if self.output == "mapping":
            return {"out": logits, "aux": self.auxiliary(features)}
        if self.output == "object":
            return type("Output", (), {"logits": logits})()
        return [logits] if self.output == "list" else logits


def make_net(output: str = "tensor") -> Net:
    """Return a network with fixed weights, in eval mode."""
    torch.manual_seed(0)
    return Net(output).eval()


def wrap(module: nn.Module, **options: Any) -> SourceModel:
    """Wrap a `Net`, or another module with options of its own."""
    options = {"classes": CLASSES, "feature_layer": "decoder.fuse"} | options
    return wrap_model(module, **options)
