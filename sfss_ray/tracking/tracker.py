"""The interface of experiment trackers, and how `trackers=("mlflow", ...)` becomes objects."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from sfss_ray.errors import ConfigError
from sfss_ray.storage.places import Place

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
TRACKER_NAMES: tuple[str, ...] = get_args(TrackerName)


@runtime_checkable
class Tracker(Protocol):
    """Receives the numbers and files of one run, in the driver process only.

    Methods may be called from another thread than `start`, but never two at the same time. An
    exception from any of them is reported once and does not end the run.
    """

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        """Begin a run, or continue it where the same output folder is resumed.

        Args:
            run_name: Name of the run's output folder.
            config: Every knob by dotted name.
        """
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record finite numbers of one step; names have a prefix, such as `train/loss`."""
        ...

    def log_text(self, name: str, text: str) -> None:
        """Record a text, such as the table of results."""
        ...

    def log_artifact(self, path: Path) -> None:
        """Record a file of the run: report.json, report.html or a picture (PNG)."""
        ...

    def finish(self, failed: bool) -> None:
        """End the run; `failed` is True when an error or Ctrl-C ended it."""
        ...


TrackerLike = Tracker | TrackerName
"""A tracker, or the name of one that this package has."""
_METHODS = ("start", "log_metrics", "log_text", "log_artifact", "finish")


def check_trackers(trackers: Sequence[TrackerLike]) -> None:
    """Raise ConfigError for an unknown tracker, or one whose package is not installed."""
    if isinstance(trackers, str):
        raise ConfigError(f"trackers is {trackers!r}: give a sequence, such as ({trackers!r},)")
    for tracker in trackers:
        if isinstance(tracker, str):
            _require_known(tracker)
            require_package(tracker)
            continue
        missing = [name for name in _METHODS if not callable(getattr(tracker, name, None))]
        if isinstance(tracker, type) or missing:
            fault = f"has no method {missing[0]!r}" if missing else "is a class"
            raise ConfigError(
                f"tracker {tracker!r} {fault}: give one of {', '.join(TRACKER_NAMES)}, or an object"
                f" with the methods {', '.join(_METHODS)}"
            )


def create_trackers(trackers: Sequence[TrackerLike], output_dir: Place) -> list[Tracker]:
    """Return checked trackers as objects; named ones keep their files below the output folder."""
    return [
        _create_tracker(tracker, output_dir / "tracking") if isinstance(tracker, str) else tracker
        for tracker in trackers
    ]


def _create_tracker(name: str, folder: Place) -> Tracker:
    if name == "tensorboard":
        from sfss_ray.tracking.tensorboard_tracker import TensorBoardTracker

        return TensorBoardTracker(folder / "tensorboard")
    if name == "mlflow":
        from sfss_ray.tracking.mlflow_tracker import MlflowTracker

        return MlflowTracker(folder)
    from sfss_ray.tracking.wandb_tracker import WandbTracker

    return WandbTracker(folder)


def _require_known(name: str) -> None:
    if name not in TRACKER_NAMES:
        raise ConfigError(
            f"tracker {name!r} is unknown: allowed are {', '.join(TRACKER_NAMES)}, or an object with"
            f" the methods {', '.join(_METHODS)}"
        )


def require_package(name: str) -> ModuleType:
    """Import the package of a tracker.

    Raises:
        ConfigError: the package is not installed; the message says which extra installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"tracker {name!r} needs a package that is not installed ({error}): pip install"
            f" 'sfss-ray[{name}]'"
        ) from error
