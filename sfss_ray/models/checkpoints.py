"""Source models from checkpoints of the field, recognised by their keys and checked tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from sfss_ray.config import SourceWeights
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_16, ClassSet, class_set_of
from sfss_ray.data.group_files import ClassGroupsLike, find_class_groups
from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.architectures.transformers_networks import TRANSFORMERS
from sfss_ray.models.card import CardLike, card_values, class_names, require_names
from sfss_ray.models.checkpoint_copy import checkpoint_on_disk
from sfss_ray.models.families import FAMILIES, RecognisedFile
from sfss_ray.models.families.copies import choose_copy, no_ema_copy_message
from sfss_ray.models.hub_cache import resolve_source
from sfss_ray.models.huggingface_folder import CONFIG, WEIGHTS
from sfss_ray.models.load_report import LoadReport, compare, require_fit
from sfss_ray.models.model_file import (
    SourceModel,
    full_precision,
    is_model_file,
    model_from_content,
)
from sfss_ray.models.read_file import ReadFile, weights_sha256
from sfss_ray.models.reading import checkpoint_sha256, read_checkpoint
from sfss_ray.models.user_code.custom import WrappingOptions
from sfss_ray.storage.places import ObjectPath, Place, parsed

CLASS_SETS_BY_SIZE = {len(known): known for known in (CITYSCAPES_19, SYNTHIA_16, CAMVID_11)}
"""The class set that the field means by a number of outputs."""


def load_source_model(
    path: Place | str,
    *,
    classes: ClassSet | str | tuple[str, ...] | list[str] | None = None,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    device: torch.device | str = "cpu",
    module: nn.Module | None = None,
    name: str | None = None,
    feature_layer: str | None = None,
    example_size: tuple[int, int] | None = None,
    weights: SourceWeights = "auto",
) -> SourceModel:
    """Read a source checkpoint of any known family, or a model file of this package.

    Args:
        path: The file, a folder written by `save_pretrained` of transformers, or the name of a model
            on the Hugging Face Hub that is in the local cache. Its family is recognised by its keys or
            its config.json, never by its name.
        classes: The meaning of the outputs: a class set (cityscapes-19, synthia-16), its name, or class
            names in order. The default is the file's own names, else the class set of this size (19, 16
            or 11). With fewer classes than outputs, only the outputs of these names are kept.
        card: Entries that replace the family's: a Card, a mapping, or a JSON file.
        class_groups: Groups of the outputs that become the model's classes, with the sum of their
            members' probabilities: {"building": ["building", "wall"], "dropped": ["background"]} as a
            mapping or a JSON or YAML file, or the name of a shipped grouping such as camvid-11. The
            order of the groups is that of their ids.
        device: The device of the network.
        module: The user's own module, or a result of `wrap_model`, for a model file made with one, or
            for its weights; then `classes`, the card or `wrap_model` names the outputs. It is copied.
        name: The name in reports, for weights alone, as the next two; see `wrap_model`.
        feature_layer: Name of the layer that returns the features.
        example_size: (height, width) of images that the module takes.
        weights: The weights to read from a checkpoint that holds a student and its EMA copy (DAFormer,
            HRDA, MIC, SePiCo, CROTS, torchvision's references): `student`, `ema`, or `auto`, which
            prefers the student.

    Returns:
        A module in eval mode that takes RGB images (B, 3, H, W) in [0, 1], preprocesses them as its
        `card` says, and returns logits (B, C, H, W). Its `load_report` says what became of each tensor.

    Raises:
        CheckpointError: the file is missing or damaged, holds more than weights, is of no known family,
            lacks a tensor of the backbone or the classifier, or has outputs without known names.
        ConfigError: `name`, `feature_layer` or `example_size` cannot be used, or see `wrap_model`.
        DataError: the class groups list an unknown class, list one twice or leave one out.
    """
    entries = card_values(card)
    if classes is not None:
        entries = entries | {"classes": require_names(class_names(classes))}
    path = parsed(path)
    options = WrappingOptions(name, feature_layer, example_size)
    if module is None:
        options.refuse(
            path, "they are for a module of your own: give module too, or leave them out"
        )
        model = _read_known(path, entries, weights)
    else:
        model = _read_into(module, path, entries, options, weights)
    return with_card(model, entries, path, class_groups).to(device).eval()


def _read_known(
    path: Place | str, entries: Mapping[str, Any], weights: SourceWeights
) -> SourceModel:
    """Return the model of a checkpoint of a known family, or of a model file."""
    with checkpoint_on_disk(path) as file:
        content = read_checkpoint(resolve_source(file))
    if is_model_file(content):
        return _read_model_file(content, path, None, weights)
    return _build_and_load(_recognise_file(content, path, weights), path, entries.get("classes"))


def _read_into(
    module: nn.Module,
    path: Place | str,
    entries: Mapping[str, Any],
    options: WrappingOptions,
    weights: SourceWeights,
) -> SourceModel:
    """Return a user's module with the weights of a checkpoint or a model file."""
    from sfss_ray.models.user_code.plain_weights import OwnModule, load_into_module

    with checkpoint_on_disk(path) as file:
        file = resolve_source(file).absolute()
        content = read_checkpoint(file)
        sha256 = checkpoint_sha256(file)
    if is_model_file(content):
        options.refuse(path, "a model file has its own, so leave them out")
        model = _read_model_file(content, path, module, weights)
    else:
        model = load_into_module(content, path, OwnModule.of(module, entries, options), weights)
    origin = str(path if isinstance(path, ObjectPath) else file)
    model.network.read_from = ReadFile(origin, sha256, weights_sha256(model.network))
    return model


def _read_model_file(
    content: dict[str, Any], path: Place | str, module: nn.Module | None, weights: SourceWeights
) -> SourceModel:
    if weights == "ema":
        raise CheckpointError(no_ema_copy_message(path))
    return model_from_content(content, path, module)


def _recognise_file(content: Any, path: Place | str, weights: SourceWeights) -> RecognisedFile:
    """Return `recognise`, with a hint for files of transformers that lack their config.json."""
    try:
        return recognise(content, path, weights)
    except CheckpointError as error:
        file_name = PurePath(str(path)).name
        is_of_transformers = file_name in WEIGHTS or file_name.endswith(".safetensors")
        if not is_of_transformers or not isinstance(content, Mapping) or CONFIG in content:
            raise
        raise CheckpointError(
            f"{error}; a model of transformers needs the config.json of its folder beside this file"
        ) from error


def recognise(content: Any, path: Place | str, weights: SourceWeights = "auto") -> RecognisedFile:
    """Return a checkpoint's content as a file of one of the FAMILIES.

    Args:
        content: The object that `read_checkpoint` returned.
        path: Its file, for messages.
        weights: Which copy to read, see `load_source_model`.

    Raises:
        CheckpointError: the family is unknown, or recognised but not supported. The message lists the
            first keys and the known families.
    """
    copy = choose_copy(content, weights, path)
    for _, recogniser in FAMILIES:
        # A recogniser refuses unsupported files of its family, but it does not know the path.
        try:
            file = recogniser(copy.state, content)
        except CheckpointError as error:
            raise CheckpointError(f"source model {str(path)!r}: {error}") from error
        if file is not None:
            return dataclasses.replace(
                file, unused=(*copy.unused, *file.unused), notes=(*copy.notes, *file.notes)
            )
    raise CheckpointError(
        f"source model {str(path)!r} is of no known family (found:"
        f" {_describe_content(copy.state, content)}): known are model files of this package,"
        f" {'; '.join(name for name, _ in FAMILIES)}; any other network can be given in Python with"
        " sfss_ray.wrap_model, and on the command line with --architecture FILE.py:FUNCTION"
    )


def _describe_content(state: Mapping[str, Tensor], content: Any) -> str:
    if state:
        return ", ".join(list(state)[:4])
    if isinstance(content, Mapping):
        return f"no tensors, but {', '.join(list(map(str, content))[:4]) or 'nothing'}"
    return f"no dict, but a {type(content).__name__}"


def _build_and_load(
    file: RecognisedFile, path: Place | str, classes: tuple[str, ...] | None
) -> SourceModel:
    """Build the network of a recognised file and load its weights; `classes` are the user's."""
    network = build_network(file.network, file.num_classes, file.options)
    state = {name: full_precision(tensor) for name, tensor in file.state.items()}
    report = compare(file.family, file.network, state, network.state_dict(), file.unused)
    require_fit(report, path, _advice(report))
    network.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    network.use_card(file.card)
    output_names, classes_from = _name_outputs(file, path, classes)
    report = dataclasses.replace(report, classes_from=classes_from, notes=file.notes)
    facts = {"made_by": file.family, "file": PurePath(str(path)).name}
    return SourceModel(network, file.network, class_set_of(output_names), facts, report)


def _advice(report: LoadReport) -> str:
    """Say what may be wrong with a file that does not fit, and what to do."""
    if report.wrong_shape or report.unexpected:
        return (
            "its keys are those of this family, so it is a variant that this package does not build, or"
            " was edited; any other network can be given in Python with sfss_ray.wrap_model"
        )
    return (
        "its keys are those of this family, so it is incomplete: copy it again, or give the whole"
        " checkpoint"
    )


def _name_outputs(
    file: RecognisedFile, path: Place | str, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], str]:
    """Return the class names of all outputs, and where they are from."""
    outputs = file.num_classes
    if classes is not None and len(classes) == outputs:
        return tuple(classes), "the classes given"
    if len(file.card.classes) == outputs:
        return file.card.classes, "the file"
    if outputs in CLASS_SETS_BY_SIZE:
        return CLASS_SETS_BY_SIZE[outputs].classes, f"the number of outputs, {outputs}"
    raise CheckpointError(
        f"source model {str(path)!r} has {outputs} outputs, and nothing says what they mean: give"
        " classes, a class set's name or all names in order (on the command line in --card, a JSON"
        ' file such as {"classes": ["road", "sky"]})'
    )


def with_card(
    model: SourceModel,
    entries: Mapping[str, Any],
    path: Place | str,
    class_groups: ClassGroupsLike | None = None,
) -> SourceModel:
    """Return the model with some entries of its card replaced; the model itself may change.

    As many classes as outputs rename the outputs, or reorder them if the names are the same. Fewer
    classes keep the outputs of these names. The outputs are grouped afterwards.

    Args:
        model: The model.
        entries: Checked entries of a card, see `card_values`.
        path: The model's file or name, for messages.
        class_groups: Groups that replace those of the model.

    Raises:
        CheckpointError: the classes do not fit the outputs.
        DataError: the groups do not fit the outputs.
    """
    own_groups = model.network.class_groups
    model.network.remove_groups()
    model = _with_entries(model, entries, path)
    groups = own_groups if class_groups is None else class_groups
    if groups is not None:
        model.network.use_groups(find_class_groups(groups, model.classes), model.classes)
    return model


def _with_entries(model: SourceModel, entries: Mapping[str, Any], path: Place | str) -> SourceModel:
    """Return a model without groups with some entries of its card replaced."""
    card = model.card.replaced(entries)
    model.network.use_card(card)
    if card.classes == model.classes.classes:
        return model

    # As many classes as outputs: the same names reorder the outputs, other names rename them.
    if len(card.classes) == len(model.classes):
        if sorted(card.classes) == sorted(model.classes.classes):
            return keep_outputs(model, card.classes)
        model.classes = class_set_of(card.classes)
        return model

    # Another number of classes is a selection of outputs, which must be known by name.
    unknown = [name for name in card.classes if name not in model.classes.classes]
    if len(card.classes) > len(model.classes) or unknown:
        hint = f", and it has no class {unknown[0]!r}" if unknown else ""
        raise CheckpointError(
            f"source model {str(path)!r} has {len(model.classes)} outputs but {len(card.classes)}"
            f" classes were given{hint}: give as many, or some of {', '.join(model.classes.classes)}"
        )
    return keep_outputs(model, card.classes)


def keep_outputs(model: SourceModel, classes: tuple[str, ...]) -> SourceModel:
    """Return a model that has only the outputs of these classes, in this order.

    Outputs are chosen by NAME, never by position: a 19-class model becomes the 16-class one of SYNTHIA.

    Raises:
        CheckpointError: the network is a user's own module, whose classifier is not known.
    """
    if model.architecture is not None:
        raise CheckpointError(
            f"a module of your own has {len(model.classes)} outputs: give the names of all"
        )
    indices = [model.classes.classes.index(name) for name in classes]
    if model.name == TRANSFORMERS:
        return _keep_transformers_outputs(model, classes, indices)
    rows = torch.tensor(indices)
    card = model.card
    state = dict(model.network.state_dict())
    # Only the layers that produce the outputs have one row for each of them. A transposed convolution
    # has its outputs along the second axis.
    axis = 1 if isinstance(model.network.classifier, nn.ConvTranspose2d) else 0
    for name, tensor in state.items():
        if not name.startswith("classifier.") or tensor.ndim <= axis:
            continue
        if tensor.shape[axis] == len(model.classes):
            state[name] = tensor.index_select(axis, rows.to(tensor.device))
    network = build_network(model.name, len(classes), model.network.options)
    network.load_state_dict(state)
    network.use_card(card)
    return SourceModel(network, model.name, class_set_of(classes), model.facts, model.load_report)


def _keep_transformers_outputs(
    model: SourceModel, classes: tuple[str, ...], indices: list[int]
) -> SourceModel:
    """Return a model whose network has all its weights and leaves out the logits of other classes.

    The class probabilities of universal networks depend on all classes, so no row may be removed.
    """
    outputs = model.network.options.get("outputs") or list(range(len(model.classes)))
    options = model.network.options | {"outputs": [outputs[i] for i in indices]}
    network = build_network(model.name, len(classes), options)
    network.load_state_dict(model.network.state_dict())
    network.use_card(model.card)
    return SourceModel(network, model.name, class_set_of(classes), model.facts, model.load_report)
