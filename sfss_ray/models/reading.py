"""Reading weights files of any maker, without ever running what is in them."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from sfss_ray.errors import CheckpointError


def read_checkpoint(path: Path) -> Any:
    """The content of a file of torch.save or of a safetensors file, on the CPU.

    Only tensors, numbers, strings and containers of them are read: a pickle that asks for more could
    run code, and is refused.

    Raises:
        CheckpointError: no such file, damaged, or it holds more than weights; says what to do.
    """
    if not path.is_file():
        raise CheckpointError(
            f"source model {str(path)!r} does not exist; give the path of a model file"
        )
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"source model {str(path)!r} is a safetensors file: run `pip install safetensors`"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_more_than_weights(path, str(error))) from error
    except Exception as error:  # damaged archives raise RuntimeError, EOFError, OSError and others
        raise CheckpointError(
            f"source model {str(path)!r} cannot be read ({type(error).__name__}): the file is"
            " damaged or incomplete; copy it again"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """The format starts with the length of a JSON header (8 bytes), then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _more_than_weights(path: Path, said: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", said)
    if wanted is None:
        return (
            f"source model {str(path)!r} is no checkpoint of plain weights; give a file made by"
            " torch.save from tensors, numbers and strings alone"
        )
    return (
        f"source model {str(path)!r} is no checkpoint of plain weights: it holds a {wanted[1]}, and"
        " unpickling that could run code; if you trust the file, write its weights alone to another:"
        f" content = torch.load({str(path)!r}, weights_only=False), then"
        " torch.save(content['state_dict'], 'weights.pth') with the entry that holds them"
    )


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
