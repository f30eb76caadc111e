"""Safe reading of weights files of any origin: no code in a file is ever executed."""

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
from sfss_ray.models.huggingface_folder import (
    read_folder,
    refuse_partial_file,
    source_files,
    with_configurations,
)

_SAFE_GLOBALS: list[Any] = [
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
        (path_class, f"{module}.{name}")
        for path_class, name in (
            (pathlib.PurePosixPath, "PosixPath"),
            (pathlib.PureWindowsPath, "WindowsPath"),
        )
        for module in ("pathlib", "pathlib._local")
    ],
]
"""Harmless types that training programs save beside weights: parsed arguments, NumPy scores, and paths.
Paths become pure paths, which cannot touch a file."""
_EXTRACT_WEIGHTS = (
    "import sys, torch;"
    " f = lambda v: v.state_dict() if isinstance(v, torch.nn.Module) else"
    " {k: f(x) for k, x in v.items() if isinstance(x, (dict, str, torch.Tensor, torch.nn.Module))"
    " or isinstance(x, (list, tuple)) and all(isinstance(y, str) for y in x)}"
    " if isinstance(v, dict) else v;"
    " torch.save(f(torch.load(sys.argv[1], map_location='cpu', weights_only=False)), sys.argv[2])"
)
"""A script for the user that keeps the tensors, module weights and strings of a checkpoint. It needs the
checkpoint's classes and torch 1.13 or later."""


def read_checkpoint(path: Path) -> Any:
    """Return the content of a torch.save file, a safetensors file or a transformers folder, on the CPU.

    Only tensors, numbers, strings, containers of these and a few harmless types are read. Other pickles
    could run code and are refused.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than weights.
    """
    if path.is_dir():
        return read_folder(path, _read_file)
    if not path.is_file():
        raise CheckpointError(
            f"source model {str(path)!r} does not exist; give the path of a model file"
        )
    refuse_partial_file(path)
    return with_configurations(path, _read_file(path))


def _read_file(path: Path) -> Any:
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"source model {str(path)!r} is a safetensors file: run `pip install safetensors`"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe_pickle_message(path, str(error))) from error
    except Exception as error:  # damaged archives raise RuntimeError, EOFError, OSError and others
        if "TorchScript" in str(error):
            raise CheckpointError(_torchscript_message(path)) from error
        raise CheckpointError(
            f"source model {str(path)!r} cannot be read ({type(error).__name__}): the file is"
            " damaged or incomplete; copy it again"
        ) from error


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return starts_as_safetensors(file.read(9), path)


def starts_as_safetensors(start: bytes, path: Path) -> bool:
    """Return whether a file's first bytes are the format's: 8 with the header's length, then JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _unsafe_pickle_message(path: Path, torch_message: str) -> str:
    """Explain why torch refused a pickle, and how to extract its weights."""
    refused_global = re.search(r"GLOBAL ([\w.]+)", torch_message)
    if refused_global is None:
        return (
            f"source model {str(path)!r} is not a checkpoint of plain weights; give a file made by"
            " torch.save from tensors, numbers and strings only"
        )
    name = refused_global[1]
    return (
        f"source model {str(path)!r} is not a checkpoint of plain weights: it holds a {name}, and"
        " unpickling that could run code; if you trust the file, extract its weights and give the"
        f" extracted file; in a folder from which Python imports {_defining_code(name)}, run:"
        f" {_shell_command(path, _script_imports(name) + _EXTRACT_WEIGHTS)}"
    )


def _defining_code(name: str) -> str:
    if name.startswith("__main__."):
        return f"SCRIPT, the name of the program that defines {name.removeprefix('__main__.')}"
    return "the code that the file was made with"


def _script_imports(name: str) -> str:
    """The import that lets pickle find classes defined in a program that was run as a script."""
    return "from SCRIPT import *; " if name.startswith("__main__.") else ""


def _torchscript_message(path: Path) -> str:
    script = (
        "import sys, torch;"
        " torch.save(torch.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])"
    )
    return (
        f"source model {str(path)!r} is a TorchScript program, not a checkpoint of plain weights:"
        f" extract its weights and give the extracted file; run: {_shell_command(path, script)}"
    )


def _shell_command(path: Path, script: str) -> str:
    """Return a command that runs a script on a file and writes NAME.weights.pth beside it."""
    path = path.absolute()
    extracted = path.with_name(f"{path.stem}.weights.pth")
    return f'python -c "{script}" {shlex.quote(str(path))} {shlex.quote(str(extracted))}'


def checkpoint_sha256(path: Path) -> str:
    """Return the SHA-256 of a checkpoint: of a file's bytes, or of all files read from a folder."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in source_files(path):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
