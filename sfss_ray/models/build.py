"""The networks by name, and the file a model is kept in.

A model file is a plain dict that `torch.load(path, weights_only=True)` reads:
`format`, `network`, `classes`, `class_set`, `state_dict`, `facts` (who made it, from what).
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfss_ray.data.class_sets import ClassSet, class_set_of
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.compact import CompactBody
from sfss_ray.models.segmenter import Segmenter

FORMAT = "sfss_ray.model/1"
_KEYS = ("network", "classes", "class_set", "state_dict", "facts")


def _compact(num_classes: int, width: int = 16) -> Segmenter:
    return Segmenter(CompactBody(width), nn.Conv2d(4 * width, num_classes, 1))


def _compact_wide(num_classes: int) -> Segmenter:
    return _compact(num_classes, width=32)


class _TorchvisionBody(nn.Module):
    """Backbone and the head up to its last convolution, under torchvision's own names."""

    def __init__(self, network: nn.Module, head: nn.Sequential):
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images)["out"])


def _torchvision(builder_name: str) -> Callable[[int], Segmenter]:
    def build(num_classes: int) -> Segmenter:
        from torchvision.models import segmentation  # costs a second that other networks save

        builder = getattr(segmentation, builder_name)
        network = builder(weights=None, weights_backbone=None, num_classes=num_classes)
        layers = list(network.get_submodule("classifier").children())
        return Segmenter(_TorchvisionBody(network, nn.Sequential(*layers[:-1])), layers[-1])

    return build


NETWORKS: dict[str, Callable[[int], Segmenter]] = {
    "compact": _compact,
    "compact_wide": _compact_wide,
    "deeplabv3_mobilenet_v3_large": _torchvision("deeplabv3_mobilenet_v3_large"),
    "deeplabv3_resnet50": _torchvision("deeplabv3_resnet50"),
    "deeplabv3_resnet101": _torchvision("deeplabv3_resnet101"),
    "fcn_resnet50": _torchvision("fcn_resnet50"),
}


def build_network(name: str, num_classes: int) -> Segmenter:
    """A network with random weights; ConfigError lists the known names."""
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}: known are {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes)


@dataclass
class SourceModel:
    """A network with its classes and facts, as read from a model file."""

    network: Segmenter
    name: str
    classes: ClassSet
    facts: dict[str, Any] = field(default_factory=dict)


def save_model(path: Path | str, model: SourceModel, *, half: bool = False) -> Path:
    """Write a model file, whole or not at all; `half` keeps floating-point weights in float16."""
    state = {k: v.detach().cpu() for k, v in model.network.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    content = {
        "format": FORMAT,
        "network": model.name,
        "classes": list(model.classes.classes),
        "class_set": model.classes.name,
        "state_dict": state,
        "facts": model.facts,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, temporary)
    temporary.replace(path)
    return path


def load_model(path: Path | str, device: torch.device | str = "cpu") -> SourceModel:
    """Read a model file onto `device`, in float32 and eval mode.

    Raises CheckpointError when the file is missing, no checkpoint, no model file of this package, or
    does not fit the network it names.
    """
    content = _read_checkpoint(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        keys = ", ".join(list(map(str, content))[:4]) if isinstance(content, dict) else "no dict"
        raise CheckpointError(
            f"source model {str(path)!r} is a checkpoint of another kind (found: {keys}); give a file"
            " made by `sfss-ray pretrain` or sfss_ray.models.build.save_model"
        )
    absent = [key for key in _KEYS if key not in content]
    if absent:
        raise CheckpointError(
            f"source model {str(path)!r} lacks {', '.join(absent)}: the file was edited; make it again"
        )
    classes = class_set_of(content["classes"], content["class_set"])
    if content["network"] not in NETWORKS:
        raise CheckpointError(
            f"source model {str(path)!r} holds the unknown network {content['network']!r}: known are"
            f" {', '.join(NETWORKS)}"
        )
    network = build_network(content["network"], len(classes))
    try:
        network.load_state_dict({k: _full(v) for k, v in content["state_dict"].items()})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        first = first if len(first) <= 200 else f"{first[:200]} ..."
        raise CheckpointError(
            f"source model {str(path)!r} does not fit network {content['network']!r} ({first}); the"
            " file is damaged or was edited: make it again"
        ) from error
    return SourceModel(network.to(device).eval(), content["network"], classes, content["facts"])


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _read_checkpoint(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"source model {str(path)!r} does not exist; give the path of a model file"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"source model {str(path)!r} is no checkpoint of plain weights; give a file made by"
            " torch.save from tensors, numbers and strings alone"
        ) from error
    except Exception as error:  # damaged archives raise RuntimeError, EOFError, OSError and others
        raise CheckpointError(
            f"source model {str(path)!r} cannot be read ({type(error).__name__}): the file is"
            " damaged or incomplete; copy it again"
        ) from error


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
