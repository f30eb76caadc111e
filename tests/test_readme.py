"""The README and the guides: commands are understood, Python is public and runs, links have targets."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sfss_ray
from sfss_ray import cli
from sfss_ray.cli.calls import Program, parse
from sfss_ray.cli.verbs import VERBS
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import Card
from sfss_ray.models.model_file import SourceModel, load_model, save_model
from sfss_ray.runtime import cluster
from sfss_ray.storage.places import ObjectPath, to_place
from sfss_ray.streets.default import SOURCE_MODEL

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


def test_the_python_of_the_readme_runs(student, monkeypatch):
    """Its call fits the signature of `adapt`, and its student predicts classes."""
    signature, calls = inspect.signature(sfss_ray.adapt), []

    def adapt(*arguments, **options):
        calls.append(signature.bind(*arguments, **options).arguments)
        scores = {"adapted": {"anchored_information": 1.9}}
        return SimpleNamespace(metrics=scores, report_html="report.html", student_path=student)

    monkeypatch.setattr(sfss_ray, "adapt", adapt, raising=False)
    (code,) = blocks(README, "python")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert calls[0]["config"].train.num_steps == 4000
    assert names["classes"].shape == (1, 512, 1024)
    for attribute in ("metrics", "report_html", "student_path"):
        assert hasattr(sfss_ray.AdaptResult, attribute) or attribute in (
            sfss_ray.AdaptResult.__dataclass_fields__
        )


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
