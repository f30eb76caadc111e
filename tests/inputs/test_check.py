"""Checks of inputs: a plan lists what a verb refuses, and no file is read twice."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_modules import UNet
from street_requests import CPU, adapt_arguments, request_for

import sfss_ray
from sfss_ray.config import Config, override
from sfss_ray.config.space import parse_space
from sfss_ray.data import label_files
from sfss_ray.data.class_sets import CITYSCAPES_19, class_set_of
from sfss_ray.data.folders import list_images
from sfss_ray.errors import ConfigError, OutputError, SfssError
from sfss_ray.inputs.check import check_inputs, survey_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.models.user_code.wrapping import wrap_model
from sfss_ray.streets.default import SOURCE_MODEL


def another_run(folder: Path) -> Path:
    """A folder that holds another run."""
    folder.mkdir()
    (folder / "config.json").write_text('{"seed": 5}')
    return folder


def below_a_file(path: Path) -> Path:
    """A folder that cannot be made."""
    path.write_text("")
    return path / "run"


PROBLEMS = {
    "no model": ({"source_model": Path("nowhere.pt")}, {}, "source model"),
    "no images": ({"target_images": Path("nowhere")}, {}, "target images"),
    "half of the labels": ({"val_labels": None}, {}, "val labels"),
    "masks and a SAM": ({"masks": Path("m"), "sam_checkpoint": Path("sam.pth")}, {}, "masks"),
    "no masks": ({"masks": Path("nowhere")}, {}, "masks"),
    "no SAM": ({"sam_checkpoint": Path("nowhere.pth")}, {}, "regions"),
    "class mix": ({}, {"train.batch_size": 3, "train.augment.class_mix": 0.5}, "settings"),
    "more workers than CPUs": ({}, {"train.batch_size": 4, "compute.num_workers": 4}, "device"),
    "a worker too large": ({}, {"compute.cpus_per_worker": 3.0}, "device"),
    "no such address": ({}, {"compute.address": "somewhere"}, "device"),
    "dashboard": ({}, {"compute.address": "http://10.0.0.1:8265"}, "device"),
    "best of no images": (
        {},
        {"train.keep": "best", "evaluation.held_out_share": 0.0},
        "settings",
    ),
    "another run": ({"output_dir": another_run}, {}, "output"),
    "below a file": ({"output_dir": below_a_file}, {}, "output"),
    "one class": ({"card": {"classes": ["road"]}}, {}, "source model"),
    "one group": ({"class_groups": {"all": CITYSCAPES_19.classes}}, {}, "source model"),
    "images too large": ({}, {"masks.max_pixels": 10}, "target images"),
}
SEARCH_PROBLEMS = {
    "nothing held out": (
        {},
        {"evaluation.held_out_share": 0.0, "tune.score": "entropy"},
        "settings",
    ),
    "a score of labels without labels": (
        {"val_images": None, "val_labels": None},
        {"tune.score": "val_miou"},
        "settings",
    ),
    "no room beside the trial": ({}, {"train.batch_size": 2, "compute.num_workers": 2}, "device"),
    "more trials than fit": ({}, {"compute.concurrent_trials": 3}, "device"),
}


def check_both(streets: Path, tmp_path: Path, case, kind: str, monkeypatch) -> None:
    """The verb raises the one problem that the survey lists; `plan` shows the survey unchanged."""
    changes, knobs, name = case
    monkeypatch.chdir(tmp_path)
    arguments = adapt_arguments(streets, tmp_path / "out") | changes
    if callable(arguments["output_dir"]):
        arguments["output_dir"] = arguments["output_dir"](tmp_path / "other")
    config = override(Config(), CPU | knobs)
    missing = survey_inputs(Request(kind=kind, config=config, **arguments)).missing
    assert list(missing) == [name]
    verb = sfss_ray.tune_hyperparameters if kind == "tune" else sfss_ray.adapt
    with pytest.raises(SfssError) as refused:
        verb(**arguments, config=config, progress=str)
    assert str(refused.value) == missing[name]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_plan_lists_what_adapt_refuses(problem, streets, tmp_path: Path, monkeypatch):
    check_both(streets, tmp_path, PROBLEMS[problem], "adapt", monkeypatch)


@pytest.mark.parametrize("problem", [*PROBLEMS, *SEARCH_PROBLEMS])
def test_a_plan_lists_what_tune_refuses(problem, streets, tmp_path: Path, monkeypatch):
    check_both(streets, tmp_path, (PROBLEMS | SEARCH_PROBLEMS)[problem], "tune", monkeypatch)


@pytest.mark.parametrize("kind", ["adapt", "tune", "train"])
def test_a_model_of_one_class_is_refused_whatever_its_source(kind, streets, tmp_path: Path):
    """Saved or in memory, with one output, and a user's module of two outputs in one group."""
    with torch.random.fork_rng():
        one = SourceModel(build_network("compact", 1), "compact", class_set_of(["road"]))
    groups = {"all": ["a", "b"]}
    wrapped = wrap_model(UNet(2, classes=2), classes=["a", "b"], class_groups=groups)
    path = save_model(tmp_path / "one.pt", one)
    unlabelled = {"val_images": None, "val_labels": None}
    advice = "give a model with an output for each class"
    for source, line in (
        (path, f"source model '{path}' has 1 class, 'road': allowed are 2 or more; {advice}"),
        (one, f"source model 'a compact in memory' has 1 class, 'road': allowed .*; {advice}"),
        (
            wrapped,
            "class groups 'custom' leave the source model 1 class, 'all': .*give more groups",
        ),
    ):
        changes = {"source_model": source, "kind": kind} | unlabelled
        request = request_for(streets, tmp_path / "out", **changes)
        missing = survey_inputs(request).missing
        assert list(missing) == ["source model"]
        assert re.match(line, missing["source model"])
        with pytest.raises(SfssError, match=line):
            check_inputs(request)


@pytest.mark.parametrize("place", ["target/images", "val/images", "val/labels"])
def test_an_output_among_the_images_is_refused_where_pictures_are_drawn(
    place, streets, tmp_path: Path
):
    shutil.copytree(streets, tmp_path / "streets")
    output = tmp_path / "streets" / place / "run"
    for kind, missing in (("adapt", ["output"]), ("tune", ["output"]), ("train", [])):
        survey = survey_inputs(request_for(tmp_path / "streets", output, kind=kind))
        assert list(survey.missing) == missing
        if missing:
            assert "lies in the folder of images" in survey.missing["output"]
            assert survey.missing["output"].endswith(": give one beside it")


def test_an_output_that_may_not_be_written_is_refused(streets, tmp_path: Path, monkeypatch):
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "shared")
    missing = survey_inputs(request_for(streets, tmp_path / "shared" / "runs" / "1")).missing
    assert list(missing) == ["output"]
    assert "cannot be written (Permission denied): give a path" in missing["output"]
    assert not survey_inputs(request_for(streets, tmp_path / "runs" / "1")).missing


def test_large_images_of_existing_masks_are_accepted(streets, tmp_path: Path):
    images = list_images(streets / "target" / "images")
    rows = [
        {"image_id": i.image_id, "path": str(i.path), "height": 64, "width": 128, "error": None}
        | {"masks": []}
        for i in images
    ]
    write_shard(tmp_path / "masks-0.parquet", rows, {"source": "felzenszwalb"})
    knobs = {"masks.max_pixels": 10}
    request = request_for(streets, tmp_path / "out", masks=tmp_path, knobs=knobs)
    assert not survey_inputs(request).missing


def test_every_problem_is_listed_at_once(streets, tmp_path: Path):
    request = request_for(
        streets,
        another_run(tmp_path / "out"),
        source_model=tmp_path / "no.pt",
        sam_checkpoint=tmp_path / "no.pth",
        val_labels=None,
        knobs={"compute.num_workers": 3, "train.batch_size": 4},
    )
    missing = survey_inputs(request).missing
    assert set(missing) == {"source model", "val labels", "regions", "settings", "device"}
    with pytest.raises(SfssError) as first:
        check_inputs(request)
    assert str(first.value) == missing["source model"]


def test_every_verb_refuses_a_cluster_too_small_in_the_same_line(streets, tmp_path: Path):
    config = override(
        Config(),
        CPU | {"compute.num_workers": 4, "train.batch_size": 4, "pretrain.batch_size": 4},
    )
    arguments, lines = adapt_arguments(streets, tmp_path / "out"), []
    labelled = {"images": arguments["val_images"], "labels": arguments["val_labels"]}
    calls = [
        (sfss_ray.adapt, arguments),
        (sfss_ray.tune_hyperparameters, arguments),
        (sfss_ray.pretrain_source, labelled | {"output_dir": tmp_path / "out"}),
    ]
    for verb, keywords in calls:
        with pytest.raises(sfss_ray.SfssError) as refused:
            verb(**keywords, config=config, progress=str)
        lines.append(str(refused.value))
    assert lines == [
        "4 training workers of 1 CPU each were asked for, but the cluster holds 2 (2 CPUs and 0 GPUs):"
        " lower compute.num_workers or compute.cpus_per_worker, or use a larger cluster"
    ] * len(calls)


@pytest.mark.parametrize("verb", ["mask", "predict"])
def test_a_pool_larger_than_the_cluster_is_refused(verb, streets, tmp_path: Path):
    images, out = streets / "target" / "images", tmp_path / "out"
    knobs = {f"compute.{verb}_actors": 3, "compute.predict_on_ray_from": 1}
    config = override(Config(), CPU | knobs)
    work = sfss_ray.generate_masks
    if verb == "predict":
        work = functools.partial(sfss_ray.predict, SOURCE_MODEL)
    with pytest.raises(SfssError, match=rf"3 {verb} actors .* holds 2 .*compute.{verb}_actors"):
        work(images, out, config=config, progress=str)
    assert not out.exists()


def test_a_plan_has_the_findings_of_the_checks(streets, tmp_path: Path):
    arguments = adapt_arguments(streets, tmp_path / "out") | {"source_model": None}
    config = override(Config(), CPU | {"evaluation.held_out_share": 0.0, "tune.score": "entropy"})
    plan = sfss_ray.plan(**arguments, search=True, config=config, progress=str)
    request = Request(kind="tune", config=config, **arguments)
    assert plan.missing == survey_inputs(request).missing
    assert set(plan.missing) == {"source model", "settings"}
    assert not plan.ready


def test_no_file_is_read_twice(streets, tmp_path: Path, monkeypatch):
    """Python reports every file that is opened and every folder that is listed (PEP 578)."""
    opened: list[str] = []
    listening = [True]  # emptied to stop the hook

    def hook(event, details):
        if listening and event in ("open", "os.scandir", "os.listdir"):
            path = str(details[0])
            if path.startswith(str(streets)):
                opened.append(f"{event} {path}")

    sys.addaudithook(hook)  # it cannot be removed again
    decoded: list[Path] = []
    read = label_files._stored_values

    def stored_values(path, channel):
        decoded.append(path)
        return read(path, channel)

    monkeypatch.setattr(label_files, "_stored_values", stored_values)
    request = request_for(streets, tmp_path / "out", sam_checkpoint=streets / "sam.pth")
    inputs = check_inputs(request)
    sam = [entry for entry in opened if entry.endswith("sam.pth")]
    folders = [entry for entry in opened if not entry.startswith("open")]
    listening.clear()
    assert sorted(decoded) == sorted((streets / "val" / "labels").iterdir())
    assert len(sam) <= 2, "its weights, and its hash"
    assert len(folders) == len(set(folders)) == 3, "target images, val images, val labels"
    assert inputs.recipe is not None


def test_masks_are_an_input_of_a_plan(streets, tmp_path: Path):
    from sfss_ray.masks.actor import MaskActor, actor_spec
    from sfss_ray.masks.regions import make_recipe

    arguments = adapt_arguments(streets, tmp_path / "out")
    recipe, _ = make_recipe(Config().masks, None)
    (tmp_path / "masks").mkdir()
    spec = actor_spec(recipe, None, tmp_path / "masks", Config().masks)
    files = sorted(arguments["target_images"].iterdir())
    shard = json.dumps([(path.stem, str(path)) for path in files])
    MaskActor(spec | {"threads": 1, "pool": 1})({"shard": [shard]})
    config = override(Config(), CPU | {"train.augment.crop_size": [64, 128], "train.num_steps": 2})
    plan = sfss_ray.plan(**arguments, masks=tmp_path / "masks", config=config, progress=str)
    assert plan.ready
    assert plan.masks_to_make == 0
    assert [stage.name for stage in plan.stages] == ["training", "evaluation"]
    assert plan.found["masks"].endswith("masks of 6 images, without embeddings")


def test_val_images_have_the_white_level_of_the_target_images(streets, tmp_path: Path):
    """Dim labelled images by the 12-bit camera of the target images."""
    rng = np.random.default_rng(0)
    for folder, brightest in (("target", 4096), ("val", 700)):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png"):
            values = rng.integers(0, brightest, (32, 64), dtype=np.uint16)
            values[0, 0] = brightest - 1
            Image.fromarray(values).save(tmp_path / folder / name)
    (tmp_path / "labels").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / "labels" / name)
    request = request_for(
        streets,
        tmp_path / "out",
        target_images=tmp_path / "target",
        val_images=tmp_path / "val",
        val_labels=tmp_path / "labels",
    )
    inputs = check_inputs(request)
    assert {image.white.value for image in inputs.images if image.white} == {4095}
    assert {pair.white.value for pair in inputs.labelled if pair.white} == {4095}
    assert any("white is 4095" in note for note in inputs.notes)


def test_the_choice_between_label_encodings_is_a_note_of_the_run(streets, tmp_path: Path):
    """With both encodings the labelIds are used, and a note says so."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("a_1", "b_1"):
        pixels = np.zeros((32, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}_leftImg8bit.png")
        for encoding, road in (("labelIds", 7), ("labelTrainIds", 0)):
            ids = Image.fromarray(np.full((32, 64), road, np.uint8))
            ids.save(tmp_path / "labels" / f"{name}_gtFine_{encoding}.png")
    folders = {"val_images": tmp_path / "images", "val_labels": tmp_path / "labels"}
    inputs = check_inputs(request_for(streets, tmp_path / "out", **folders))
    assert len(inputs.labelled) == 2
    assert {int(pair.labels()[0, 0]) for pair in inputs.labelled} == {0}
    (note,) = [note for note in inputs.notes if note.startswith("val: ")]
    assert "labelIds" in note


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("source_model", "source model"),
        ("target_images", "target images"),
        ("sam_checkpoint", "regions"),
        ("val_labels", "val labels"),
        ("output_dir", "output"),
    ],
)
def test_a_path_that_the_system_refuses_is_listed(streets, tmp_path, argument, name):
    """pathlib raises an OSError where a folder may not be entered, and for such a name."""
    arguments = adapt_arguments(streets, tmp_path / "out") | {argument: tmp_path / (300 * "x")}
    request = Request(kind="adapt", config=override(Config(), CPU), **arguments)
    survey = survey_inputs(request)
    assert list(survey.missing) == [name]
    verb, advice, error = "used", "check the path", OSError
    if argument == "output_dir":
        verb, advice, error = "written", "give a path that you may write to", OutputError
    assert f"cannot be {verb} (File name too long): {advice}" in survey.missing[name]
    with pytest.raises(error, match="File name too long"):
        check_inputs(request)


@pytest.mark.parametrize(
    ("knobs", "share", "note"),
    [
        (
            {},
            8 / 13,
            "the student keeps 62% of the source model instead of 25%, because 5 training",
        ),
        ({"evaluation.held_out_share": 0.0}, 8 / 14, "57% of the source model instead of 25%"),
        ({"train.source_share": 0.9}, 0.9, ""),  # no surprise to the user who asked for it
    ],
)
def test_few_images_raise_the_share_of_the_source_model(streets, tmp_path, knobs, share, note):
    inputs = check_inputs(request_for(streets, tmp_path / "run", knobs))
    assert inputs.config.train.source_share == share
    notes = [line for line in inputs.notes if "of the source model" in line]
    assert len(notes) == bool(note)
    assert all(note in line for line in notes)
    plan = survey_inputs(request_for(streets, tmp_path / "run", knobs))
    assert note in plan.found["settings"]
    assert ("of the source model" in plan.found["settings"]) == bool(note)
    assert inputs.config.train.augment.crop_size == (32, 96)  # also settled


def test_a_searched_share_of_the_source_model_is_not_foretold(streets, tmp_path):
    knobs = {"tune.space": ["train.source_share=0.1..0.9"]}
    inputs = check_inputs(request_for(streets, tmp_path / "run", knobs, kind="tune"))
    assert not [line for line in inputs.notes if "of the source model" in line]


@pytest.mark.parametrize(
    ("knobs", "weight"),
    [
        ({"masks.regions": "small_sam"}, 2.0),
        ({"masks.regions": "small_sam", "masks.embeddings": False}, 0.0),
        ({"masks.regions": "small_sam", "train.loss.neighbour_weight": 0.5}, 0.5),
        ({"masks.regions": "felzenszwalb"}, 0.0),
        ({"masks.regions": "felzenszwalb", "train.loss.neighbour_space": "geometry"}, 2.0),
    ],
)
@pytest.mark.parametrize("kind", ["adapt", "tune"])
def test_the_masks_decide_whether_neighbours_are_asked(streets, tmp_path, knobs, weight, kind):
    inputs = check_inputs(request_for(streets, tmp_path / "run", knobs, kind=kind))
    assert inputs.config.train.loss.neighbour_weight == weight


@pytest.mark.parametrize(
    ("knobs", "added"),
    [
        ({"masks.regions": "small_sam"}, ["train.loss.neighbour_weight"]),
        ({"masks.regions": "felzenszwalb"}, []),
    ],
)
def test_the_default_space_holds_what_the_training_uses(streets, tmp_path, knobs, added):
    request = request_for(streets, tmp_path / "run", knobs | {"tune.space": None}, kind="tune")
    space = check_inputs(request).config.tune.space
    assert space is not None
    names = [dimension.name for dimension in parse_space(space)]
    assert names == [
        "train.loss.temperature",
        "train.loss.contrast_weight",
        "train.ema_momentum",
        *added,
    ]


def test_a_given_space_is_searched_as_it_is(streets, tmp_path):
    knobs = {"masks.regions": "small_sam", "tune.space": ["train.batch_norm=auto,frozen"]}
    inputs = check_inputs(request_for(streets, tmp_path / "run", knobs, kind="tune"))
    assert inputs.config.tune.space == ("train.batch_norm=auto,frozen",)


def test_neighbours_by_embeddings_that_no_mask_has_are_refused(streets, tmp_path):
    knobs = {"masks.regions": "felzenszwalb", "train.loss.neighbour_weight": 1.0}
    with pytest.raises(ConfigError, match="but the masks have no embeddings"):
        check_inputs(request_for(streets, tmp_path / "run", knobs))
