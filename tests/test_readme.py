"""The README and the guides: commands are understood, Python is public and runs, links have targets."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import sfss_ray
from sfss_ray import cli
from sfss_ray.cli.calls import Program, parse
from sfss_ray.cli.verbs import VERBS
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import Card
from sfss_ray.models.model_file import SourceModel, load_model, save_model
from sfss_ray.models.source import open_source
from sfss_ray.report.report_record import IMPROVED, RunRecord, Verdict
from sfss_ray.runtime import cluster
from sfss_ray.storage.places import ObjectPath, to_place
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST_README = 128


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of some languages on a page."""
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", page.read_text(), re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One documented command of this package, and the page it is on."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words[:3])}"


def commands() -> list[Command]:
    """Return every documented call of sfss-ray or of a recipe, once."""
    collected = []
    for page in PAGES:
        text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
        if page == README:
            text += "\n" + "\n".join(
                re.findall(r"^\|.*?\| `(.*?)`", page.read_text(), re.MULTILINE)
            )
        for line in text.splitlines():
            words = tuple(shlex.split(line, comments=True))
            # A recipe lies at the top of experiments/. The studies below it run for hours.
            recipe = words[:1] == ("python",) and Path(words[1]).parent == Path("experiments")
            if words and (words[0] == "sfss-ray" or (recipe and words[2:])):
                collected.append(Command(page.name, words))
    return list(dict.fromkeys(collected))


def test_the_readme_is_short_and_keeps_its_setup_commands():
    lines = README.read_text().splitlines()
    assert len(lines) <= LONGEST_README
    setup = [line for line in lines if line.startswith("python -m venv")]
    assert len(setup) == 2
    assert setup[0].endswith("&& pip install -e . && python experiments/tune_gta2cs.py")
    assert setup[1].endswith("&& pip install -e '.[test]' && pytest -n 2")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("command", commands(), ids=str)
def test_documented_commands_are_understood(command, experiment, monkeypatch, tmp_path, capsys):
    """In an empty folder each command gets as far as naming the first missing input."""

    def start_cluster() -> None:
        raise AssertionError("a cluster would have been started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "prepare_environment", start_cluster)
    if command.words[0] == "sfss-ray":
        code = cli.main(command.words[1:])
    else:
        code = experiment(Path(command.words[1]).stem).main(list(command.words[2:]))
    printed = capsys.readouterr()
    if "--print-config" in command.words:
        assert code == 0
    elif "--dry-run" in command.words:
        assert code == 1
        assert "MISSING" in printed.out
    else:
        assert code == 2, printed
        # The buckets of examples do not exist either, and their server may be out of reach.
        has_address = any(word.startswith("s3://") for word in command.words)
        assert "does not exist" in printed.err or (has_address and "cannot be" in printed.err)


def test_the_cluster_takes_three_commands_and_no_shared_disk():
    """The job is one that the recipe's own command line understands."""
    (section,) = re.findall(r"## On a Ray cluster\n(.*?)\n## ", README.read_text(), re.DOTALL)
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    head, node, job = block.splitlines()
    assert head.startswith("ray start --head ")
    assert node.startswith("ray start --address ")
    submission, _, entry = job.partition(" -- ")
    assert submission.startswith("ray job submit ")
    script, *words = shlex.split(entry)[1:]
    assert (ROOT / script).is_file()
    call = parse(Program(VERBS["tune"], script), words)
    for name in ("source_model", "target_images", "sam_checkpoint", "output_dir"):
        assert isinstance(to_place(call.arguments[name]), ObjectPath), name


def test_the_commands_cover_every_verb():
    """Each verb of the command line is shown at least once."""
    lines = [" ".join(command.words) for command in commands()]
    for verb in cli.VERBS:
        assert any(line.startswith(f"sfss-ray {verb} ") for line in lines), verb


def public_uses(code: str) -> set[str]:
    """Return the names of sfss_ray that a piece of code uses; imports from its modules stay dotted."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sfss_ray"):
            below = (node.module or "").removeprefix("sfss_ray").lstrip(".")
            names |= {f"{below}.{alias.name}".lstrip(".") for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.startswith("sfss_ray.")}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "sfss_ray" else set()
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_python_uses_public_names_only(page):
    for code in blocks(page, "python", "py"):
        assert public_uses(code) <= set(sfss_ray.__all__)


def test_a_private_name_would_be_noticed():
    assert public_uses("from sfss_ray.models.card import Card") == {"models.card.Card"}
    assert public_uses("import sfss_ray\nsfss_ray.adapt('a')") == {"adapt"}


@pytest.fixture(params=["shipped", "another card"])
def student(request, tmp_path: Path) -> Path:
    """Return a student.pt: the shipped weights, or a network of BGR images in 0 to 255."""
    path = tmp_path / "student.pt"
    if request.param == "shipped":
        return save_model(path, load_model(SOURCE_MODEL))
    torch.manual_seed(0)
    network = build_network("compact", 19).eval()
    network.use_card(Card((104.0, 117.0, 123.0), (60.0, 60.0, 60.0), "bgr", 255.0, True))
    return save_model(path, SourceModel(network, "compact", CITYSCAPES_19))


class Net(nn.Module):
    """A network that sfss_ray does not know."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Conv2d(8, 19, 1)

    def forward(self, images):
        return {"out": self.classifier(self.encoder(images))}


def test_the_python_of_the_readme_runs(monkeypatch, tmp_path):
    """A user's module is wrapped and adapted, and its student is scored, predicted with and exported.

    The training is left out: its result holds the source model itself.
    """
    pytest.importorskip("onnxruntime")
    signature, calls = inspect.signature(sfss_ray.adapt), []

    def adapt(*arguments, **options):
        call = signature.bind(*arguments, **options).arguments
        calls.append(call)
        source, folder = call["source_model"], Path(call["output_dir"])
        path = sfss_ray.save_model(folder / "student.pt", source)
        record = RunRecord(verdict=Verdict(IMPROVED, "mIoU rises."))
        return sfss_ray.AdaptResult(folder, path, record, architecture=source.architecture)

    monkeypatch.setattr(sfss_ray, "adapt", adapt, raising=False)
    monkeypatch.chdir(tmp_path)
    write_streets(tmp_path / "val", "camera", 6, 2, (64, 96))
    shutil.copytree("val/images", "images")
    (code,) = blocks(README, "python")
    names: dict = {"network": Net()}
    exec(compile(code, "README.md", "exec"), names)
    assert open_source(calls[0]["source_model"]).network == "My U-Net"
    assert names["classes"].shape == (1, 512, 1024)
    assert len(list(Path("runs/night/predictions/train_ids").iterdir())) == 2
    assert Path("runs/night/student.onnx").is_file()


def test_a_module_of_ones_own_takes_eight_lines():
    """Without the class of the module: the first block of the guide, which is Python."""
    code = blocks(ROOT / "docs" / "your-own-model.md", "python")[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 8
    assert len(ast.parse(code).body) == 7
    assert {"load_source_model", "adapt"} <= public_uses(code)


def test_a_student_is_used_as_the_guide_says(student, monkeypatch):
    """The last block of the guide loads a student and names the classes that it predicts."""
    monkeypatch.chdir(student.parent)
    code = blocks(ROOT / "docs" / "your-own-data.md", "python")[-1]
    names: dict = {}
    exec(compile(code, "your-own-data.md", "exec"), names)
    assert names["logits"].shape == (1, 19, 512, 1024)
    assert set(names["names"]) <= set(CITYSCAPES_19.classes)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(names["model"](images), load_model(student)(images))
