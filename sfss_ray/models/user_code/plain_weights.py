"""Weights of a user's module from a checkpoint that holds tensors alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from torch import Tensor, nn

from sfss_ray.config import SourceWeights
from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.copies import choose_copy
from sfss_ray.models.load_report import compare, require_fit
from sfss_ray.models.model_file import SourceModel, full_precision
from sfss_ray.models.user_code.custom import (
    Wrapping,
    WrappingOptions,
    with_empty_weights,
    wrapped_network,
)
from sfss_ray.models.user_code.layers import torch_methods
from sfss_ray.models.user_code.probing import in_full_precision
from sfss_ray.models.user_code.wrapping import wrap_model
from sfss_ray.storage.places import Place

OWN_FAMILY = "a module of your own"


@dataclass(frozen=True)
class OwnModule:
    """A user's module and how `wrap_model` is to wrap it; None where that finds the value itself."""

    module: nn.Module
    card: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    feature_layer: str | None = None
    example_size: tuple[int, int] | None = None
    class_groups: ClassGroups | None = None

    @classmethod
    def of(cls, module: nn.Module, card: Mapping[str, Any], options: WrappingOptions) -> OwnModule:
        """Return a module with its wrapping.

        Args:
            module: The module, or the result of `wrap_model`, whose wrapping and card are kept.
            card: Entries of the card, for a module that is not wrapped.
            options: Values that replace those of a wrapped module.
        """
        network = wrapped_network(module)
        if network is None:
            return cls(module, card, *options)
        outputs = network.output_classes or network.classes
        return cls(
            network.body,
            network.card(outputs.classes if outputs else ()).to_dict(),
            network.wrapping.title if options.name is None else options.name,
            options.feature_layer or network.feature_layer,
            options.example_size or network.example_size,
            network.class_groups,
        )

    def wrap(self, body: nn.Module) -> SourceModel:
        """Wrap a copy of the module."""
        return wrap_model(
            body,
            card=self.card,
            name=self.name,
            feature_layer=self.feature_layer,
            class_groups=self.class_groups,
            example_size=self.example_size or Wrapping.example_size,
        )


def load_into_module(
    content: Any, path: Place | str, user_module: OwnModule, weights: SourceWeights
) -> SourceModel:
    """Return a copy of a module with the weights of a checkpoint, wrapped as a source model.

    Args:
        content: The content of the checkpoint: a state dict, alone or in a container.
        path: Its file, for messages.
        user_module: The user's own module; its card must name the classes.
        weights: Which copy to read, see `load_source_model`.

    Raises:
        CheckpointError: the weights do not fit the module.
        ConfigError: see `wrap_model`.
    """
    chosen = choose_copy(content, weights, path)
    module = user_module.module
    body = with_empty_weights(in_full_precision(module))
    with torch_methods(body):
        expected = body.state_dict()
        state = _under_names_of(expected, chosen.state, content)
        title = user_module.name or type(module).__name__
        report = compare(OWN_FAMILY, title, state, expected, chosen.unused)
        if not report.matched:
            raise CheckpointError(
                f"source model {str(path)!r} has no tensor of the module {title}"
                f" ({', '.join(list(state)[:3]) or 'it has no tensors at all'}): give the checkpoint"
                " that was made with this module"
            )
        require_fit(report, path, "give the module that the checkpoint was made with")
        body.load_state_dict({name: full_precision(state[name]) for name in report.matched}, False)
    model = user_module.wrap(body)
    notes = chosen.notes
    if report.unexpected:
        notes += (
            f"{len(report.unexpected)} tensors of the file are not in the module, first"
            f" {report.unexpected[0]!r}",
        )
    model.load_report = dataclasses.replace(report, classes_from="the card", notes=notes)
    model.facts = model.facts | {"file": PurePath(str(path)).name}
    return model


def _under_names_of(
    expected: Mapping[str, Tensor], stripped: Mapping[str, Tensor], content: Any
) -> Mapping[str, Tensor]:
    """Return the tensors of a file by the names of the module.

    Prefixes of wrappers such as `model.` are stripped from the keys of checkpoints, but they may be
    names of the module itself.
    """
    plain = content if isinstance(content, Mapping) else {}
    plain = {str(key): value for key, value in plain.items() if isinstance(value, Tensor)}
    return plain if len(expected.keys() & plain) > len(expected.keys() & stripped) else stripped
