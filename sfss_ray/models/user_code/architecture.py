"""A user's module by the address of the function that builds it, for the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sfss_ray.errors import ConfigError, SfssError
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.user_code.carried_module import first_line
from sfss_ray.models.user_code.custom import wrapped_network

_EXAMPLE = "package.module:function or path/to/file.py:function"


def build_architecture(address: str) -> nn.Module:
    """Import a function and return the torch module, or the result of `wrap_model`, that it builds.

    A package is imported as Python does, with the working folder on the search path. The folder of a
    file is put on the search path, so the file may import its neighbours.

    Args:
        address: `package.module:function` or `path/to/file.py:function`. The function takes no
            arguments. A class that takes none will do.

    Raises:
        ConfigError: the address has another form, the file, module or function does not exist, it
            raises an error, or it returns something else than a torch module of the user's own.
    """
    location, colon, name = address.rpartition(":")
    if not colon or not location or not name.isidentifier():
        raise ConfigError(f"architecture is {address!r}: allowed is {_EXAMPLE}")
    function = _function_of(_import(location, address), name, address)
    try:
        module = function()
    except SfssError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        raise ConfigError(
            f"architecture {address!r} fails ({type(error).__name__}: {first_line(error)}): give a"
            " function that takes no arguments and returns a torch module"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"architecture {address!r} returns {type(module).__name__}: give a function that returns a"
            " torch module"
        )
    is_model = isinstance(module, Segmenter) or isinstance(
        getattr(module, "network", None), Segmenter
    )
    if is_model and wrapped_network(module) is None:
        raise ConfigError(
            f"architecture {address!r} returns a network that this package builds: leave out"
            " --architecture and give the checkpoint, or return a module of your own or the result of"
            " sfss_ray.wrap_model"
        )
    return module


def _import(location: str, address: str) -> ModuleType:
    """Import a module by its name or file."""
    if not location.endswith(".py"):
        _add_to_path(Path.cwd())
        return _import_name(location, address)
    file = Path(location).absolute()
    if not file.is_file():
        raise ConfigError(f"architecture {address!r}: the file {location!r} does not exist")
    # Pickle refers to classes by the name of their module, so the file is imported by its name.
    _add_to_path(file.parent)
    module = _import_name(file.stem, address)
    imported = getattr(module, "__file__", None)
    if imported is None or Path(imported).resolve() != file.resolve():
        raise ConfigError(
            f"architecture {address!r}: the name {file.stem!r} belongs to another module"
            f" ({imported or 'built in'}): rename the file"
        )
    return module


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_name(name: str, address: str) -> ModuleType:
    importlib.invalidate_caches()  # the file may be newer than what Python remembers of its folder
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        is_part = name == missing or name.startswith(f"{missing}.")
        advice = (
            f"give {_EXAMPLE}" if is_part else "its file imports it; install it, or put it beside"
        )
        raise ConfigError(
            f"architecture {address!r}: there is no module {missing!r}: {advice}"
        ) from error
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        raise ConfigError(
            f"architecture {address!r}: {name!r} cannot be imported ({type(error).__name__}:"
            f" {first_line(error)})"
        ) from error


def _function_of(module: ModuleType, name: str, address: str) -> Callable[[], Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    names = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    raise ConfigError(
        f"architecture {address!r}: the module has no function {name!r}: it has"
        f" {', '.join(names) or 'none'}"
    )
