"""Networks whose layers have attributes that hide torch's methods, as ESPNet's list `modules` does."""

import torch
from torch import Tensor, nn

HIDDEN = [
    "modules",
    "named_modules",
    "children",
    "named_children",
    "parameters",
    "named_parameters",
    "buffers",
    "named_buffers",
    "state_dict",
    "train",
    "eval",
]


class Block(nn.Module):
    """A convolution, batch statistics and dropout, listed under a name of choice."""

    def __init__(self, name: str, width: int):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 4, 1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.list_name = name
        setattr(self, name, [self.conv, self.norm, self.drop])

    def forward(self, x: Tensor) -> Tensor:
        for layer in vars(self)[self.list_name]:
            x = layer(x)
        return x


class HidingNet(nn.Module):
    """Features at stride 4; the network and a layer of it both have the list."""

    def __init__(self, name: str, classes: int = 5, width: int = 8):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Block(name, width)
        self.classifier = nn.Conv2d(width, classes, 1)
        setattr(self, name, [self.encoder, self.classifier])

    def forward(self, x: Tensor) -> Tensor:
        encoder, classifier = vars(self)[self.encoder.list_name]
        return classifier(encoder(x))


class RegisteredNet(nn.Module):
    """A ModuleList named `modules`, which torch registers but cannot return by that name."""

    def __init__(self, classes: int = 5):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, classes, 1)]
        self.modules = nn.ModuleList(layers)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules["modules"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x)
        return x
