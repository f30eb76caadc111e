"""Loads a promptable model from a file, a folder of transformers, or a name on the Hugging Face Hub.

The kind of network is told from the names of its tensors and from config.json, never from a file's name.
Nothing is downloaded: a name on the Hub is looked up in the local cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from segment_anything.modeling import Sam

from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.masks.sam.networks import (
    SamType,
    is_sam_state,
    load_state,
    read_state_dict,
    recognise_sam_type,
)
from sfss_ray.masks.sam.transformers_model import TransformersModel
from sfss_ray.models.checkpoint_copy import checkpoint_on_disk
from sfss_ray.models.hub_cache import resolve_source
from sfss_ray.models.huggingface_folder import (
    CONFIG,
    read_folder,
    refuse_partial_file,
    with_configurations,
)
from sfss_ray.runtime.transformers_loading import quiet_loading
from sfss_ray.storage.places import ObjectPath, Place, parsed

NetworkType = SamType | Literal["hf_sam", "sam2", "sam3"]
NETWORK_TYPES: tuple[str, ...] = (*get_args(SamType), "hf_sam", "sam2", "sam3")

_CLASS_NAMES = {"hf_sam": "SamModel", "sam2": "Sam2Model", "sam3": "Sam3TrackerModel"}
_KIND_OF_MODEL_TYPE = {
    "sam": "hf_sam",
    "sam2": "sam2",
    "sam2_video": "sam2",
    "sam3_tracker": "sam3",
    "sam3_tracker_video": "sam3",
    "sam3_video": "sam3",
}
_ALLOWED = (
    "give the weights of a SAM (segment_anything), or a folder that save_pretrained wrote of"
    " transformers' SamModel, Sam2Model or Sam3TrackerModel"
)
_OTHER_LAYOUTS = {
    "sam_mask_decoder.": "of Meta's sam2 package: give the same model from the Hub, for instance"
    " facebook/sam2.1-hiera-tiny",
    "detector.": "of Meta's sam3 package: give the same model from the Hub, facebook/sam3",
}


def resolve_checkpoint(checkpoint: Place | str) -> Place:
    """Return the place of a checkpoint, which may be a name on the Hugging Face Hub.

    Raises:
        CheckpointError: the name is not in the local cache.
        ConfigError: the name needs huggingface_hub, which is not installed.
    """
    location = parsed(checkpoint)
    if isinstance(location, ObjectPath):
        return location
    try:
        return resolve_source(location)
    except (CheckpointError, ConfigError) as error:
        raise _as_sam_checkpoint(error) from error.__cause__


def load_promptable(
    checkpoint: Place | str,
    network_type: str = "auto",
    device: torch.device | str = "cpu",
) -> Sam | TransformersModel:
    """Load a network of the SAM family: float32, evaluation mode, no gradients.

    Args:
        checkpoint: a file of weights (torch.save or safetensors, of any floating type), a folder that
            save_pretrained wrote, the address of either, or the name of a model in the local cache of
            the Hugging Face Hub.
        network_type: the type that the checkpoint must contain: auto, vit_b, vit_l, vit_h, small
            (segment_anything), hf_sam, sam2 or sam3 (transformers).
        device: of the network.

    Returns:
        A Sam of segment_anything, or a TransformersModel.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, of another family or of another type.
        ConfigError: a package is not installed.
    """
    if network_type not in ("auto", *NETWORK_TYPES):
        raise CheckpointError(
            f"sam_type is {network_type!r}; allowed are auto, {', '.join(NETWORK_TYPES)}"
        )
    location = resolve_checkpoint(checkpoint)
    try:
        with checkpoint_on_disk(location) as file:
            return _load(Path(file), network_type, device)
    except CheckpointError as error:
        raise _as_sam_checkpoint(error) from error.__cause__


def _load(path: Path, network_type: str, device: torch.device | str) -> Sam | TransformersModel:
    try:
        if path.is_dir():
            content = read_folder(path, _tensor_names)
            model_type = _kind_of_config(content[CONFIG], path)
            _require_type(path, model_type, network_type)
            return _load_folder(path, model_type, device)
        state, configurations = _read_file(path)
    except CheckpointError as error:
        raise _as_sam_checkpoint(error) from error.__cause__
    if is_sam_state(state):
        return load_state(state, path, network_type, device)
    return _load_state(path, state, configurations.get(CONFIG), network_type, device)


def type_of_network(model: Sam | TransformersModel) -> str:
    """Return the type of a loaded network, one of NETWORK_TYPES."""
    if isinstance(model, TransformersModel):
        return model.kind
    return recognise_sam_type(model.state_dict())


def _require_type(path: Path, actual: str, requested: str) -> None:
    if requested not in ("auto", actual):
        raise CheckpointError(
            f"{path} contains a network of type {actual}, but sam_type is {requested}; set sam_type"
            f" to {actual} or auto, or give the checkpoint of a {requested}"
        )


def _kind_of_config(config: Mapping[str, Any], path: Path) -> str:
    model_type = config.get("model_type")
    kind = _KIND_OF_MODEL_TYPE.get(str(model_type))
    if kind is None:
        raise CheckpointError(
            f"{path}: its config.json describes a network of type {model_type!r}; allowed are"
            f" {', '.join(_KIND_OF_MODEL_TYPE)}; {_ALLOWED}"
        )
    return kind


def _load_folder(path: Path, kind: str, device: torch.device | str) -> TransformersModel:
    model, info = _from_pretrained(path, kind, pretrained=str(path))
    _require_all_weights(path, info)
    model = model.float().requires_grad_(False).to(device)
    return TransformersModel(model, _processor(path, kind))


def _load_state(
    path: Path,
    state: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    network_type: str,
    device: torch.device | str,
) -> TransformersModel:
    """Load the weights of one file with the config.json beside it."""
    if config is None:
        raise CheckpointError(f"{path} {_why_unknown(state)}")
    kind = _kind_of_config(config, path)
    _require_type(path, kind, network_type)
    model_config = _transformers(path).AutoConfig.for_model(**config)
    model, info = _from_pretrained(
        path, kind, pretrained=None, state_dict=dict(state), config=model_config
    )
    _require_all_weights(path, info)
    return TransformersModel(
        model.float().requires_grad_(False).to(device), _processor(path.parent, kind)
    )


def _from_pretrained(
    path: Path, kind: str, pretrained: str | None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the model of transformers, and which of its tensors the checkpoint lacks."""
    transformers = _transformers(path)
    model_class = getattr(transformers, _CLASS_NAMES[kind])
    if pretrained is not None:
        options["local_files_only"] = True
    try:
        with quiet_loading():
            return model_class.from_pretrained(
                pretrained, dtype=torch.float32, output_loading_info=True, **options
            )
    except Exception as error:  # transformers raises errors of many types, often of many lines
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be loaded as transformers' {_CLASS_NAMES[kind]}"
            f" ({type(error).__name__}: {line}): copy the whole folder again"
        ) from error


def _require_all_weights(path: Path, info: Mapping[str, Any]) -> None:
    missing = sorted(str(name) for name in info.get("missing_keys", ()))
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} tensors of its config.json's network are not in its weights,"
            f" first {missing[0]!r}: the weights are those of another network; copy the whole folder"
        )


def _processor(folder: Path, kind: str) -> Any:
    """Return the image processor saved beside the weights, or None without one."""
    if not (folder / "preprocessor_config.json").is_file():
        return None
    import transformers

    name = {"hf_sam": "Sam", "sam2": "Sam2", "sam3": "Sam3"}[kind]
    processor_class = getattr(transformers, f"{name}ImageProcessor")
    return processor_class.from_pretrained(str(folder), local_files_only=True)


def _transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"{path} contains a network of transformers, which is not installed: run"
            " `pip install 'sfss-ray[transformers]'`"
        ) from error
    return transformers


def _tensor_names(file: Path) -> dict[str, None]:
    """Return the names of the tensors in a file of weights, without reading the tensors."""
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as tensors:
                return dict.fromkeys(tensors.keys())
        return dict.fromkeys(torch.load(file, map_location="meta", weights_only=True, mmap=True))
    except Exception as error:  # damaged files raise errors of many types
        raise CheckpointError(
            f"source model {str(file)!r} cannot be read ({type(error).__name__}): the file is"
            " damaged or incomplete; copy it again"
        ) from error


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors of a file by name, and the JSON files that belong to it."""
    if path.is_file():
        refuse_partial_file(path)
    content = with_configurations(path, read_state_dict(path))
    state = content.get("state_dict")
    return (state, content) if isinstance(state, dict) else (content, {})


def _why_unknown(state: Mapping[str, Any]) -> str:
    """Return why weights without config.json cannot be used."""
    names = [str(name) for name in state]
    for prefix, clause in _OTHER_LAYOUTS.items():
        if any(name.startswith(prefix) for name in names):
            return f"contains weights {clause}"
    if any("vision_encoder." in name for name in names):
        return (
            "contains weights of transformers without config.json beside them: give the folder that"
            " save_pretrained wrote"
        )
    first = ", ".join(names[:3]) or "no tensors"
    return (
        f"does not contain the weights of a promptable network (its first tensors: {first});"
        f" {_ALLOWED}"
    )


def _as_sam_checkpoint(error: CheckpointError | ConfigError) -> CheckpointError | ConfigError:
    """Return an error of the readers of source models, in the words of a SAM checkpoint."""
    text = str(error).replace("source model", "SAM checkpoint")
    return type(error)(text)
