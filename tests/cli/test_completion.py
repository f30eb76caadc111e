"""The completion script completes verbs, options and choices in a real shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sfss_ray import cli
from sfss_ray.cli.completion import completion_script
from sfss_ray.config.presets import PRESETS


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "sfss-ray.bash"
    path.write_text(completion_script("bash"))
    return path


def complete(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    typed = " ".join(f"'{word}'" for word in ("sfss-ray", *words))
    command = (
        f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _sfss_ray;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert process.stderr == ""
    return process.stdout.split()


def test_verbs_are_completed(script):
    first_words = {name.partition(" ")[0] for name in cli.VERBS}
    assert first_words < set(complete(script, ""))
    assert complete(script, "ma") == ["masks"]
    assert complete(script, "masks", "i") == ["import", "inspect"]
    assert complete(script, "data", "") == ["check"]
    assert complete(script, "predict", "") == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("adapt", "--sam"), ["--sam-checkpoint", "--sam-type"]),
        (("adapt", "--sam-type", "auto", "--targ"), ["--target-images"]),
        (("masks", "import", "--output"), ["--output-dir"]),
        (("masks", "inspect", "--output"), ["--output-file"]),
        (("masks", "--masks.points-per-s"), ["--masks.points-per-side"]),
        (("predict", "--train"), []),
        (("train", "--train.loss.label"), []),
        (("adapt", "--masks.regions", "s"), ["sam", "small_sam"]),
        (("--print-completion", ""), ["bash", "zsh"]),
    ],
)
def test_options_and_choices_are_completed(words, offered, script):
    assert complete(script, *words) == offered


def test_every_preset_is_offered(script):
    assert complete(script, "adapt", "--preset", "") == list(PRESETS)


def test_zsh_loads_bash_completion_first():
    lines = completion_script("zsh").splitlines()
    assert lines[1] == "autoload -U +X bashcompinit && bashcompinit"
    assert lines[2:] == completion_script("bash").splitlines()[1:]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_the_script(tmp_path: Path):
    (tmp_path / "script").write_text(completion_script("zsh"))
    words = ["zsh", "-fc", f"autoload -U compinit; compinit -u; source {tmp_path / 'script'}"]
    assert subprocess.run(words, capture_output=True, text=True).stderr == ""
