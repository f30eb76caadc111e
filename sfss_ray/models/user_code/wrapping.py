"""Wrapping of any torch module as a source model."""

from __future__ import annotations

from torch import nn

from sfss_ray.data.class_sets import ClassSet, class_set_of
from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card, CardLike, card_values, class_names
from sfss_ray.models.model_file import SourceModel
from sfss_ray.models.user_code.custom import CUSTOM, WrappedSegmenter


def wrap_model(
    module: nn.Module,
    *,
    classes: ClassSet | str | tuple[str, ...] | list[str] | None = None,
    feature_layer: str,
    card: CardLike | None = None,
    example_size: tuple[int, int] = (128, 128),
) -> SourceModel:
    """Make a source model of a module of your own; every stage accepts it in place of a path.

    The contrastive loss uses the features that `feature_layer` returns. Everything else uses the logits
    as the module returns them, on a grid of their own. All weights train at the backbone's learning
    rate, because `train.optim.head_multiplier` applies only to classifiers that this package knows.

    Workers receive the module together with the source of its Python modules, wherever they lie.
    Compiled extensions, and files that the code reads, must be installed on every node. Stages that use
    workers try this in a fresh process before they start.

    Args:
        module: Takes images (B, 3, H, W), normalised as the card says. Returns logits (B, C, h, w): a
            tensor, a mapping with `out` or `logits`, or an object with `.logits`. It is not copied;
            adaptation trains a copy.
        classes: The meaning of the outputs: a class set, its name, or all class names in order. They
            may be in the card instead.
        feature_layer: Name of a layer, as in `module.named_modules()`, that returns features (B, F, h,
            w) once per forward pass.
        card: The preprocessing that the module expects: a Card, a mapping of entries, or a JSON file.
            The default is RGB with ImageNet's normalisation.
        example_size: (height, width) of an image that is passed through once to learn the shapes.

    Raises:
        ConfigError: the layer does not exist (the message lists similar names), a layer or an output has
            another shape than described above, or the number of classes is not that of the outputs.
    """
    entries = card_values(card)
    if classes is not None:
        entries = entries | {"classes": class_names(classes)}
    full_card = Card.from_dict(entries)
    network = WrappedSegmenter(module, feature_layer, full_card, example_size)
    if len(full_card.classes) != network.num_outputs:
        raise ConfigError(
            f"the module has {network.num_outputs} outputs but {len(full_card.classes)} classes were"
            " given: give classes, a class set's name or the names of all outputs in order"
        )
    facts = {"made_by": f"{type(module).__module__}.{type(module).__qualname__}"}
    return SourceModel(network, CUSTOM, class_set_of(full_card.classes), facts)
