"""Any torch module as a source model."""

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
    """Make a source model of a module of your own; every stage takes it in place of a path.

    The contrast is computed on what `feature_layer` returns. Where its grid differs from that of the
    logits, training resizes the logits to the grid of the features; evaluation and prediction use the
    logits as the module returns them. All its weights learn at the backbone's rate
    (`train.optim.head_multiplier` is for classifiers the package knows).

    Workers get the module with the source of its own Python modules, in whatever folder they lie.
    Compiled extensions and files that the code reads must be installed on every node; stages that
    use workers try that in a fresh process before they start.

    Args:
        module: Takes images (B, 3, H, W), normalised as the card says, and returns logits
            (B, C, h, w): a tensor, a mapping with `out` or `logits`, or an object with `.logits`. It is
            not copied; adaptation trains a copy.
        classes: What the outputs mean: a class set, its name, or all names in order; may stand in the
            card instead.
        feature_layer: Name of a layer, as in `module.named_modules()`, that returns features
            (B, F, h, w) once per pass.
        card: What images the module expects; by default RGB in ImageNet's normalisation. A Card, a
            mapping of entries, or a JSON file.
        example_size: (height, width) of an image that is passed through once to see the shapes.

    Raises:
        ConfigError: no such layer (close names are listed), a layer or an output of another shape than
            said above, or a number of classes that is not the number of outputs.
    """
    values = card_values(card)
    if classes is not None:
        values = values | {"classes": class_names(classes)}
    full = Card.from_dict(values)
    network = WrappedSegmenter(module, feature_layer, full, example_size)
    if len(full.classes) != network.num_outputs:
        raise ConfigError(
            f"the module has {network.num_outputs} outputs but {len(full.classes)} classes were given:"
            " give classes, a class set's name or the names of all outputs in order"
        )
    facts = {"made_by": f"{type(module).__module__}.{type(module).__qualname__}"}
    return SourceModel(network, CUSTOM, class_set_of(full.classes), facts)
