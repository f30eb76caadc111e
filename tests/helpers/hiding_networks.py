"""Networks with attributes that hide torch's methods, such as ESPNet's list `modules`."""

import torch
from torch import Tensor, nn

HIDDEN_METHODS = [
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
    """A convolution, BatchNorm and dropout, in a list whose attribute has a chosen name."""

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
    """A network of stride 4; the network and one of its layers have the list."""

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
    """A network with a ModuleList named `modules`, which torch registers but cannot return by name."""

    def __init__(self, classes: int = 5):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, classes, 1)]
        self.modules = nn.ModuleList(layers)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules["modules"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x)
        return x
