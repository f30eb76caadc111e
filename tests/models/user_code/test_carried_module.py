"""Tests of sending a user's module, with its code, to other processes."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from user_networks import derive_network, import_network, source_of
from user_projects import FILES, on_path, write_files

from sfss_ray.errors import ConfigError
from sfss_ray.models.source import Source
from sfss_ray.models.user_code.carried_module import CarriedModule, check_travels, first_line

__all__ = ["on_path"]

PROJECT_MODULES = {
    *("model", "utilities", "late", "helpers", "helpers.blocks", "helpers.numbers_of"),
}


@pytest.fixture
def project(tmp_path: Path, on_path) -> Path:
    """The folder of a user's code; its `model.Net` can be imported."""
    root = write_files(tmp_path / "project", FILES)
    on_path(root)
    return root


def test_imported_modules_are_sent_with_a_network(project):
    source = source_of(import_network())
    check_travels(source)
    carried = source.carried
    assert carried is not None
    assert carried.payload is not None
    assert set(carried.payload.sources) == PROJECT_MODULES
    again = pickle.loads(pickle.dumps(carried))
    assert type(again.module) is type(carried.module)
    import late  # pyright: ignore[reportMissingImports]

    assert Path(late.__file__) == project / "late.py"  # this process still imports its own files


def test_a_network_is_checked_once(project, monkeypatch):
    check_travels(source_of(import_network()))
    monkeypatch.setattr(subprocess, "run", None)
    check_travels(source_of(import_network()))


def test_networks_of_the_package_are_not_checked(monkeypatch):
    from sfss_ray.models.source import open_source
    from sfss_ray.streets.default import SOURCE_MODEL

    monkeypatch.setattr(subprocess, "run", None)
    check_travels(open_source(SOURCE_MODEL))


def test_a_worker_forwards_what_it_received(project, tmp_path: Path):
    """A trial with several workers forwards the network to them."""
    source = source_of(import_network()).placed(tmp_path)
    (tmp_path / "first").write_bytes(pickle.dumps(source))
    code = (
        "import pickle, sys, torch; source = pickle.load(open(sys.argv[1], 'rb'));"
        "open(sys.argv[2], 'wb').write(pickle.dumps(source));"
        "torch.save(source.load()(torch.full((1, 3, 32, 32), .5)).detach(), sys.argv[3])"
    )
    for received, forwarded in (("first", "second"), ("second", "third")):
        files = (tmp_path / name for name in (received, forwarded, "logits"))
        subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path)
        with torch.no_grad():
            expected = source.load()(torch.full((1, 3, 32, 32), 0.5))
        assert torch.allclose(torch.load(tmp_path / "logits", weights_only=True), expected)


def logits_elsewhere(source: Source, folder: Path) -> torch.Tensor:
    """Return the logits of an image of 32x32 pixels in a process without the user's folders."""
    (folder / "carried").write_bytes(pickle.dumps(source.carried))
    code = (
        "import pickle, sys, torch; from sfss_ray.models.user_code.custom import with_empty_weights;"
        "module = with_empty_weights(pickle.load(open(sys.argv[1], 'rb')).module);"
        "torch.save(module(torch.zeros(1, 3, 32, 32)).detach(), sys.argv[2])"
    )
    command = [sys.executable, "-c", code, folder / "carried", folder / "logits"]
    subprocess.run(command, check=True, cwd="/")
    return torch.load(folder / "logits", weights_only=True)


def test_replaced_functions_are_sent(project, monkeypatch):
    source = source_of(import_network())
    check_travels(source)
    model = sys.modules["model"]
    monkeypatch.setattr(model, "enlarge", lambda x, _: nn.functional.interpolate(x, scale_factor=2))
    replaced = source_of(import_network())
    check_travels(replaced)
    for checked, width in ((source, 32), (replaced, 16)):
        assert logits_elsewhere(checked, project).shape[-1] == width


def test_constants_read_from_files_are_sent(project):
    (project / "factor.txt").write_text("3")
    head = (
        "from pathlib import Path\nFACTOR = int(Path(__file__).with_name('factor.txt').read_text())"
    )
    check_travels(source_of(derive_network(project, "reading", head)))


def test_constants_read_from_the_command_line_are_sent(project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "3"])
    head = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('factor', type=int)"
        "\nFACTOR = parser.parse_args().factor\n"
    )
    source = source_of(derive_network(project, "parsing", head))
    check_travels(source)
    assert logits_elsewhere(source, project).shape == (1, 19, 32, 32)


def test_the_fingerprint_follows_functions_that_are_replaced(project, monkeypatch):
    carried = source_of(import_network()).carried
    assert carried is not None
    before = carried.fingerprint(), carried.pack().digest()
    assert carried.fingerprint() == before[0] != ""
    model = sys.modules["model"]
    monkeypatch.setattr(model, "enlarge", lambda x, _: x)
    assert carried.fingerprint() != before[0]
    assert carried.pack().digest() == before[1]  # by name, the module pickles as before


def test_modules_that_cannot_be_pickled_are_refused_in_one_line():
    module = nn.Sequential(nn.Conv2d(3, 3, 1))
    module.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"cannot be sent to workers \(TypeError.*lock") as error:
        CarriedModule(module).pack()
    assert "\n" not in str(error.value)


def test_messages_are_shortened_to_their_first_line():
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(ValueError("")) == "no message"
    assert len(first_line(ValueError("x" * 999))) == 200


LAZY = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        from utilities import Conv
        self.encoder = nn.Sequential(Conv(3, 8), nn.BatchNorm2d(8))
        self.classifier = nn.Conv2d(8, 19, 1)

    def forward(self, x):
        import helpers.blocks
        from utilities import enlarge
        if self.training:
            from late import noise
            x = noise(x)
        return enlarge(self.classifier(helpers.blocks.double(self.encoder(x))), 4)
"""
"""A file whose class imports its neighbours inside functions; only training mode imports `late`."""
RELATIVE = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 19, 1))

    def forward(self, x):
        if self.training:
            from .late import noise
            x = noise(x)
        return super().forward(x)
"""


def made_from_spec(file: Path, name: str, registered: bool) -> type[nn.Module]:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if registered:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.Net


def executed(file: Path, name: str) -> type[nn.Module]:
    """Run a file as a notebook runs its cells, in a module of a name or in none."""
    namespace: dict = {}
    if name:
        sys.modules[name] = types.ModuleType(name)
        namespace = vars(sys.modules[name])
    exec(file.read_text(), namespace)
    return namespace["Net"]


WAYS = {
    "a file by its spec": lambda root: made_from_spec(root / "lazy.py", "lazy_net", False),
    "a name without its package": lambda root: made_from_spec(root / "lazy.py", "no.parent", True),
    "a part of a package by its spec": lambda root: made_from_spec(
        root / "pack" / "net.py", "pack.net", False
    ),
    "exec": lambda root: executed(root / "lazy.py", ""),
    "a module without a file": lambda root: executed(root / "lazy.py", "cell"),
    "torch.hub": lambda root: lambda: torch.hub.load(str(root), "net", source="local"),
}


@pytest.mark.parametrize("way", WAYS)
def test_code_is_sent_however_it_was_loaded(way, project):
    write_files(
        project,
        {
            "lazy.py": LAZY,
            "pack/__init__.py": "",
            "pack/net.py": RELATIVE,
            "pack/late.py": FILES["late.py"],
            "hubconf.py": "from model import Net\n\n\ndef net():\n    return Net()\n",
        },
    )
    loaded = set(sys.modules)
    try:
        source = source_of(WAYS[way](project)())
        check_travels(source)
    finally:
        for name in set(sys.modules) - loaded:
            del sys.modules[name]
    assert source.carried is not None
    assert source.carried.payload is not None
    sources = source.carried.payload.sources
    late = "pack.late" if "package by" in way else "late"
    assert late in sources
    assert sources[late].text == FILES["late.py"]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1] if sys.argv[1:] else PROJECT)
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


@pytest.mark.parametrize("main_module", ["a script", "a notebook", "python -c"])
def test_networks_of_the_main_module_are_sent(main_module, project):
    """The main module of a notebook has no file, and neither has code from standard input."""
    script = project.parent / "script.py"
    script.write_text(SCRIPT)
    code = f"PROJECT = {str(project)!r}\n{SCRIPT}"
    arguments = {"a script": [script, project], "a notebook": [], "python -c": ["-c", code]}
    process = subprocess.run(
        [sys.executable, *arguments[main_module]],
        input=code,
        capture_output=True,
        text=True,
        check=False,
        cwd=project.parent,
    )
    names = "helpers helpers.blocks helpers.numbers_of late model utilities"
    assert process.stdout.strip() == names, process.stderr


PACKAGE_SCRIPT = """
from .parts import Base
import sfss_ray
from sfss_ray.models.user_code.carried_module import check_travels
from sfss_ray.models.source import open_source


class Net(Base):
    def forward(self, x):
        if self.training:
            from .late import noise
            x = noise(x)
        return super().forward(x)


source = open_source(sfss_ray.wrap_model(Net(), classes="cityscapes-19"))
check_travels(source)
print(*sorted(source.carried.payload.sources))
"""


def test_a_script_of_a_package_is_sent(tmp_path: Path):
    """`python -m pack.run` has relative imports."""
    parts = RELATIVE.replace("class Net", "class Base")
    files = {"__init__": "", "run": PACKAGE_SCRIPT, "parts": parts, "late": FILES["late.py"]}
    write_files(tmp_path, {f"pack/{name}.py": text for name, text in files.items()})
    process = subprocess.run(
        [sys.executable, "-m", "pack.run"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert process.stdout.strip() == "pack pack.late pack.parts", process.stderr
