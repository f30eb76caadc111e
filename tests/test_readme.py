"""What the README says under `Your data` holds: its Python runs, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from sfss_ray import cli
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import Card
from sfss_ray.models.model_file import SourceModel, load_model, save_model
from sfss_ray.streets.default import SOURCE_MODEL

ROOT = Path(__file__).resolve().parents[1]


def section() -> str:
    text = (ROOT / "README.md").read_text()
    return text[text.index("## Your data") :].split("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(), re.DOTALL)


@pytest.fixture(params=["shipped", "another card"])
def student(request, tmp_path: Path) -> Path:
    """A student.pt: the shipped weights, or a network of BGR images in 0 to 255."""
    path = tmp_path / "student.pt"
    if request.param == "shipped":
        return save_model(path, load_model(SOURCE_MODEL))
    torch.manual_seed(0)
    network = build_network("compact", 19).eval()
    network.use_card(Card((104.0, 117.0, 123.0), (60.0, 60.0, 60.0), "bgr", 255.0, True))
    return save_model(path, SourceModel(network, "compact", CITYSCAPES_19))


def test_a_student_loads_with_torch_as_the_readme_says(student, monkeypatch):
    (code,) = blocks("python")
    monkeypatch.chdir(student.parent)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["classes"].shape == (1, 512, 1024)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = load_model(student)(images)
        assert torch.equal(names["network"].logits(images), expected)


def commands() -> list[list[str]]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    return [words for words in lines if words]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_the_commands_of_the_readme_are_parsed(words, monkeypatch, tmp_path: Path, capsys):
    """In an empty folder each of them gets as far as saying what is missing there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    if words[0] == "sfss-ray":
        assert cli.main(words[1:]) == 2
        assert "does not exist" in capsys.readouterr().err
        return
    import tune_gta2cs

    assert words[:2] == ["python", "experiments/tune_gta2cs.py"]
    tune_gta2cs.run(tune_gta2cs.parse_arguments(words[2:]))
    assert capsys.readouterr().out.count("MISSING") == 3


def test_the_section_shows_both_paths():
    verbs = {words[1] for words in commands()}
    assert {"data", "verify", "pretrain", "adapt", "evaluate", "predict", "export"} <= verbs
    assert list(commands())[2][-1] == "--dry-run"
