"""The source model in memory, and the file format that stores it.

A model file is a plain dict that `torch.load(path, weights_only=True)` reads:

- `format`, `network`, `classes`, `class_set`, `card` (the preprocessing), `state_dict`, and `facts` (who
  made it, and from what);
- for a user's own module, `feature_layer`, `example_size`, `size_multiple` and `title`;
- for a network built with options (strides, the type of a head), `options`;
- for a network with class groups, `class_groups` and `options`. `classes` are the groups then, and
  `card` has the names of the outputs.

Files with options and files with class groups have format names of their own: earlier versions of this
package would ignore these entries, so they must refuse the file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import ClassSet, class_set_of
from sfss_ray.errors import CheckpointError, ConfigError, SfssError
from sfss_ray.models.architectures.catalogue import NETWORKS, build_network
from sfss_ray.models.architectures.transformers_networks import TRANSFORMERS
from sfss_ray.models.card import Card
from sfss_ray.models.checkpoint_copy import checkpoint_on_disk
from sfss_ray.models.load_report import MODEL_FILE_FAMILY, LoadReport, compare, require_fit
from sfss_ray.models.reading import read_checkpoint
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.user_code.custom import (
    CUSTOM,
    WrappedSegmenter,
    Wrapping,
    unwrapped,
    with_empty_weights,
    without_weights,
)
from sfss_ray.models.user_code.layers import torch_methods
from sfss_ray.models.user_code.probing import Probe, in_full_precision
from sfss_ray.storage.files import write_torch
from sfss_ray.storage.places import Place, to_place

FORMAT = "sfss_ray.model/2"
_FORMAT_WITH_OPTIONS = "sfss_ray.model/3"
_FORMAT_WITH_GROUPS = "sfss_ray.model/4"
_FORMAT_WITHOUT_CARD = "sfss_ray.model/1"
_COMMON_KEYS = ("network", "classes", "class_set", "state_dict", "facts")
_ADDED_KEYS = {
    _FORMAT_WITHOUT_CARD: (),
    FORMAT: ("card",),
    _FORMAT_WITH_OPTIONS: ("card", "options"),
    _FORMAT_WITH_GROUPS: ("card", "options", "class_groups"),
}

Value = TypeVar("Value")


class _NetworkAttribute(Generic[Value]):
    """An attribute of a source model that its network stores, so that the network alone suffices."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: SourceModel, owner: type | None = None) -> Value:
        return getattr(model.network, self.name)

    def __set__(self, model: SourceModel, value: Value) -> None:
        setattr(model.network, self.name, value)


class SourceModel(nn.Module):
    """A network with its classes and facts, mapping RGB images in [0, 1] to logits of the same size.

    Args:
        network: The segmenter. It preprocesses images itself, as its card says.
        name: Its key in NETWORKS, or `custom`.
        classes: The meaning of its logits: of its outputs, or of their groups where it has any.
        facts: Who made it, and from what.
        load_report: How the file it was read from fitted it.
    """

    name = _NetworkAttribute[str]()
    classes = _NetworkAttribute[ClassSet]()
    facts = _NetworkAttribute[dict[str, Any]]()
    load_report = _NetworkAttribute["LoadReport | None"]()

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
    def outputs(self) -> ClassSet:
        """The classes of the network's outputs, which differ from `classes` where those are groups."""
        return self.network.output_classes or self.classes

    @property
    def card(self) -> Card:
        """The preprocessing of the network, and the classes of its outputs."""
        return self.network.card(self.outputs.classes)

    @property
    def title(self) -> str:
        """The network's name for people: its key, its class in transformers, or the module's name."""
        network = self.network
        if isinstance(network, WrappedSegmenter):
            return network.wrapping.title
        return network.options["architecture"] if self.name == TRANSFORMERS else self.name

    @property
    def architecture(self) -> nn.Module | None:
        """The user's own module without its weights, or None for a network of this package.

        A model file cannot hold the code of a module.
        """
        return without_weights(self.network.body) if self.name == CUSTOM else None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C, H, W) for RGB images (B, 3, H, W) in [0, 1]."""
        return self.network.logits(images)


def as_source_model(model: Any) -> SourceModel:
    """Return a model in memory as a source model; it may be the network of one (`AdaptResult.student`).

    Raises:
        ConfigError: `model` is anything else.
    """
    if isinstance(model, SourceModel):
        return model
    if isinstance(model, Segmenter):
        if model.classes is None:
            raise ConfigError(
                f"the network given as a model ({type(model).__name__}) has no class names: give"
                " sfss_ray.SourceModel(network, name, classes)"
            )
        return SourceModel(model, model.name, model.classes, model.facts, model.load_report)
    type_name = f"{type(model).__module__}.{type(model).__qualname__}"
    if isinstance(model, nn.Module):
        raise ConfigError(
            f"the model given is a torch module ({type_name}), which says neither what its outputs mean"
            " nor what images it takes: wrap it,"
            " sfss_ray.wrap_model(module, classes=...)"
        )
    raise ConfigError(
        f"the model given is of type {type_name}: allowed are the path of a checkpoint, a source model"
        " (load_source_model, load_model, wrap_model) and the student of a result"
    )


def save_model(path: Place | str, model: SourceModel | Segmenter, *, half: bool = False) -> Place:
    """Write a model file, completely or not at all, and return its path.

    Args:
        path: The file. Missing folders are made.
        model: A source model, or the network of one (`AdaptResult.student`).
        half: Store floating-point weights in float16.
    """
    model = as_source_model(model)
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
        entries = dataclasses.asdict(network.wrapping)
        content |= entries | {"example_size": list(network.example_size)}
    if network.options:
        content |= {"format": _FORMAT_WITH_OPTIONS, "options": network.options}
    if network.class_groups is not None:
        groups = network.class_groups.to_dict()
        content |= {
            "format": _FORMAT_WITH_GROUPS,
            "options": network.options,
            "class_groups": groups,
        }
    return write_torch(to_place(path), content)


def load_model(
    path: Place | str, device: torch.device | str = "cpu", *, module: nn.Module | None = None
) -> SourceModel:
    """Read a model file of this package onto a device, in float32 and eval mode.

    Args:
        path: A file made by `save_model`, `pretrain_source` or a training (student.pt).
        device: The device of the network.
        module: The user's own module, for a file that was made with one. It is copied, and the weights
            of the copy come from the file.

    Raises:
        CheckpointError: the file is missing, is not a model file of this package, does not fit the
            network that it names, or needs `module`.
    """
    content = read_content(to_place(path))
    if not is_model_file(content):
        keys = ", ".join(list(map(str, content))[:4]) if isinstance(content, dict) else "no dict"
        raise CheckpointError(
            f"source model {str(path)!r} is a checkpoint of another kind (found: {keys}); read it with"
            " sfss_ray.load_source_model, or give a file made by `sfss-ray pretrain` or save_model"
        )
    return model_from_content(content, path, module).to(device).eval()


def read_content(path: Place) -> dict[str, Any]:
    """Return the content of a model file, on a disk or in object storage.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with checkpoint_on_disk(path) as file:
        return read_checkpoint(Path(file))


def is_model_file(content: Any) -> bool:
    """Whether the content of a checkpoint is that of a model file of this package."""
    return isinstance(content, dict) and content.get("format") in _ADDED_KEYS


def model_from_content(
    content: dict[str, Any], path: Place | str, module: nn.Module | None
) -> SourceModel:
    """Return the model in the content of a model file, on the CPU; `path` is for messages."""
    keys = (*_COMMON_KEYS, *_ADDED_KEYS[content["format"]])
    missing = [key for key in keys if key not in content]
    if missing:
        raise CheckpointError(
            f"source model {str(path)!r} lacks {', '.join(missing)}: the file was edited; make it again"
        )

    # Files of the first format have no card: all networks had the default preprocessing then.
    card = Card.from_dict(content.get("card", {}))
    has_groups = "class_groups" in content
    outputs = card.classes if has_groups else tuple(content["classes"])
    classes = class_set_of(outputs, "custom" if has_groups else content["class_set"])
    if content["network"] == CUSTOM:
        network = _custom_network(content, path, card, module)
    elif module is not None:
        raise CheckpointError(
            f"source model {str(path)!r} holds the network {content['network']}, which this package"
            " builds: leave out the module, on the command line --architecture"
        )
    else:
        network = _known_network(content, path, len(classes)).use_card(card)

    # load_state_dict would raise an error of many lines, so the fit is checked before.
    title = network.wrapping.title if isinstance(network, WrappedSegmenter) else content["network"]
    report = compare(MODEL_FILE_FAMILY, title, content["state_dict"], network.state_dict())
    require_fit(report, path, "the file is damaged or was edited: make it again")
    state = {k: full_precision(v) for k, v in content["state_dict"].items()}
    network.load_state_dict(state, strict=False)
    if isinstance(network, WrappedSegmenter):
        network.freeze_idle_weights()
    model = SourceModel(network, content["network"], classes, content["facts"], report)
    if has_groups:
        network.use_groups(_class_groups(content, path, classes), classes)
    return model


def _class_groups(content: dict[str, Any], path: Place | str, outputs: ClassSet) -> ClassGroups:
    """Return the class groups of a file, after a check that they are groups of its outputs."""
    try:
        return ClassGroups.from_dict(content["class_groups"]).fitted(outputs)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"source model {str(path)!r}: its class groups cannot be used: the file was edited; make it"
            " again"
        ) from error


def _known_network(content: dict[str, Any], path: Place | str, num_classes: int) -> Segmenter:
    """Build the network that a file names, with random weights."""
    name = content["network"]
    if name not in NETWORKS:
        raise CheckpointError(
            f"source model {str(path)!r} holds the unknown network {name!r}: known are"
            f" {', '.join(NETWORKS)}"
        )
    try:
        return build_network(name, num_classes, _network_options(content))
    except SfssError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"source model {str(path)!r}: the options {content.get('options')!r} of network {name!r}"
            " cannot be used: the file was edited; make it again"
        ) from error


def _network_options(content: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the network of a file was built with."""
    options = dict(content.get("options", {}))
    bottleneck = "body.decode_head.bottleneck.depthwise_conv.conv.weight"
    if "options" not in content and bottleneck in content["state_dict"]:
        # Before networks had options, DeepLabV3+ was built with a separable bottleneck.
        options["separable_bottleneck"] = True
    return options


def _custom_network(
    content: dict[str, Any], path: Place | str, card: Card, module: nn.Module | None
) -> Segmenter:
    """Wrap a copy of the user's module that has the weights of a file."""
    if module is None:
        raise CheckpointError(
            f"source model {str(path)!r} holds the weights of a module of your own: give the module"
            " too, in Python sfss_ray.load_model(path, module=...) in place of the path, on the command"
            " line --architecture FILE.py:FUNCTION"
        )
    module = unwrapped(module)  # the file has its own wrapping
    body = with_empty_weights(in_full_precision(module))
    state = {k.removeprefix("body."): full_precision(v) for k, v in content["state_dict"].items()}
    with torch_methods(body):
        report = compare(MODEL_FILE_FAMILY, CUSTOM, state, body.state_dict())
        advice = "give the module that the file was made with"
        require_fit(report, path, advice)
        if not report.matched:
            title = type(module).__name__
            raise CheckpointError(
                f"source model {str(path)!r} has no tensor of the module {title}: {advice}"
            )
        body.load_state_dict(state, strict=False)
    height, width = content["example_size"]
    num_classes = len(card.classes) or len(content["classes"])
    # Earlier versions of this package stored neither the multiple nor the name.
    multiple = content.get("size_multiple")
    if multiple is None:
        multiple, _ = Probe(body, card, num_classes).find_sizes((height, width))
    title = content.get("title", type(module).__name__)
    wrapping = Wrapping(content["feature_layer"], (height, width), multiple, title)
    return WrappedSegmenter(body, card, wrapping, num_classes)


def full_precision(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in float32, and any other tensor unchanged."""
    return tensor.float() if tensor.is_floating_point() else tensor
