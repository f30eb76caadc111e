"""Names of models on the Hugging Face Hub, looked up in its local cache. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from sfss_ray.errors import CheckpointError, ConfigError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar", ".pkl", ".onnx")


def resolve_source(path: Path | str) -> Path:
    """Return the local path of a source model, which may be the name of a model on the Hub.

    Args:
        path: A file, a folder, or a name such as nvidia/segformer-b0-finetuned-cityscapes-1024-1024.
            A path that exists takes precedence.

    Raises:
        CheckpointError: there is no such path, and the name is not in the local cache.
        ConfigError: the name needs huggingface_hub, which is not installed.
    """
    name = str(path)
    if Path(path).exists() or not _HUB_NAME.fullmatch(name) or name.endswith(_FILE_SUFFIXES):
        return Path(path)
    # A path into a folder that exists is more likely a typing error than a name.
    if Path(path).parent.is_dir():
        return Path(path)
    return _cached_folder(name)


def _cached_folder(name: str) -> Path:
    """Return the cache's folder of the newest version of a model."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ConfigError(
            f"source model {name!r} is no path; as a name on the Hugging Face Hub it needs a package"
            " that is not installed: run `pip install 'sfss-ray[transformers]'`"
        ) from error
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"source model {name!r} is no path, and as a name on the Hugging Face Hub it is not in the"
            f" local cache ({constants.HF_HUB_CACHE}): run `hf download {name}` where the Hub can be"
            " reached, or give a folder that save_pretrained wrote"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(
            f"source model {name!r} does not exist (and is not a valid name on the Hugging Face Hub)"
        ) from error
