"""A source model, and the file this package keeps it in.

A model file is a plain dict that `torch.load(path, weights_only=True)` reads: `format`, `network`,
`classes`, `class_set`, `card` (how images become its input), `state_dict`, `facts` (who made it, from
what), and for a user's own module `feature_layer` and `example_size`. A network that was built with
options (strides, the kind of a head) has them under `options`, and a format of its own, so that an
earlier version of this package, which would ignore them, refuses the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sfss_ray.data.class_sets import ClassSet, class_set_of
from sfss_ray.errors import CheckpointError, ConfigError, SfssError
from sfss_ray.models.architectures.catalogue import NETWORKS, build_network
from sfss_ray.models.card import Card
from sfss_ray.models.load_report import OWN_FAMILY, LoadReport, compare, refuse_unfit
from sfss_ray.models.reading import read_checkpoint
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.user_code.custom import (
    CUSTOM,
    WrappedSegmenter,
    with_room_for_weights,
    without_weights,
)
from sfss_ray.models.user_code.layers import torch_methods
from sfss_ray.storage.files import write_torch

FORMAT = "sfss_ray.model/2"
_WITH_OPTIONS = "sfss_ray.model/3"
_WITHOUT_CARD = "sfss_ray.model/1"
_KEYS = ("network", "classes", "class_set", "state_dict", "facts")

Value = TypeVar("Value")


class _OfNetwork(Generic[Value]):
    """An attribute of a source model that its network keeps, so that the network alone is enough."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: SourceModel, owner: type | None = None) -> Value:
        return getattr(model.network, self.name)

    def __set__(self, model: SourceModel, value: Value) -> None:
        setattr(model.network, self.name, value)


class SourceModel(nn.Module):
    """A network with its classes and facts: RGB images (B, 3, H, W) in [0, 1] -> logits (B, C, H, W).

    Args:
        network: The segmenter; it prepares images itself, as its card says.
        name: Its key in NETWORKS, or `custom`.
        classes: What its outputs mean.
        facts: Who made it, from what.
        load_report: How the file it was read from fitted it.
    """

    name = _OfNetwork[str]()
    classes = _OfNetwork[ClassSet]()
    facts = _OfNetwork[dict[str, Any]]()
    load_report = _OfNetwork["LoadReport | None"]()

    def __init__(
        self,
        network: Segmenter,
        name: str,
        classes: ClassSet,
        facts: dict[str, Any] | None = None,
        load_report: LoadReport | None = None,
    ):
        super().__init__()
        self.network = network
        self.name = name
        self.classes = classes
        self.facts = facts or {}
        self.load_report = load_report

    @property
    def card(self) -> Card:
        """What the network expects of images, and its classes."""
        return self.network.card(self.classes.classes)

    @property
    def architecture(self) -> nn.Module | None:
        """A user's own module without its weights, which a model file cannot hold; else None."""
        return without_weights(self.network.body) if self.name == CUSTOM else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) at the size of the images."""
        return self.network.logits(images)


def source_model_of(given: Any) -> SourceModel:
    """A source model in memory, of itself or of its network (`AdaptResult.student`).

    ConfigError for anything else.
    """
    if isinstance(given, SourceModel):
        return given
    if isinstance(given, Segmenter):
        if given.classes is None:
            raise ConfigError(
                f"the network given as a model ({type(given).__name__}) has no class names: give"
                " sfss_ray.SourceModel(network, name, classes)"
            )
        return SourceModel(given, given.name, given.classes, given.facts, given.load_report)
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    if isinstance(given, nn.Module):
        raise ConfigError(
            f"the model given is a torch module ({kind}), which says neither what its outputs mean nor"
            " what images it takes: wrap it, sfss_ray.wrap_model(module, classes=..., feature_layer=...)"
        )
    raise ConfigError(
        f"the model given is of type {kind}: allowed are the path of a checkpoint, a source model"
        " (load_source_model, load_model, wrap_model) and the student of a result"
    )


def save_model(path: Path | str, model: SourceModel | Segmenter, *, half: bool = False) -> Path:
    """Write a model file, whole or not at all; `half` keeps floating-point weights in float16.

    `model` is a source model, or the network of one (`AdaptResult.student`).
    """
    model = source_model_of(model)
    network = model.network
    state = {k: v.detach().cpu() for k, v in network.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    content = {
        "format": FORMAT,
        "network": model.name,
        "classes": list(model.classes.classes),
        "class_set": model.classes.name,
        "card": model.card.to_dict(),
        "state_dict": state,
        "facts": model.facts,
    }
    if isinstance(network, WrappedSegmenter):
        content["feature_layer"] = network.feature_layer
        content["example_size"] = list(network.example_size)
    if network.options:
        content |= {"format": _WITH_OPTIONS, "options": network.options}
    return write_torch(Path(path), content)


def load_model(
    path: Path | str, device: torch.device | str = "cpu", *, module: nn.Module | None = None
) -> SourceModel:
    """Read a model file of this package onto `device`, in float32 and eval mode.

    Args:
        path: A file made by `save_model`, `pretrain_source` or a training (student.pt).
        device: Where the network goes.
        module: The user's own module, for a file that was made with one: its weights come from the
            file, into a copy.

    Raises:
        CheckpointError: the file is missing, no checkpoint, no model file of this package, does not
            fit the network it names, or needs `module`.
    """
    content = read_checkpoint(Path(path))
    if not is_model_file(content):
        keys = ", ".join(list(map(str, content))[:4]) if isinstance(content, dict) else "no dict"
        raise CheckpointError(
            f"source model {str(path)!r} is a checkpoint of another kind (found: {keys}); read it with"
            " sfss_ray.load_source_model, or give a file made by `sfss-ray pretrain` or save_model"
        )
    return model_of(content, path, module).to(device).eval()


def is_model_file(content: Any) -> bool:
    """Whether a checkpoint's content is a model file of this package."""
    formats = (FORMAT, _WITH_OPTIONS, _WITHOUT_CARD)
    return isinstance(content, dict) and content.get("format") in formats


def model_of(content: dict[str, Any], path: Path | str, module: nn.Module | None) -> SourceModel:
    """The model in the content of a model file, on the CPU."""
    later = {FORMAT: ("card",), _WITH_OPTIONS: ("card", "options")}
    keys = (*_KEYS, *later.get(content["format"], ()))
    absent = [key for key in keys if key not in content]
    if absent:
        raise CheckpointError(
            f"source model {str(path)!r} lacks {', '.join(absent)}: the file was edited; make it again"
        )
    classes = class_set_of(content["classes"], content["class_set"])
    # Files of the first format were made by networks of the default card.
    card = Card.from_dict(content.get("card", {}))
    network = _network_of(content, path, len(classes), card, module)
    report = compare(OWN_FAMILY, content["network"], content["state_dict"], network.state_dict())
    refuse_unfit(report, path, "the file is damaged or was edited: make it again")
    state = {k: full_precision(v) for k, v in content["state_dict"].items()}
    network.load_state_dict(state, strict=False)
    if isinstance(network, WrappedSegmenter):
        network.freeze_idle_weights()
    return SourceModel(network, content["network"], classes, content["facts"], report)


def _network_of(
    content: dict[str, Any],
    path: Path | str,
    num_classes: int,
    card: Card,
    module: nn.Module | None,
) -> Segmenter:
    name = content["network"]
    if name == CUSTOM:
        if module is None:
            raise CheckpointError(
                f"source model {str(path)!r} holds the weights of a module of your own: give the module"
                " too, sfss_ray.load_model(path, module=...), and the result in place of the path"
            )
        return _custom_network(content, path, card, module)
    if name not in NETWORKS:
        raise CheckpointError(
            f"source model {str(path)!r} holds the unknown network {name!r}: known are"
            f" {', '.join(NETWORKS)}"
        )
    try:
        network = build_network(name, num_classes, _options_of(content))
    except SfssError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"source model {str(path)!r}: the options {content.get('options')!r} of network {name!r}"
            " cannot be used: the file was edited; make it again"
        ) from error
    return network.use_card(card)


def _options_of(content: dict[str, Any]) -> dict[str, Any]:
    """The options a file was made with."""
    options = dict(content.get("options", {}))
    bottleneck = "body.decode_head.bottleneck.depthwise_conv.conv.weight"
    if content["format"] != _WITH_OPTIONS and bottleneck in content["state_dict"]:
        # DeepLabV3+ was built with another bottleneck before networks had options.
        options["separable_bottleneck"] = True
    return options


def _custom_network(
    content: dict[str, Any], path: Path | str, card: Card, module: nn.Module
) -> Segmenter:
    body = with_room_for_weights(module)
    state = {k.removeprefix("body."): full_precision(v) for k, v in content["state_dict"].items()}
    with torch_methods(body):
        report = compare(OWN_FAMILY, CUSTOM, state, body.state_dict())
        refuse_unfit(report, path, "give the module that the file was made with")
        body.load_state_dict(state, strict=False)
    height, width = content["example_size"]
    return WrappedSegmenter(body, content["feature_layer"], card, (height, width))


def full_precision(tensor: Tensor) -> Tensor:
    """Floating-point tensors in float32, others as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor
