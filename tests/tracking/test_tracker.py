"""Names and objects as trackers: what is refused, and with which advice."""

import importlib
import sys

import pytest

from sfss_ray.cli import main
from sfss_ray.errors import ConfigError
from sfss_ray.tracking.tracker import (
    TRACKER_NAMES,
    Tracker,
    check_trackers,
    create_trackers,
    require_package,
)


class Silent:
    """Fits the protocol and does nothing."""

    def start(self, run_name, config): ...

    def log_metrics(self, metrics, step): ...

    def log_text(self, name, text): ...

    def log_artifact(self, path): ...

    def finish(self, failed): ...


@pytest.fixture
def installed(monkeypatch):
    """Pretends that only some packages are installed."""

    def install(*names: str) -> None:
        def find(name):
            if name not in names:
                raise ImportError(f"No module named {name!r}")

        monkeypatch.setattr(importlib, "import_module", find)

    return install


def test_names_and_objects_are_accepted(installed):
    installed(*TRACKER_NAMES)
    check_trackers([*TRACKER_NAMES, Silent()])
    check_trackers(())
    assert isinstance(Silent(), Tracker)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'mlfow' is unknown: allowed are tensorboard, mlflow"):
        check_trackers(["mlfow"])


def test_a_bare_string_is_no_sequence_of_trackers():
    with pytest.raises(ConfigError, match=r"give a sequence, such as \('wandb',\)"):
        check_trackers("wandb")


@pytest.mark.parametrize("name", TRACKER_NAMES)
def test_a_missing_package_is_named_with_its_extra(name, installed):
    installed()
    with pytest.raises(ConfigError, match=rf"{name}.*pip install 'sfss-ray\[{name}\]'") as refused:
        check_trackers([name])
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="not installed"):
        require_package(name)


def test_an_object_that_lacks_a_method_is_refused():
    tracker = Silent()
    tracker.log_text = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match="has no method 'log_text'"):
        check_trackers([tracker])
    with pytest.raises(ConfigError, match="has no method 'start'"):
        check_trackers([3])  # pyright: ignore[reportArgumentType]


def test_a_class_is_not_an_object():
    with pytest.raises(ConfigError, match="is a class"):
        check_trackers([Silent])  # pyright: ignore[reportArgumentType]


def test_named_trackers_keep_their_files_below_the_output_folder(tmp_path):
    silent = Silent()
    tensorboard, mlflow, wandb, custom = create_trackers([*TRACKER_NAMES, silent], tmp_path)
    assert custom is silent
    folder = tmp_path / "tracking"
    assert tensorboard.folder == folder / "tensorboard"
    assert mlflow.id_file == folder / "mlflow_run_id"
    assert wandb.id_file == folder / "wandb_run_id"
    assert not folder.exists()


def test_trackers_are_named_on_the_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    monkeypatch.setitem(sys.modules, "mlflow", sys)
    required = [
        "--source-model",
        "x.pt",
        "--target-images",
        "y",
        "--output-dir",
        str(tmp_path / "z"),
    ]
    assert main(["adapt", *required, "--trackers", "mlflow", "wandb"]) == 2
    assert "tracker 'wandb' needs a package" in capsys.readouterr().err
    assert not (tmp_path / "z").exists()
