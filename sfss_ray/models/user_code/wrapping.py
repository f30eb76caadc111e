"""Wrapping of any torch module as a source model."""

from __future__ import annotations

from torch import nn

from sfss_ray.data.class_sets import IGNORE_INDEX, ClassSet, class_set_of
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card, CardLike, card_values, class_names
from sfss_ray.models.checkpoints import with_card
from sfss_ray.models.model_file import SourceModel
from sfss_ray.models.user_code.custom import CUSTOM, WrappedSegmenter, Wrapping
from sfss_ray.models.user_code.feature_layers import check_feature_layer
from sfss_ray.models.user_code.probing import Probe, in_full_precision


def wrap_model(
    module: nn.Module,
    *,
    classes: ClassSet | str | tuple[str, ...] | list[str] | None = None,
    feature_layer: str | None = None,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    example_size: tuple[int, int] = (128, 128),
    name: str | None = None,
) -> SourceModel:
    """Make a source model of a module of your own; every stage accepts it in place of a path.

    The contrastive loss needs features. By default they are what the last convolution that makes class
    scores reads. Where its grid is coarser than stride 4, and class scores of finer stages are added to
    it, the finest stage is taken; the contrast averages grids finer than stride 4. Runs print the
    choice. All weights train at the backbone's learning rate, because `train.optim.head_multiplier`
    applies only to classifiers that this package knows.

    Images may have any size. The multiple of pixels that their sides need is found here, and images are
    padded to it at the right and at the bottom by repeating the last column and row.

    Workers receive the module together with the source of its Python modules, wherever they lie.
    Compiled extensions, and files that the code reads, must be installed on every node. Stages that use
    workers try this in a fresh process before they start.

    Args:
        module: Takes images (B, 3, H, W), normalised as the card says. Returns logits (B, C, h, w), not
            probabilities: a tensor, a mapping or an object with `out` or `logits`, or a tuple or list,
            whose first tensor with C channels counts. It is not copied; adaptation trains a copy.
            A module in half precision is copied to float32.
        classes: The meaning of the outputs: a class set, its name, or all class names in order. They
            may be in the card instead. 2 to 254 classes are allowed.
        feature_layer: Name of a layer, as in `module.named_modules()`, that returns features (B, F, h,
            w) once per forward pass. With `:input` at its end, the layer reads them.
        card: The preprocessing that the module expects: a Card, a mapping of entries, or a JSON file.
            The default is RGB with ImageNet's normalisation.
        class_groups: Groups of the outputs that become the model's classes, see `load_source_model`.
        example_size: (height, width) of the images that are passed through to learn shapes and sizes.
            The multiple is one of 28 numbers up to 64, or a common divisor of these sides up to 256.
        name: The model's name in reports. The default is the name of the module's class.

    Raises:
        ConfigError: the layer does not exist (the message lists similar names), the module works at no
            size or returns something else than logits, a layer has another shape than described above,
            or the number of classes is not that of the outputs.
        DataError: the class groups do not fit the classes.
    """
    entries = card_values(card)
    if classes is not None:
        entries = entries | {"classes": class_names(classes)}
    full_card = Card.from_dict(entries)
    title = type(module).__name__ if name is None else name
    network = _wrap(in_full_precision(module), feature_layer, full_card, example_size, title)
    facts = {"made_by": f"{type(module).__module__}.{type(module).__qualname__}"}
    model = SourceModel(network, CUSTOM, class_set_of(full_card.classes), facts)
    return with_card(model, {}, CUSTOM, class_groups)


def _wrap(
    module: nn.Module,
    feature_layer: str | None,
    card: Card,
    example_size: tuple[int, int],
    title: str,
) -> WrappedSegmenter:
    """Find what a module needs by passes of small images, and wrap it."""
    if feature_layer is not None:
        check_feature_layer(module, feature_layer)
    num_classes = len(card.classes)
    probe = Probe(module, card, num_classes or None)
    multiple, size = probe.find_sizes(example_size)
    _check_classes(probe.logits(size).shape[1], num_classes)
    wrapping = Wrapping(feature_layer or probe.find_feature_layer(size), size, multiple, title)
    return WrappedSegmenter(module, card, wrapping, num_classes)


def _check_classes(num_outputs: int, num_classes: int) -> None:
    """Raise ConfigError if a module does not have one output per class, or 2 to 254 of them."""
    if not 2 <= num_outputs < IGNORE_INDEX:
        raise ConfigError(
            f"the module has {num_outputs} outputs: allowed are 2 to {IGNORE_INDEX - 1}, one per class;"
            " a single output for foreground must become two, such as torch.cat([-x, x], 1)"
        )
    if not num_classes:
        raise ConfigError(
            f"the module has {num_outputs} outputs, and nothing says what they mean: give classes, a"
            " class set's name or the names of all outputs in order (on the command line in --card, a"
            ' JSON file such as {"classes": ["road", "sky"]})'
        )
    if num_classes != num_outputs:
        raise ConfigError(
            f"the module has {num_outputs} outputs but {num_classes} classes were given: give classes,"
            " a class set's name or the names of all outputs in order"
        )
