"""The command line: verbs are found, and bad input ends in one line before a cluster starts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_samples import SHARED_CASES, SIZE, TARGET, one_error, words_of
from PIL import Image

import sfss_ray
from sfss_ray import cli

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
VERB_CASES = SHARED_CASES | {
    "temperature 0": (
        {"train.loss.temperature": "0"},
        r"temperature is 0\.0: allowed is \(0, 100\]",
    ),
    "crop": ({"train.augment.crop-size": "8 8"}, "crop_size is .* 32 to 32766 pixels"),
    "config of words": ({"config": "@letter.txt"}, r"cannot read config '.*letter\.txt'"),
    "no address": ({"compute.address": "somewhere"}, "allowed is auto, local or HOST:PORT"),
    "wrong card": ({"card": "@card.json"}, "channel_order is 'gbr': allowed is rgb or bgr"),
    "groups of no file": (
        {"class-groups": "@nowhere.json"},
        "are neither a file nor a shipped grouping: shipped are camvid-11",
    ),
    "groups of others": (
        {"class-groups": "@groups.json"},
        r"class groups 'groups': group 'all' lists 'boat', which is not a class of the model",
    ),
    "missing card": ({"card": "@nowhere.json"}, "cannot read card .*nowhere"),
    "card of words": ({"card": "@letter.txt"}, "cannot read card .*letter.*it is not JSON"),
    "uneven batch": ({"train.batch-size": "3", "compute.num-workers": "2"}, "choose a multiple"),
    "foreign files": ({"output-dir": "@labels"}, "holds files of something else"),
    "among the images": ({"output-dir": "@images"}, "lies in the folder of images"),
    "masks and SAM": (
        {"masks": "@images", "sam-checkpoint": "@source.pt"},
        "masks and a SAM checkpoint were given: give",
    ),
    "no masks": ({"masks": "@empty"}, "no masks in '.*empty'"),
    "masks of others": (
        {"masks": "@masks"},
        r"1 of 3 images have no masks in '.*masks': 'c'; make them",
    ),
    "sam without weights": ({"masks.regions": "sam"}, "no SAM checkpoint was given"),
}


@pytest.mark.parametrize(
    ("verb", "case"),
    [("adapt", case) for case in VERB_CASES]
    + [
        ("tune", case)
        for case in ("empty folder", "temperature 0", "no cluster", "another run", "no masks")
    ],
)
def test_bad_input_of_a_verb_is_one_line(verb, case, data, tmp_path, capsys):
    changes, reason = VERB_CASES[case]
    options = TARGET | {"output-dir": "@"} | changes
    code = cli.main([verb, *words_of(options, data, tmp_path / "out")])
    assert re.search(reason, one_error(code, capsys.readouterr().err))
    assert not (tmp_path / "out").exists()


IMAGES = {"images": "@images", "labels": "@labels"}
OTHER_CASES = [
    ("masks", {"target-images": "@empty", "output-dir": "@"}, "no image in"),
    ("masks", {"target-images": "@images", "output-dir": "@"}, "cannot be reached"),
    ("pretrain", IMAGES | {"images": "@nowhere", "output-dir": "@"}, "does not exist"),
    ("pretrain", IMAGES | {"labels": "@strange_labels", "output-dir": "@"}, "id 40"),
    ("pretrain", IMAGES | {"classes": "ade20k", "output-dir": "@"}, "unknown class set 'ade20k'"),
    (
        "pretrain",
        IMAGES | {"pretrain.network": "unet", "output-dir": "@"},
        "unknown network 'unet'",
    ),
    ("pretrain", IMAGES | {"output-dir": "@another_run"}, "holds another run"),
    ("pretrain", IMAGES | {"output-dir": "@"}, "cannot be reached"),
    ("evaluate", IMAGES | {"model": "@letter.txt"}, "letter.txt"),
    ("evaluate", IMAGES | {"model": "@source.pt", "labels": "@empty"}, "no label map in"),
    ("verify", {"source-model": "@letter.txt", "images": "@images"}, "letter.txt"),
    ("verify", {"source-model": "@source.pt", "images": "@empty"}, "no image in"),
    ("verify", IMAGES | {"source-model": "@source.pt", "card": "@card.json"}, "channel_order"),
]


@pytest.mark.parametrize(("verb", "options", "reason"), OTHER_CASES)
def test_bad_input_of_the_other_verbs_is_one_line(verb, options, reason, data, tmp_path, capsys):
    words = [*words_of(options, data, tmp_path / "out"), "--compute.address", "127.0.0.1:1"]
    assert reason in one_error(cli.main([verb, *words]), capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("predict", "@source.pt", "@empty", "@"), "no image in"),
        (("predict", "@letter.txt", "@images", "@"), "letter.txt"),
        (("predict", "@source.pt", "@images", "@another_run"), "holds another run"),
        (("predict", "@source.pt", "@images", "@labels"), "holds files of something else"),
        (("predict", "@source.pt", "@images", "@", "--compute.address", "here"), "HOST:PORT"),
        (("predict", "@source.pt", "@images", ""), "OUTPUT_DIR is empty: give a path"),
        (("predict", "@source.pt", "@images", "@", "--card", ""), "--card is empty: give a path"),
        (("export", "@letter.txt", "@new.onnx"), "letter.txt"),
        (("export", "@source.pt", "@source.pt"), "source.pt' has another suffix: give a name"),
        (("export", "@source.pt", "@", "--size", "8", "8"), "size is (8, 8): allowed"),
    ],
)
def test_bad_input_of_positional_verbs_is_one_line(words, reason, data, tmp_path, capsys):
    paths = [data / w[1:] if w[1:] else tmp_path / "out" for w in words if w.startswith("@")]
    rest = [word for word in words[1:] if not word.startswith("@")]
    code = cli.main([words[0], *map(str, paths), *rest])
    assert reason in one_error(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_search_without_images_to_score_on_stops_before_masks(data, tmp_path, capsys):
    options = TARGET | {"output-dir": "@", "evaluation.held-out-share": "0"}
    code = cli.main(["tune", *words_of(options, data, tmp_path / "out")])
    assert "no target images are held out" in one_error(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@no_cuda
@pytest.mark.parametrize("device", [{"compute.device": "cuda"}, {"config": "@cuda.json"}])
def test_cuda_is_refused_where_there_is_none(device, data, tmp_path, capsys):
    words = words_of(TARGET | {"output-dir": "@"} | device, data, tmp_path / "out")
    line = one_error(cli.main(["adapt", *words]), capsys.readouterr().err)
    assert "device is 'cuda' but this machine has no CUDA" in line


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--help-all"]])
def test_the_first_page_names_every_verb(words, capsys):
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: sfss-ray VERB")
    assert all(f"  {verb} " in page for verb in cli.VERBS)


@pytest.mark.parametrize("words", [["data"], ["data", "--help"], ["data", "-h"]])
def test_a_group_of_verbs_shows_its_verbs(words, capsys):
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: sfss-ray data VERB")
    assert "data check" in page
    assert "predict" not in page


def test_unknown_verbs_are_refused_with_the_known_ones(capsys):
    code = cli.main(["fly"])
    line = one_error(code, capsys.readouterr().err)
    assert line == f"error: unknown verb 'fly': known are {', '.join(cli.VERBS)}"


@pytest.mark.parametrize(
    ("words", "similar"),
    [
        (["adpt"], "'adapt'"),
        (["data", "chek", "folder"], "'data check'"),
        (["masks", "inspekt", "folder"], "'masks inspect'"),
        (["Evaluate", "--model", "x"], "'evaluate'"),
    ],
)
def test_a_misspelt_verb_names_a_similar_one(words, similar, capsys):
    line = one_error(cli.main(words), capsys.readouterr().err)
    assert line.startswith("error: unknown verb ")
    assert f"did you mean {similar}" in line


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_printed(word, capsys):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"sfss-ray {sfss_ray.__version__}\n"


@pytest.mark.parametrize("words", [["--print-completion", "bash"], ["--print-completion=zsh"]])
def test_a_completion_script_is_printed(words, capsys):
    assert cli.main(words) == 0
    assert capsys.readouterr().out.rstrip().endswith("complete -o default -F _sfss_ray sfss-ray")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--print-completion"], "--print-completion has no value"),
        (["--print-completion", "fish"], "is 'fish': allowed is one of bash, zsh"),
    ],
)
def test_other_shells_are_refused(words, reason, capsys):
    assert reason in one_error(cli.main(words), capsys.readouterr().err)


def test_predict_writes_what_it_prints(data, tmp_path: Path, capsys):
    words = [str(data / "source.pt"), str(data / "images"), str(tmp_path / "out")]
    assert cli.main(["predict", *words]) == 0
    ids = np.array(Image.open(tmp_path / "out" / "train_ids" / "a.png"))
    assert ids.shape == SIZE
    assert ids.max() < 19
    assert "images: 3" in capsys.readouterr().out


ADDRESS = "s3://AKIA:SEC/RET@fleet/out"
ON_DISK = {
    "export": ("export @source.pt ADDRESS.onnx", "ONNX file 's3://fleet/out.onnx' is an address"),
    "sheet": (
        "masks inspect @masks --output-file ADDRESS.png",
        "contact sheet 's3://fleet/out.png'",
    ),
    "inspect": ("masks inspect ADDRESS", "masks folder: 's3://fleet/out' is an address"),
    "export masks": ("masks export @masks ADDRESS", "output folder 's3://fleet/out' is an address"),
    "import masks": ("masks import @masks @images ADDRESS", "output folder 's3://fleet/out' is an"),
    "import from": ("masks import ADDRESS @images new", "masks to import: 's3://fleet/out' is an"),
}


@pytest.mark.parametrize(("words", "message"), ON_DISK.values(), ids=ON_DISK)
def test_verbs_of_disks_refuse_an_address(words, message, data, tmp_path, capsys, monkeypatch):
    """They would write to a folder that is called s3:, after a user and a password."""
    monkeypatch.chdir(tmp_path)
    line = words.replace("@", f"{data}/").replace("ADDRESS", ADDRESS)
    assert message in one_error(cli.main(line.split()), capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
