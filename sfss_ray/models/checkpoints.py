"""Source models from files of any maker: recognised by their keys, checked tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfss_ray.config import SourceWeights
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_16, ClassSet, class_set_of
from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import Card, CardLike, card_values, class_names
from sfss_ray.models.families import FAMILIES, Recognised
from sfss_ray.models.families.copies import choose_copy, no_copy
from sfss_ray.models.load_report import LoadReport, compare, refuse_unfit
from sfss_ray.models.model_file import SourceModel, full_precision, is_model_file, model_of
from sfss_ray.models.reading import read_checkpoint

BY_OUTPUTS = {len(known): known for known in (CITYSCAPES_19, SYNTHIA_16, CAMVID_11)}
"""The class set that a number of outputs means in the field."""


def load_source_model(
    path: Path | str,
    *,
    classes: ClassSet | str | tuple[str, ...] | list[str] | None = None,
    card: CardLike | None = None,
    device: torch.device | str = "cpu",
    module: nn.Module | None = None,
    weights: SourceWeights = "auto",
) -> SourceModel:
    """Read a source checkpoint of any known family, or a model file of this package.

    Args:
        path: The file, or a folder that save_pretrained of transformers wrote. Its family is told by its
            keys, never by its name.
        classes: What the outputs mean: a class set (cityscapes-19, synthia-16), its name, or names in
            order. By default the file's own, else told by the number of outputs (19, 16 or 11). Fewer
            classes than outputs keep the outputs of these names.
        card: Entries that replace the family's: a Card, a mapping, or a JSON file of one.
        device: Where the network goes.
        module: The user's own module, for a model file that was made with one.
        weights: Of a checkpoint that holds a student and its EMA copy (DAFormer, HRDA, MIC, SePiCo,
            CROTS, torchvision's references): student, ema, or auto, the student where there is one.

    Returns:
        A module in eval mode that takes RGB images (B, 3, H, W) in [0, 1], prepares them as its `card`
        says, and returns logits (B, C, H, W) of their size. Its `load_report` says what became of every
        tensor.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than weights, is of no known family,
            lacks a tensor of backbone or classifier, or has outputs that nothing names.
    """
    values = card_values(card)
    if classes is not None:
        values = values | {"classes": class_names(classes)}
    content = read_checkpoint(Path(path))
    if is_model_file(content):
        if weights == "ema":
            raise CheckpointError(no_copy(path))
        model = model_of(content, path, module)
    else:
        model = _of_family(recognise(content, path, weights), path, values.get("classes"))
    return with_card(model, values, path).to(device).eval()


def recognise(content: Any, path: Path | str, weights: SourceWeights = "auto") -> Recognised:
    """The family of a checkpoint's content; CheckpointError says what was found and what is known."""
    chosen = choose_copy(content, weights, path)
    for _, family in FAMILIES:
        try:
            recognised = family(chosen.state, content)
        except CheckpointError as error:
            raise CheckpointError(f"source model {str(path)!r}: {error}") from error
        if recognised is not None:
            return dataclasses.replace(
                recognised,
                unused=(*chosen.unused, *recognised.unused),
                notes=(*chosen.notes, *recognised.notes),
            )
    found = _shown(chosen.state, content)
    raise CheckpointError(
        f"source model {str(path)!r} is of no known family (found: {found}): known"
        f" are model files of this package, {'; '.join(name for name, _ in FAMILIES)}; any other"
        " network can be given in Python with sfss_ray.wrap_model"
    )


def _shown(state: Mapping[str, Tensor], content: Any) -> str:
    if state:
        return ", ".join(list(state)[:4])
    if isinstance(content, Mapping):
        return f"no tensors, but {', '.join(list(map(str, content))[:4]) or 'nothing'}"
    return f"no dict, but a {type(content).__name__}"


def _of_family(found: Recognised, path: Path | str, given: tuple[str, ...] | None) -> SourceModel:
    network = build_network(found.network, found.num_classes, found.options)
    state = {name: full_precision(value) for name, value in found.state.items()}
    report = compare(found.family, found.network, state, network.state_dict(), found.unused)
    refuse_unfit(report, path, _advice(report))
    network.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    network.use_card(
        Card(found.mean, found.std, found.channel_order, found.value_range, found.align_corners)
    )
    outputs, origin = _meaning(found, path, given)
    report = dataclasses.replace(report, classes_from=origin, notes=found.notes)
    facts = {"made_by": found.family, "file": Path(path).name}
    return SourceModel(network, found.network, class_set_of(outputs), facts, report)


def _advice(report: LoadReport) -> str:
    """What a file that does not fit may be."""
    if report.wrong_shape or report.unexpected:
        return (
            "its keys are those of this family, so it is a variant that this package does not build, or"
            " was edited; any other network can be given in Python with sfss_ray.wrap_model"
        )
    return (
        "its keys are those of this family, so it is incomplete: copy it again, or give the whole"
        " checkpoint"
    )


def _meaning(
    found: Recognised, path: Path | str, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], str]:
    """(class names of all outputs, where they are from)."""
    number = found.num_classes
    if given is not None and len(given) == number:
        return tuple(given), "what was given"
    if found.classes is not None and len(found.classes) == number:
        return found.classes, "the file"
    if number in BY_OUTPUTS:
        return BY_OUTPUTS[number].classes, f"the number of outputs, {number}"
    raise CheckpointError(
        f"source model {str(path)!r} has {number} outputs, and nothing says what they mean: give"
        " classes, a class set's name or all names in order (on the command line in --card, a JSON"
        ' file such as {"classes": ["road", "sky"]})'
    )


def with_card(model: SourceModel, values: Mapping[str, Any], path: Path | str) -> SourceModel:
    """The model with the given entries of its card; fewer classes keep the outputs of these names.

    Raises:
        CheckpointError: classes that do not fit the outputs.
    """
    card = model.card.replaced(values)
    model.network.use_card(card)
    if card.classes == model.classes.classes:
        return model
    if len(card.classes) == len(model.classes):
        if sorted(card.classes) == sorted(model.classes.classes):
            return keep_outputs(model, card.classes)
        model.classes = class_set_of(card.classes)
        return model
    strangers = [name for name in card.classes if name not in model.classes.classes]
    if len(card.classes) > len(model.classes) or strangers:
        named = f", and it has no class {strangers[0]!r}" if strangers else ""
        raise CheckpointError(
            f"source model {str(path)!r} has {len(model.classes)} outputs but {len(card.classes)}"
            f" classes were given{named}: give as many, or some of {', '.join(model.classes.classes)}"
        )
    return keep_outputs(model, card.classes)


def keep_outputs(model: SourceModel, classes: tuple[str, ...]) -> SourceModel:
    """A model of some of the classes, in the order given: outputs are chosen by NAME, never sliced.

    A 19-class model becomes the 16-class one of SYNTHIA's classes. CheckpointError for a user's own
    module, whose classifier is not known.
    """
    if model.architecture is not None:
        raise CheckpointError(
            f"a module of your own has {len(model.classes)} outputs: give the names of all"
        )
    rows = torch.tensor([model.classes.classes.index(name) for name in classes])
    card = model.card
    state = dict(model.network.state_dict())
    for name, value in state.items():
        # Only what makes the outputs has one row for each of them.
        if name.startswith("classifier.") and value.ndim and value.shape[0] == len(model.classes):
            state[name] = value[rows.to(value.device)]
    network = build_network(model.name, len(classes), model.network.options)
    network.load_state_dict(state)
    network.use_card(card)
    chosen = class_set_of(classes)
    return SourceModel(network, model.name, chosen, model.facts, model.load_report)
