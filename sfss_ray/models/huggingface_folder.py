"""The folder that `save_pretrained` of transformers writes, and the Hub serves: config.json and weights.

The weights are one file, or several (shards) with an index that says which tensor is in which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfss_ray.errors import CheckpointError

CONFIG = "huggingface_config"
PREPROCESSOR = "huggingface_preprocessor"
"""Entries under which the two JSON files of a folder are handed on beside `state_dict`."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
_CONFIG_FILE = "config.json"
_PREPROCESSOR_FILE = "preprocessor_config.json"

ReadFile = Callable[[Path], Any]


def read_folder(folder: Path, read: ReadFile) -> dict[str, Any]:
    """The weights of a folder under `state_dict`, its configurations under CONFIG and PREPROCESSOR.

    Args:
        folder: One of transformers.
        read: Reads a file of weights.

    Raises:
        CheckpointError: no config.json, no weights, or a shard or a tensor is missing.
    """
    if not (folder / _CONFIG_FILE).is_file():
        raise CheckpointError(
            f"source model {str(folder)!r} is a folder without config.json: give the file of a"
            " checkpoint, or a folder that save_pretrained of transformers wrote"
        )
    files, tensors = _weight_files(folder)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"source model {str(folder)!r} lacks {len(missing)} of its {len(files)} shards, first"
            f" {missing[0]!r}: copy the whole folder"
        )
    state: dict[str, Any] = {}
    for name in files:
        content = read(folder / name)
        state |= content if isinstance(content, dict) else {}
    absent = [name for name in tensors if name not in state]
    if absent:
        raise CheckpointError(
            f"source model {str(folder)!r}: {len(absent)} tensors of its index are in no shard, first"
            f" {absent[0]!r}: copy the whole folder"
        )
    return {"state_dict": state} | _configurations(folder)


def with_folder(path: Path, content: Any) -> Any:
    """The content of a weights file, with the configurations that lie beside it in such a folder."""
    if path.name not in WEIGHTS or not (path.parent / _CONFIG_FILE).is_file():
        return content
    if not isinstance(content, dict) or not any(
        str(key).startswith("segformer.") for key in content
    ):
        return content
    return {"state_dict": content} | _configurations(path.parent)


def refuse_part(path: Path) -> None:
    """CheckpointError for a file that is a part of such a folder's weights, or their index."""
    if _SHARD.search(path.name):
        what = "one of several shards"
    elif path.name.endswith(_INDEX) and path.name.removesuffix(_INDEX) in WEIGHTS:
        what = "the index of several shards"
    else:
        return
    raise CheckpointError(
        f"source model {str(path)!r} is {what}: give its folder, {str(path.parent)!r}"
    )


def files_of(folder: Path) -> list[Path]:
    """Every file that decides what is read from a folder, in a fixed order."""
    names, _ = _weight_files(folder)
    found = [folder / name for name in (_CONFIG_FILE, _PREPROCESSOR_FILE, *sorted(names))]
    return [path for path in found if path.is_file()]


def _weight_files(folder: Path) -> tuple[list[str], list[str]]:
    """(names of the weights files, names of the tensors that an index promises)."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [name], []
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            shards = _read_json(index).get("weight_map")
            # A shard lies in the folder itself: a name with a path could point anywhere.
            if not isinstance(shards, dict) or not all(
                isinstance(shard, str) and Path(shard).name == shard for shard in shards.values()
            ):
                raise CheckpointError(
                    f"source model {str(folder)!r}: {index.name} has no weight_map of tensors and"
                    " files: copy the folder again"
                )
            return sorted(set(shards.values())), list(shards)
    expected = ", ".join(f"{name}, {name}{_INDEX}" for name in WEIGHTS)
    raise CheckpointError(
        f"source model {str(folder)!r} holds config.json but no weights ({expected}): copy the whole"
        " folder"
    )


def _configurations(folder: Path) -> dict[str, Any]:
    found = {CONFIG: _read_json(folder / _CONFIG_FILE)}
    if (folder / _PREPROCESSOR_FILE).is_file():
        found[PREPROCESSOR] = _read_json(folder / _PREPROCESSOR_FILE)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"source model {str(path.parent)!r}: {path.name} cannot be read"
            f" ({getattr(error, 'strerror', None) or 'it is no JSON'}): copy the folder again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"source model {str(path.parent)!r}: {path.name} is no JSON object: copy the folder again"
        )
    return values
