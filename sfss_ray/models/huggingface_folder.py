"""Reader for the folder that `save_pretrained` of transformers writes: config.json and weights.

The weights are one file, or several shards with an index that maps each tensor to its shard.
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
"""Keys under which the folder's two JSON files are returned beside `state_dict`."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"
_SHARD_NAME = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
_CONFIG_FILE = "config.json"
_PREPROCESSOR_FILE = "preprocessor_config.json"

ReadFile = Callable[[Path], Any]


def read_folder(folder: Path, read_file: ReadFile) -> dict[str, Any]:
    """Return the weights of a folder as `state_dict`, and its JSON files as CONFIG, PREPROCESSOR.

    Args:
        folder: A folder written by `save_pretrained`.
        read_file: Reads one file of weights.

    Raises:
        CheckpointError: config.json, the weights, a shard or a tensor is missing.
    """
    if not (folder / _CONFIG_FILE).is_file():
        raise CheckpointError(
            f"source model {str(folder)!r} is a folder without config.json: give the file of a"
            " checkpoint, or a folder that save_pretrained of transformers wrote"
        )
    files, indexed_tensors = _weight_files(folder)
    missing_files = [name for name in files if not (folder / name).is_file()]
    if missing_files:
        raise CheckpointError(
            f"source model {str(folder)!r} lacks {len(missing_files)} of its {len(files)} shards, first"
            f" {missing_files[0]!r}: copy the whole folder"
        )
    state: dict[str, Any] = {}
    for name in files:
        content = read_file(folder / name)
        state |= content if isinstance(content, dict) else {}
    missing_tensors = [name for name in indexed_tensors if name not in state]
    if missing_tensors:
        raise CheckpointError(
            f"source model {str(folder)!r}: {len(missing_tensors)} tensors of its index are in no"
            f" shard, first {missing_tensors[0]!r}: copy the whole folder"
        )
    return {"state_dict": state} | _configurations(folder)


def with_configurations(path: Path, content: Any) -> Any:
    """Return the content of a weights file together with the JSON files of the folder around it.

    The content of any other file is returned as it is.
    """
    if not isinstance(content, dict) or not _belongs_to_config(path, content):
        return content
    return {"state_dict": content} | _configurations(path.parent)


def _belongs_to_config(path: Path, content: dict[Any, Any]) -> bool:
    """Whether a file holds the weights that the config.json beside it describes."""
    config = path.parent / _CONFIG_FILE
    is_weights = path.name in WEIGHTS or path.suffix == ".safetensors"
    if not is_weights or not config.is_file():
        return False
    if any(str(key).startswith("segformer.") for key in content):
        return True
    # Many programs write a config.json. That of transformers names its class.
    try:
        entries = json.loads(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(entries, dict) and {"architectures", "model_type"} <= entries.keys()


def refuse_partial_file(path: Path) -> None:
    """Raise CheckpointError for a shard of such a folder, or for the index of its shards."""
    if _SHARD_NAME.search(path.name):
        role = "one of several shards"
    elif path.name.endswith(_INDEX_SUFFIX) and path.name.removesuffix(_INDEX_SUFFIX) in WEIGHTS:
        role = "the index of several shards"
    else:
        return
    raise CheckpointError(
        f"source model {str(path)!r} is {role}: give its folder, {str(path.parent)!r}"
    )


def source_files(folder: Path) -> list[Path]:
    """Return every file that `read_folder` reads, in a fixed order."""
    weight_files, _ = _weight_files(folder)
    names = (_CONFIG_FILE, _PREPROCESSOR_FILE, *sorted(weight_files))
    return [folder / name for name in names if (folder / name).is_file()]


def _weight_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the weights files, and of the tensors that an index lists."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [name], []
        index = folder / f"{name}{_INDEX_SUFFIX}"
        if index.is_file():
            shard_of_tensor = _read_json(index).get("weight_map")
            # Shards lie in the folder itself. A name with a path could point to any file.
            if not isinstance(shard_of_tensor, dict) or not all(
                isinstance(shard, str) and Path(shard).name == shard
                for shard in shard_of_tensor.values()
            ):
                raise CheckpointError(
                    f"source model {str(folder)!r}: {index.name} has no weight_map of tensors and"
                    " files: copy the folder again"
                )
            return sorted(set(shard_of_tensor.values())), list(shard_of_tensor)
    expected = ", ".join(f"{name}, {name}{_INDEX_SUFFIX}" for name in WEIGHTS)
    raise CheckpointError(
        f"source model {str(folder)!r} holds config.json but no weights ({expected}): copy the whole"
        " folder"
    )


def _configurations(folder: Path) -> dict[str, Any]:
    configurations = {CONFIG: _read_json(folder / _CONFIG_FILE)}
    if (folder / _PREPROCESSOR_FILE).is_file():
        configurations[PREPROCESSOR] = _read_json(folder / _PREPROCESSOR_FILE)
    return configurations


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"source model {str(path.parent)!r}: {path.name} cannot be read"
            f" ({getattr(error, 'strerror', None) or 'it is not JSON'}): copy the folder again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"source model {str(path.parent)!r}: {path.name} is not a JSON object: copy the folder"
            " again"
        )
    return content
