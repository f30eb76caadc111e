"""The documentation site builds strictly and offline, and shows every setting and every public name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import sfss_ray
from sfss_ray.config import Config, flatten

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "quick-start.ipynb"
NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


def build(root: Path, output: Path) -> subprocess.CompletedProcess:
    """Build the site of a checkout; every request to another machine would fail."""
    words = ["build", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(output)]
    environment = os.environ | NO_NETWORK | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *words],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the folder of the built site."""
    output = tmp_path_factory.mktemp("site")
    done = build(ROOT, output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


class Loaded(HTMLParser):
    """Collect the addresses that a browser loads for a page; links to follow are none of them."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.addresses.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("next", "prev", "canonical"):
            self.addresses.append(values.get("href") or "")


def test_pages_load_nothing_from_other_machines(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        loaded = Loaded(page.read_text()).addresses
        assert loaded
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_a_broken_link_fails_the_build(tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs", root / "docs")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, root)
    (root / "sfss_ray").symlink_to(ROOT / "sfss_ray")
    with (root / "docs" / "get-started.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stdout + done.stderr


def test_formulas_are_mathml(site):
    page = (site / "method.html").read_text()
    assert page.count('display="block"') >= 7
    assert "arithmatex" not in page
    formulas = "".join(re.findall(r"<math.*?</math>", page, re.DOTALL))
    assert "\\" not in formulas, "a LaTeX command that the converter does not know"


def test_the_configuration_page_lists_every_setting_with_its_meaning(site):
    page = (site / "configuration.html").read_text()
    rows = re.findall(
        r"<tr>\s*<td><code>(.*?)</code></td>\s*<td>.*?</td>\s*<td>(.*?)</td>", page, re.S
    )
    meanings = dict(rows)
    for name in flatten(Config()):
        assert name in meanings
        text = re.sub(r"<.*?>", "", meanings[name]).partition("Allowed:")[0]
        assert len(text.split()) >= 2, f"{name} has no line of text below it"


def test_the_reference_has_every_public_name(site):
    page = (site / "reference.html").read_text()
    for name in sfss_ray.__all__:
        assert f'id="sfss_ray.{name}"' in page or f'id="sfss_ray.errors.{name}"' in page, name


@pytest.mark.slow
@pytest.mark.ray
def test_the_notebook_runs(monkeypatch):
    """The quick start from its first to its last cell, with its own few steps."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    texts = [o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", [])]
    scores = dict(re.findall(r"^([\w-]+) +mIoU ([\d.]+) %", "".join(texts), re.MULTILINE))
    assert float(scores["adapted"]) > float(scores["source-only"])


def test_the_notebook_is_stored_without_output():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]


def test_the_table_of_losses_names_tests_that_exist():
    """Every cell of a loss and a stage, with its parameters."""
    cells = re.findall(
        r"`(test_\w+)(?:\[(\w+)-(\w+)\])?`", (ROOT / "docs/reliability.md").read_text()
    )
    code = "".join(file.read_text() for file in sorted((ROOT / "tests/cluster").glob("test_*.py")))
    for name, lose, _ in cells:
        assert f"\ndef {name}(" in code, name
        assert not lose or f"\ndef {lose}(" in code, lose
    losses = {(lose, stage) for _, lose, stage in cells if lose}
    assert losses == {
        (f"lose_{what}", stage)
        for what in ("worker", "driver", "node", "storage")
        for stage in ("train", "tune")
    }
