"""Users' own modules on their way to other machines, tried in fresh processes."""

from __future__ import annotations

import importlib
import importlib.machinery
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from user_projects import FILES, on_path, write_files

import sfss_ray
from sfss_ray.errors import ConfigError
from sfss_ray.models.source import Source, open_source
from sfss_ray.models.user_code.carried_module import check_travels

__all__ = ["on_path"]


def source_of(module: nn.Module) -> Source:
    model = sfss_ray.wrap_model(module, classes="cityscapes-19", feature_layer="encoder.1")
    return open_source(model)


@pytest.fixture
def project(tmp_path: Path, on_path) -> Path:
    """The folder of a user's code; its `model.Net` can be imported."""
    root = write_files(tmp_path / "project", FILES)
    on_path(root)
    return root


def module_of(name: str = "model") -> nn.Module:
    torch.manual_seed(0)
    return importlib.import_module(name).Net()


def derived(project: Path, name: str, head: str, factor: str = "FACTOR") -> nn.Module:
    """A network whose module begins with `head`; its logits are multiplied by an expression."""
    body = f"""
    from model import Net as Base
    class Net(Base):
        def forward(self, x):
            return super().forward(x) * {factor}
    """
    (project / f"{name}.py").write_text(head + textwrap.dedent(body))
    return module_of(name)


def test_helper_modules_travel_with_a_network(project):
    source = source_of(module_of())
    check_travels(source)
    carried = source.carried
    assert carried is not None
    assert carried.payload is not None
    assert set(carried.payload.sources) == {
        *("model", "utilities", "late", "helpers", "helpers.blocks", "helpers.numbers_of"),
    }
    again = pickle.loads(pickle.dumps(carried))
    assert type(again.module) is type(carried.module)
    import late  # pyright: ignore[reportMissingImports]

    assert Path(late.__file__) == project / "late.py"  # this process keeps importing its own files


def test_a_network_is_checked_once(project, monkeypatch):
    source = source_of(module_of())
    check_travels(source)
    monkeypatch.setattr(subprocess, "run", None)
    check_travels(source_of(module_of()))


def test_a_worker_sends_on_what_it_was_sent(project, tmp_path: Path):
    """A trial of several workers hands the network on to them."""
    source = source_of(module_of()).placed(tmp_path)
    (tmp_path / "first").write_bytes(pickle.dumps(source))
    code = (
        "import pickle, sys, torch; source = pickle.load(open(sys.argv[1], 'rb'));"
        "open(sys.argv[2], 'wb').write(pickle.dumps(source));"
        "torch.save(source.load()(torch.full((1, 3, 32, 32), .5)).detach(), sys.argv[3])"
    )
    for given, next_one in (("first", "second"), ("second", "third")):
        subprocess.run(
            [sys.executable, "-c", code, *(tmp_path / n for n in (given, next_one, "logits"))],
            check=True,
            cwd=tmp_path,
        )
        with torch.no_grad():
            expected = source.load()(torch.full((1, 3, 32, 32), 0.5))
        assert torch.allclose(torch.load(tmp_path / "logits", weights_only=True), expected)


def test_replaced_functions_travel(project, monkeypatch):
    source = source_of(module_of())
    check_travels(source)
    model = sys.modules["model"]
    monkeypatch.setattr(model, "enlarge", lambda x, _: nn.functional.interpolate(x, scale_factor=2))
    replaced = source_of(module_of())
    check_travels(replaced)
    for checked, side in ((source, 32), (replaced, 16)):
        assert checked.carried is not None
        logits = logits_elsewhere(checked, project)
        assert logits.shape[-1] == side


def logits_elsewhere(source: Source, folder: Path) -> torch.Tensor:
    """What another process without the user's folders computes of an image of 32x32 pixels."""
    (folder / "carried").write_bytes(pickle.dumps(source.carried))
    code = (
        "import pickle, sys, torch; from sfss_ray.models.user_code.custom import with_room_for_weights;"
        "module = with_room_for_weights(pickle.load(open(sys.argv[1], 'rb')).module);"
        "torch.save(module(torch.zeros(1, 3, 32, 32)).detach(), sys.argv[2])"
    )
    command = [sys.executable, "-c", code, folder / "carried", folder / "logits"]
    subprocess.run(command, check=True, cwd="/")
    return torch.load(folder / "logits", weights_only=True)


def test_values_that_were_read_from_files_travel(project):
    (project / "factor.txt").write_text("3")
    head = (
        "from pathlib import Path\nFACTOR = int(Path(__file__).with_name('factor.txt').read_text())"
    )
    check_travels(source_of(derived(project, "reading", head)))


def test_values_of_the_command_line_travel(project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "3"])
    head = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('factor', type=int)"
        "\nFACTOR = parser.parse_args().factor\n"
    )
    source = source_of(derived(project, "parsing", head))
    check_travels(source)
    assert logits_elsewhere(source, project).shape == (1, 19, 32, 32)


def reading_a_file(project: Path) -> nn.Module:
    """It reads a file of its package in every pass."""
    (project / "helpers" / "factor.txt").write_text("3")
    head = "from importlib.resources import files\n"
    return derived(project, "reads", head, "int((files('helpers') / 'factor.txt').read_text())")


def needing_an_extension(project: Path) -> nn.Module:
    """It needs a module that this process has imported and that is no Python source."""
    file = project / f"kernels{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    kernels = types.ModuleType("kernels")
    kernels.__spec__ = importlib.machinery.ModuleSpec("kernels", None, origin=str(file))
    kernels.__spec__.has_location = True
    kernels.__file__ = str(file)
    vars(kernels)["FACTOR"] = 2.0
    sys.modules["kernels"] = kernels
    return derived(project, "with_kernels", "import kernels\n", "kernels.FACTOR")


def needing_a_module_without_a_file(project: Path) -> nn.Module:
    sys.modules["made_up"] = types.ModuleType("made_up")
    return derived(project, "with_made_up", "import made_up\n", "len(made_up.__name__)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (reading_a_file, "does not work in a fresh process.*FileNotFoundError.*do not travel"),
        (
            needing_an_extension,
            r"needs 'kernels', which a worker cannot.*kernels\..*so is no Python",
        ),
        (needing_a_module_without_a_file, r"needs 'made_up'.*no installed package"),
    ],
)
def test_what_cannot_travel_is_refused_in_one_line(make, message, project, monkeypatch):
    for name in ("kernels", "made_up"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        source = source_of(make(project))
        with pytest.raises(ConfigError, match=message) as refused:
            check_travels(source)
    finally:
        for name in ("kernels", "made_up"):
            sys.modules.pop(name, None)
    assert "\n" not in str(refused.value)
    assert "installed on every node" in str(refused.value)


def test_modules_that_cannot_be_copied_are_refused_in_one_line():
    module = nn.Sequential()
    module.encoder = nn.Sequential(nn.Conv2d(3, 19, 1), nn.BatchNorm2d(19))
    module.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"cannot be copied \(TypeError.*lock.*remove") as refused:
        source_of(module)
    assert "\n" not in str(refused.value)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1] if len(sys.argv) > 1 else PROJECT)
import helpers.blocks
import model
import sfss_ray
from sfss_ray.models.user_code.carried_module import check_travels
from sfss_ray.models.source import open_source

class Net(model.Net):
    def forward(self, x):
        if self.training:
            from late import noise
            x = noise(x)
        return helpers.blocks.double(super().forward(x))

assert "late" not in sys.modules
wrapped = sfss_ray.wrap_model(Net(), classes="cityscapes-19", feature_layer="encoder.1")
source = open_source(wrapped)
check_travels(source)
print(*sorted(source.carried.payload.sources))
"""


@pytest.mark.parametrize("how", ["a script", "a notebook"])
def test_networks_of_the_main_module_travel(how, project):
    """A notebook's main module has no file; nor has what is read from standard input."""
    script = project.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, project] if how == "a script" else [sys.executable]
    done = subprocess.run(
        command,
        input=f"PROJECT = {str(project)!r}\n{SCRIPT}",
        capture_output=True,
        text=True,
        check=False,
        cwd=project.parent,
    )
    names = "helpers helpers.blocks helpers.numbers_of late model utilities"
    assert done.stdout.strip() == names, done.stderr
