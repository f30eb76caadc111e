"""The search space: which settings a search varies, and between which values.

An entry is NAME=SPEC, with the dotted name of a setting of the training:

    train.loss.vote_weight=0.2..1              uniform between two numbers
    train.optim.learning_rate=log:1e-5..1e-3   log-uniform
    train.ema_momentum=gap:0.99..0.9999        log-uniform in 1 - value
    train.batch_norm=auto,frozen,target        one of several values
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sfss_ray.errors import ConfigError

_CONTRAST = ("train.loss.temperature=log:0.03..0.7", "train.loss.contrast_weight=log:0.01..2")
DEFAULT_SPACE = (*_CONTRAST, "train.ema_momentum=gap:0.99..0.9999")
"""Searched where `tune.space` is not set, with the default momentum and without neighbours."""
SPACE_PREFIX = "tune.space."
"""Prefix of entries that a config file gives as a mapping."""
GRAMMAR = (
    "NAME=LOW..HIGH, NAME=log:LOW..HIGH, NAME=gap:LOW..HIGH (log-uniform in 1 - value) or"
    " NAME=VALUE,VALUE,..."
)
_NOT_SEARCHED = ("train.num_steps", "train.evaluate_every", "train.keep", "train.compile")
"""Settings of the training that decide how trials are compared or only how fast they run."""
_ENTRY = re.compile(r"(?P<name>[\w.]+)=(?:(?P<scale>log|gap):)?(?P<rest>.+)", re.DOTALL)

Scale = Literal["linear", "log", "gap", "choices"]


@dataclass(frozen=True)
class Dimension:
    """One setting that a search varies."""

    name: str
    """Dotted, such as train.loss.temperature."""
    scale: Scale
    """Distribution: uniform, log-uniform, log-uniform in 1 - value, or one of `choices`."""
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The outermost values of a range, or all choices."""
        return self.choices or (self.low, self.high)


def parse_entry(entry: str) -> Dimension:
    """Take one entry apart.

    Raises:
        ConfigError: it does not have the form of an entry, or its range is empty.
    """
    match = _ENTRY.fullmatch(entry.strip())
    if match is None:
        raise _refused(entry, f"allowed is {GRAMMAR}")
    name, rest = match["name"], match["rest"]
    scale: Literal["log", "gap"] | None = match["scale"]  # pyright: ignore[reportAssignmentType]
    low, dots, high = rest.partition("..")
    if not dots:
        return _choices(entry, name, scale, rest)
    try:
        dimension = Dimension(name, scale or "linear", float(low), float(high))
    except ValueError:
        raise _refused(entry, "LOW and HIGH are numbers, such as 0.2..1") from None
    if not dimension.low < dimension.high:
        raise _refused(entry, "LOW is below HIGH")
    if scale == "log" and dimension.low <= 0:
        raise _refused(entry, "LOW of a log-uniform range is above 0")
    if scale == "gap" and not (dimension.low >= 0 and dimension.high < 1):
        raise _refused(entry, "a gap range lies in [0, 1), because it is log-uniform in 1 - value")
    return dimension


def _choices(entry: str, name: str, scale: str | None, rest: str) -> Dimension:
    values = tuple(_read_value(word.strip()) for word in rest.split(","))
    if scale or len(values) < 2 or len(set(map(str, values))) < len(values):
        raise _refused(entry, "give a range LOW..HIGH, or two or more different values VALUE,VALUE")
    return Dimension(name, "choices", choices=values)


def _read_value(word: str) -> Any:
    """Read a choice as YAML would: a number, true or false, or text."""
    if word in ("true", "false"):
        return word == "true"
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word


def _refused(entry: str, reason: str) -> ConfigError:
    return ConfigError(f"tune.space has {entry!r}: {reason}")


@dataclass(frozen=True)
class Space:
    """Marks the entries of a search space. A constraint of a knob, see ranges.py."""

    def allows(self, value: Any, number: type) -> bool:
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        return is_sequence and all(isinstance(entry, str) for entry in value)

    def describe(self, number: type) -> str:
        return f"one or more entries {GRAMMAR}"


def parse_space(entries: Iterable[str]) -> tuple[Dimension, ...]:
    """Return the dimensions of a space.

    Raises:
        ConfigError: an entry is refused, names a setting twice or one that no search can vary, or there
            is none.
    """
    dimensions = tuple(parse_entry(entry) for entry in entries)
    if not dimensions:
        raise ConfigError(f"tune.space is empty: give one or more entries {GRAMMAR}")
    names = [dimension.name for dimension in dimensions]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"tune.space has {name!r} twice: keep one of the entries")
        if not name.startswith("train.") or name in _NOT_SEARCHED:
            raise ConfigError(
                f"tune.space has {name!r}: a search varies settings of the training, train.*, apart from"
                f" {', '.join(_NOT_SEARCHED)}. Masks are made once, and all trials are scored alike"
            )
    return dimensions


def default_space(ema_momentum: float, asks_neighbours: bool) -> tuple[str, ...]:
    """Return the entries that are searched where `tune.space` is not set.

    1 - momentum varies from a tenth to ten times the config's own. A short run with a quick teacher has
    no use for the momenta of a long one.

    Args:
        ema_momentum: The config's own, 0 to 1.
        asks_neighbours: Whether masks ask their neighbours. Then the weight of those varies too.
    """
    gap = 1 - ema_momentum
    low, high = max(1 - 10 * gap, 0), 1 - gap / 10
    momentum = f"train.ema_momentum=gap:{low:.6g}..{high:.6g}" if gap > 1e-5 else DEFAULT_SPACE[-1]
    neighbours = ("train.loss.neighbour_weight=0..4",) if asks_neighbours else ()
    return (*_CONTRAST, momentum, *neighbours)


def gather_space(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config file with entries of a mapping `tune.space` as one list.

    `{"tune.space.train.loss.vote_weight": "0.2..1"}` becomes
    `{"tune.space": ["train.loss.vote_weight=0.2..1"]}`. A list of values stands for choices.
    """
    rest = {name: value for name, value in values.items() if not name.startswith(SPACE_PREFIX)}
    entries = [
        f"{name.removeprefix(SPACE_PREFIX)}={_as_spec(value)}"
        for name, value in values.items()
        if name.startswith(SPACE_PREFIX)
    ]
    return rest | ({"tune.space": entries} if entries else {})


def _as_spec(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(v).lower() if isinstance(v, bool) else str(v) for v in value)
    return str(value)


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last part of each dotted name, with as many parts as tell them apart."""
    parts = [name.split(".") for name in names]
    longest = max(map(len, parts), default=0)
    for count in range(1, longest + 1):
        short = [".".join(words[-count:]) for words in parts]
        if len(set(short)) == len(short):
            return short
    return list(names)
