"""Config files: read from JSON or YAML, and written as YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from sfss_ray.config.space import gather_space
from sfss_ray.config.tree import Config, flatten, override
from sfss_ray.errors import ConfigError
from sfss_ray.storage.addresses import without_secret
from sfss_ray.storage.places import Place, parsed
from sfss_ray.storage.text import limited_nesting, read_text


class _YamlLoader(yaml.SafeLoader):
    """The safe loader, which also reads 1e-4 as a number: YAML 1.1 would make it a string."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(path: Place | str, base: Config | None = None) -> Config:
    """Return a config with the values of a JSON or YAML file set over `base`.

    Args:
        path: A file, or its address. One whose name ends in .json holds JSON, any other YAML. Names are
            dotted ("train.loss.temperature", as in best_config.json of a search) or nested.
        base: Values of the knobs that the file does not name. None: the defaults.

    Raises:
        ConfigError: the file cannot be read or holds no mapping, or a name or a value is refused by
            `override`.
    """
    path = parsed(path)
    try:
        with limited_nesting():
            parse = json.loads if str(path).endswith(".json") else parse_yaml
            values = parse(read_text(path))
            flat = _flatten_names(values) if isinstance(values, dict) else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = without_secret(" ".join(str(error).split()))
        raise ConfigError(f"cannot read config {str(path)!r} ({reason}): {_ADVICE}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"cannot read config {str(path)!r} (it holds a {type(values).__name__}): {_ADVICE}"
        )
    return override(base or Config(), gather_space(flat))


_ADVICE = (
    'give a JSON or YAML file of settings by name, such as {"train.loss.temperature": 0.1} or'
    " train.loss.temperature: 0.1"
)


def parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML text, in which 1e-4 is a number."""
    return yaml.load(text, Loader=_YamlLoader)  # a subclass of the safe loader


def _flatten_names(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value of a mapping that may be nested."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten_names(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_yaml(config: Config) -> str:
    """Return every knob of a config as YAML of dotted names, which `load_config` reads back."""
    lines = [f"{name}: {_yaml_value(value)}" for name, value in flatten(config).items()]
    return "\n".join(lines) + "\n"


def _yaml_value(value: Any) -> str:
    """Return one value in YAML's flow style, lists in brackets on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
