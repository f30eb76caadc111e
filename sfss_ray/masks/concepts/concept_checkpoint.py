"""Loads a SAM 3 that takes text prompts, with its tokenizer, from a folder or the Hub's local cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.masks.concepts.sam3_concepts import Sam3Concepts
from sfss_ray.models.hub_cache import resolve_source
from sfss_ray.models.reading import checkpoint_sha256, file_sha256
from sfss_ray.runtime.transformers_loading import quiet_loading

_MODEL_TYPES = ("sam3", "sam3_video")
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_ALLOWED = "give a folder that save_pretrained of transformers' Sam3Model wrote, or facebook/sam3"


def resolve_concept_checkpoint(checkpoint: Path | str) -> Path:
    """Return the local folder of a SAM 3 that takes text prompts, after a look at its files.

    Raises:
        CheckpointError: it is no such folder, is not in the local cache, or lacks the tokenizer.
        ConfigError: a package is not installed.
    """
    try:
        folder = resolve_source(checkpoint)
    except (CheckpointError, ConfigError) as error:
        raise _renamed(error) from error.__cause__
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"masks.concepts: {str(folder)!r} has no config.json: {_ALLOWED}")
    _require_text_prompts(folder)
    if not any(all((folder / n).is_file() for n in names) for names in _TOKENIZER_FILES):
        raise CheckpointError(
            f"masks.concepts: {str(folder)!r} has no tokenizer, which turns class names into prompts"
            " (tokenizer.json, or vocab.json and merges.txt): copy the tokenizer's files of the same"
            " model there"
        )
    return folder


def _renamed(error: CheckpointError | ConfigError) -> CheckpointError | ConfigError:
    """Return an error of the readers of source models, in the words of this setting."""
    return type(error)(str(error).replace("source model", "masks.concepts:"))


def _require_text_prompts(folder: Path) -> None:
    try:
        model_type = json.loads((folder / "config.json").read_text("utf-8-sig")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"masks.concepts: config.json in {str(folder)!r} cannot be read: copy the folder again"
        ) from error
    if str(model_type).startswith("sam3_tracker"):
        raise CheckpointError(
            f"masks.concepts: {str(folder)!r} holds SAM 3's tracker alone ({model_type}), which takes"
            f" points and no text: {_ALLOWED}"
        )
    if model_type not in _MODEL_TYPES:
        raise CheckpointError(
            f"masks.concepts: {str(folder)!r} holds a network of type {model_type!r}; allowed are"
            f" {' and '.join(_MODEL_TYPES)}: {_ALLOWED}"
        )


def concept_sha256(folder: Path) -> str:
    """Return the SHA-256 of weights, configuration and tokenizer of a folder.

    Raises:
        CheckpointError: the folder has no weights.
    """
    try:
        digest = hashlib.sha256(checkpoint_sha256(folder).encode())
    except CheckpointError as error:
        raise _renamed(error) from error.__cause__
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if (folder / name).is_file():
            digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def load_concepts(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Sam3Concepts:
    """Load a SAM 3 that takes text prompts, with weights in float32.

    Args:
        folder: Of `resolve_concept_checkpoint`.
        device: Of the network.
        dtype: float32, or bfloat16 for autocast.

    Raises:
        CheckpointError: the weights or the tokenizer are incomplete or damaged.
        ConfigError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "masks.concepts needs transformers, which is not installed: run"
            " `pip install 'sfss-ray[transformers]'`"
        ) from error
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    load_model: Any = transformers.Sam3Model.from_pretrained
    try:
        with quiet_loading():
            model, info = load_model(str(folder), dtype=torch.float32, **options)
            tokenizer = transformers.CLIPTokenizer.from_pretrained(
                str(folder), local_files_only=True
            )
            processor = _processor(folder, model)
    except Exception as error:  # transformers raises errors of many types, often of many lines
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"masks.concepts: {str(folder)!r} cannot be loaded as transformers' Sam3Model"
            f" ({type(error).__name__}: {line}): copy the whole folder again"
        ) from error
    _require_all_weights(folder, info)
    model = model.requires_grad_(False).to(device)
    return Sam3Concepts(model, tokenizer, processor, dtype)


def _processor(folder: Path, model: Any) -> Any:
    import transformers

    if any((folder / f"{n}_config.json").is_file() for n in ("preprocessor", "processor")):
        return transformers.Sam3ImageProcessor.from_pretrained(str(folder), local_files_only=True)
    side = model.config.image_size
    return transformers.Sam3ImageProcessor(size={"height": side, "width": side})


def _require_all_weights(folder: Path, info: dict[str, Any]) -> None:
    missing = sorted(str(name) for name in info.get("missing_keys", ()))
    if missing:
        raise CheckpointError(
            f"masks.concepts: {str(folder)!r} lacks {len(missing)} tensors of the network that its"
            f" config.json describes, first {missing[0]!r}: copy the whole folder again"
        )
