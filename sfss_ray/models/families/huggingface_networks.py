"""Recogniser of all other segmentation checkpoints of transformers that have their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.architectures.transformers_networks import (
    TRANSFORMERS,
    fixed_input_size,
    is_supported,
    model_class,
    model_config,
    one_line_errors,
)
from sfss_ray.models.families.keys import State
from sfss_ray.models.families.preprocessors import (
    class_labels,
    mapping_entry,
    preprocessor_card,
    preprocessor_notes,
)
from sfss_ray.models.families.recognised_file import RecognisedFile
from sfss_ray.models.huggingface_folder import CONFIG, PREPROCESSOR
from sfss_ray.runtime.transformers_loading import quiet_loading


def huggingface_network(state: State, content: Any) -> RecognisedFile | None:
    """Recognise a folder, or a file beside its config.json, by the class that config.json names.

    The tensors get the names of the installed transformers by its own loader, which knows how names
    changed between its versions.
    """
    configuration = mapping_entry(content, CONFIG)
    if not configuration:
        return None
    architecture = _architecture(configuration)
    tensors = dict(content["state_dict"])
    try:
        config = model_config(architecture, configuration)
        loaded, unused, outputs = _load(architecture, config, tensors)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    preprocessor = mapping_entry(content, PREPROCESSOR)
    model_type = str(config.model_type)
    return RecognisedFile(
        family=f"{architecture} (Hugging Face)",
        network=TRANSFORMERS,
        num_classes=outputs,
        state={f"body.{name}": tensor for name, tensor in loaded.items()},
        unused=unused,
        options={"architecture": architecture, "configuration": dict(configuration)},
        card=preprocessor_card(preprocessor, class_labels(configuration, outputs), model_type),
        notes=(*preprocessor_notes(preprocessor, model_type), *_size_notes(config)),
    )


def _architecture(configuration: Mapping[str, Any]) -> str:
    """Return the class that a config.json names.

    Raises:
        CheckpointError: it names none, or one that does not segment.
    """
    names = configuration.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    supported = [name for name in names if is_supported(name)]
    if supported:
        return supported[0]
    raise CheckpointError(
        f"its config.json is that of {', '.join(names) or 'no class'} (model_type"
        f" {configuration.get('model_type')!r}): supported are classes of transformers for semantic or"
        " universal segmentation; any other network can be given in Python with sfss_ray.wrap_model"
    )


def _load(
    architecture: str, config: Any, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...], int]:
    """Return the tensors of a file under the names of the installed transformers.

    Tensors of another shape keep the file's shape, and missing ones are left out, so that the loader of
    this package can report them.

    Returns:
        The tensors, the names of those that are not needed, and the number of classes.
    """
    # transformers fills missing weights with random numbers, which must not change a run's own.
    with torch.random.fork_rng(devices=[]), quiet_loading():
        model, info = one_line_errors(
            architecture,
            lambda: model_class(architecture).from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            ),
        )
    state = {k: v for k, v in model.state_dict().items() if k not in set(info["missing_keys"])}
    for name, file_shape, _ in info["mismatched_keys"]:
        state[name] = torch.empty(file_shape)
    unexpected = sorted(info["unexpected_keys"])
    unused = tuple(name for name in unexpected if _is_for_training(name))
    unknown = {name: tensors[name] for name in unexpected if name in tensors and name not in unused}
    return state | unknown, unused, config.num_labels


def _is_for_training(name: str) -> bool:
    """Whether a tensor belongs to a part that only the original training needs."""
    return name.startswith(("auxiliary_head.", "criterion.")) or "text_mapper." in name


def _size_notes(config: Any) -> tuple[str, ...]:
    size = fixed_input_size(config)
    if size is None:
        return ()
    return (
        f"the network takes images of {size[0]}x{size[1]} pixels only: all images and crops are"
        " resized to that",
    )
