"""Reading weights files of any maker, without ever running what is in them."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from sfss_ray.errors import CheckpointError
from sfss_ray.models.huggingface_folder import files_of, read_folder, refuse_part, with_folder

_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *[type(np.dtype(code)) for code in "?bBhHiIlLqQefd"],
    *[
        (function, f"numpy.{package}.multiarray.{function.__name__}")
        for function in (multiarray.scalar, multiarray._reconstruct)
        for package in ("core", "_core")
    ],
    *[
        (kind, f"{module}.{name}")
        for kind, name in (
            (pathlib.PurePosixPath, "PosixPath"),
            (pathlib.PureWindowsPath, "WindowsPath"),
        )
        for module in ("pathlib", "pathlib._local")
    ],
]
"""What training programs keep beside weights and no file can do harm with: the parsed arguments, NumPy's
scores, paths (read as pure ones, which touch no file)."""
_PLAIN = (
    "import sys, torch;"
    " f = lambda v: v.state_dict() if isinstance(v, torch.nn.Module) else"
    " {k: f(x) for k, x in v.items() if isinstance(x, (dict, str, torch.Tensor, torch.nn.Module))"
    " or isinstance(x, (list, tuple)) and all(isinstance(y, str) for y in x)}"
    " if isinstance(v, dict) else v;"
    " torch.save(f(torch.load(sys.argv[1], map_location='cpu', weights_only=False)), sys.argv[2])"
)
"""Keeps tensors, modules' weights and texts of a checkpoint; needs its classes and torch 1.13."""


def read_checkpoint(path: Path) -> Any:
    """The content of a file of torch.save or safetensors, or of a folder of transformers, on the CPU.

    Only tensors, numbers, strings, containers of them and parsed arguments are read: a pickle that asks
    for more could run code, and is refused.

    Raises:
        CheckpointError: no such file, damaged, or it holds more than weights; says what to do.
    """
    if path.is_dir():
        return read_folder(path, _read_file)
    if not path.is_file():
        raise CheckpointError(
            f"source model {str(path)!r} does not exist; give the path of a model file"
        )
    refuse_part(path)
    return with_folder(path, _read_file(path))


def _read_file(path: Path) -> Any:
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"source model {str(path)!r} is a safetensors file: run `pip install safetensors`"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_more_than_weights(path, str(error))) from error
    except Exception as error:  # damaged archives raise RuntimeError, EOFError, OSError and others
        if "TorchScript" in str(error):
            raise CheckpointError(_torchscript(path)) from error
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
        " unpickling that could run code; if you trust the file, write its weights to another one and"
        f" give that; in a folder from which Python imports {_place(wanted[1])}, run:"
        f" {_command(path, _imports(wanted[1]) + _PLAIN)}"
    )


def _place(name: str) -> str:
    if name.startswith("__main__."):
        return f"SCRIPT, the name of the program that defines {name.removeprefix('__main__.')}"
    return "the code that the file was made with"


def _imports(name: str) -> str:
    """What the command does first: classes of a program are looked for among its own."""
    return "from SCRIPT import *; " if name.startswith("__main__.") else ""


def _torchscript(path: Path) -> str:
    script = (
        "import sys, torch;"
        " torch.save(torch.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])"
    )
    return (
        f"source model {str(path)!r} is a TorchScript program, no checkpoint of plain weights: write its"
        f" weights to another file and give that; run: {_command(path, script)}"
    )


def _command(path: Path, script: str) -> str:
    """A shell command that runs a script on a file and writes another beside it."""
    path = path.absolute()
    other = path.with_name(f"{path.stem}.weights.pth")
    return f'python -c "{script}" {shlex.quote(str(path))} {shlex.quote(str(other))}'


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint: of the file's bytes, or of those of all files a folder is read from."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
