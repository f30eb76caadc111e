"""Help pages show what a verb uses, in about 40 lines, and all of it with --help-all."""

from __future__ import annotations

import re

import pytest

from sfss_ray import cli
from sfss_ray.cli.help_page import verb_page
from sfss_ray.cli.options import all_options, option_name
from sfss_ray.config.knobs import list_knobs

_LONGEST = 50


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def listed(page: str) -> set[str]:
    """Return the options that a page lists."""
    return set(re.findall(r"^  (--[\w.-]+)", page, re.MULTILINE))


def pages(verb: str, capsys) -> tuple[str, str]:
    texts = []
    for word in ("--help", "--help-all"):
        assert cli.main([*verb.split(), word]) == 0
        texts.append(capsys.readouterr().out)
    return texts[0], texts[1]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_pages_list_the_common_options_and_all_of_them(verb, capsys):
    short, whole = pages(verb, capsys)
    options = all_options(cli.VERBS[verb])
    assert listed(short) == {option.name for option in options if option.level == "common"}
    assert listed(whole) == {option.name for option in options if option.level != "research"}
    assert len(short.splitlines()) <= _LONGEST
    for page in (short, whole):
        assert page.startswith(f"usage: sfss-ray {verb} ")
        assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_page_lists_a_knob_that_the_verb_does_not_use(verb, capsys):
    used = {option_name(knob.name) for knob in cli.VERBS[verb].knobs()}
    unused = {option_name(knob.name) for knob in list_knobs()} - used
    for page in pages(verb, capsys):
        assert not listed(page) & unused


def test_h_is_help(capsys):
    short, _ = pages("predict", capsys)
    assert cli.main(["predict", "-h"]) == 0
    assert capsys.readouterr().out == short


def test_research_knobs_are_mentioned_but_not_listed(capsys):
    research = {option_name(k.name) for k in list_knobs() if k.type.level == "research"}
    for page in pages("adapt", capsys):
        assert not listed(page) & research
        text = " ".join(page.split())
        assert "28 settings that only ablation studies change are not listed" in text
        assert "sfss-ray adapt --train.statistics-images 64, or in a config file" in text
    for page in pages("predict", capsys):
        assert "ablation" not in page


def test_texts_are_short_on_the_short_page_and_whole_on_the_other(capsys):
    short, whole = (" ".join(page.split()) for page in pages("adapt", capsys))
    assert "--compute.address TEXT Ray cluster: auto, local or HOST:PORT. [auto]" in short
    assert "otherwise starts one on this machine" in whole
    assert "--preset NAME Named settings: cnn, transformer, paper_like, recommended." in short
    assert "best_config.json of a search is one" in whole
    assert "--train.augment.crop-size INT INT (height, width) of a training crop" in short
    assert "--masks.precision NAME" not in short
    assert "--train.augment.flip, --train.augment.no-flip Mirror half of the crops. [True]" in whole


def test_required_arguments_are_in_the_first_line(capsys):
    short, whole = pages("predict", capsys)
    assert short.startswith("usage: sfss-ray predict MODEL IMAGES OUTPUT_DIR [OPTIONS]\n")
    assert "(required)" in whole
    short, _ = pages("masks", capsys)
    first = "usage: sfss-ray masks --target-images PATH --output-dir PATH [OPTIONS]\n"
    assert short.startswith(first)


def test_tune_describes_its_arguments(capsys):
    """Its docstring refers to that of adapt."""
    _, adapt = pages("adapt", capsys)
    _, tune = pages("tune", capsys)
    entry = re.search(r"  --target-images PATH.*?(?=\n  --)", adapt, re.DOTALL)
    assert entry is not None
    assert len(entry[0].split()) > 3
    assert entry[0] in tune


def test_a_program_may_have_its_own_text_and_defaults():
    defaults = {"--output-dir": "runs/x", "--source-model": None, "--target-images": None}
    page = verb_page(cli.VERBS["adapt"], "python x.py", text="Do it.\n", defaults=defaults)
    assert page.startswith("usage: python x.py [OPTIONS]\n\nDo it.\n\narguments:\n")
    assert re.search(r"--output-dir PATH .*\[runs/x\]", page)
