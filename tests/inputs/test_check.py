"""One routine checks inputs: a plan lists what a verb refuses, and no file is read twice."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfss_ray
from sfss_ray.config import Config, override
from sfss_ray.data import label_files
from sfss_ray.errors import ResumeError, SfssError
from sfss_ray.inputs.check import Request, check_inputs, claim_inputs, survey
from sfss_ray.inputs.record import MANIFEST_FILE
from sfss_ray.masks.sam.networks import shipped_small_sam
from sfss_ray.runtime import cluster
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

CPU = {"compute.device": "cpu"}


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root / "target", "camera", 5, 6, (64, 128), with_labels=False)
    write_streets(root / "val", "camera", 6, 2, (64, 128))
    shutil.copy(shipped_small_sam(), root / "sam.pth")
    return root


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    def started() -> None:
        raise AssertionError("a cluster would have been started")

    monkeypatch.setattr(cluster, "prepare_environment", started)
    monkeypatch.setattr(
        cluster, "capacity", lambda compute: cluster.Resources(2.0, 0, ((2.0, 0.0),))
    )


def arguments(streets: Path, output: Path) -> dict:
    return {
        "source_model": SOURCE_MODEL,
        "target_images": streets / "target" / "images",
        "output_dir": output,
        "val_images": streets / "val" / "images",
        "val_labels": streets / "val" / "labels",
    }


def request_for(streets: Path, output: Path, kind="adapt", **changes) -> Request:
    knobs = changes.pop("knobs", {})
    known = {"kind": kind, "config": override(Config(), CPU | knobs)}
    return Request(**(arguments(streets, output) | known | changes))


def another_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"seed": 5}')
    return folder


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
    "another run": ({"output_dir": another_run}, {}, "output"),
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
    """What a plan lists is what the verb raises. `plan` shows the survey's findings as they are."""
    changes, knobs, name = case
    monkeypatch.chdir(tmp_path)
    given = arguments(streets, tmp_path / "out") | changes
    if callable(given["output_dir"]):
        given["output_dir"] = given["output_dir"](tmp_path / "other")
    config = override(Config(), CPU | knobs)
    missing = survey(Request(kind=kind, config=config, **given)).missing
    assert list(missing) == [name]
    verb = sfss_ray.tune_hyperparameters if kind == "tune" else sfss_ray.adapt
    with pytest.raises(SfssError) as refused:
        verb(**given, config=config, progress=str)
    assert str(refused.value) == missing[name]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_plan_says_what_adapt_refuses(problem, streets, tmp_path: Path, monkeypatch):
    check_both(streets, tmp_path, PROBLEMS[problem], "adapt", monkeypatch)


@pytest.mark.parametrize("problem", [*PROBLEMS, *SEARCH_PROBLEMS])
def test_a_plan_says_what_tune_refuses(problem, streets, tmp_path: Path, monkeypatch):
    check_both(streets, tmp_path, (PROBLEMS | SEARCH_PROBLEMS)[problem], "tune", monkeypatch)


def test_every_problem_is_listed_at_once(streets, tmp_path: Path):
    request = request_for(
        streets,
        another_run(tmp_path / "out"),
        source_model=tmp_path / "no.pt",
        sam_checkpoint=tmp_path / "no.pth",
        val_labels=None,
        knobs={"compute.num_workers": 3, "train.batch_size": 4},
    )
    missing = survey(request).missing
    assert set(missing) == {"source model", "val labels", "regions", "settings", "device"}
    with pytest.raises(SfssError) as first:
        check_inputs(request)
    assert str(first.value) == missing["source model"]


def test_a_cluster_too_small_is_the_same_line_for_every_verb(streets, tmp_path: Path):
    config = override(
        Config(),
        CPU | {"compute.num_workers": 4, "train.batch_size": 4, "pretrain.batch_size": 4},
    )
    given, lines = arguments(streets, tmp_path / "out"), []
    labelled = {"images": given["val_images"], "labels": given["val_labels"]}
    calls = [
        (sfss_ray.adapt, given),
        (sfss_ray.tune_hyperparameters, given),
        (sfss_ray.pretrain_source, labelled | {"output_dir": tmp_path / "out"}),
    ]
    for verb, named in calls:
        with pytest.raises(sfss_ray.SfssError) as refused:
            verb(**named, config=config, progress=str)
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


def test_a_plan_prints_what_the_checks_found(streets, tmp_path: Path):
    given = arguments(streets, tmp_path / "out") | {"source_model": None}
    config = override(Config(), CPU | {"evaluation.held_out_share": 0.0, "tune.score": "entropy"})
    plan = sfss_ray.plan(**given, search=True, config=config, progress=str)
    request = Request(kind="tune", config=config, **given)
    assert plan.missing == survey(request).missing
    assert set(plan.missing) == {"source model", "settings"}
    assert not plan.ready


def test_nothing_is_read_twice(streets, tmp_path: Path, monkeypatch):
    """Python reports every file that is opened and every folder that is listed (PEP 578)."""
    opened: list[str] = []
    listening = [True]

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

    given = arguments(streets, tmp_path / "out")
    recipe, _ = make_recipe(Config().masks, None)
    (tmp_path / "masks").mkdir()
    spec = actor_spec(recipe, None, tmp_path / "masks", Config().masks)
    files = sorted(given["target_images"].iterdir())
    shard = json.dumps([(path.stem, str(path)) for path in files])
    MaskActor(spec | {"threads": 1, "pool": 1})({"shard": [shard]})
    config = override(Config(), CPU | {"train.augment.crop_size": [64, 128], "train.num_steps": 2})
    plan = sfss_ray.plan(**given, masks=tmp_path / "masks", config=config, progress=str)
    assert plan.ready
    assert plan.masks_to_make == 0
    assert [stage.name for stage in plan.stages] == ["training", "evaluation"]
    assert "masks of 6 images" in plan.found["masks"]


def test_a_run_is_resumed_with_unchanged_files_alone(streets, tmp_path: Path):
    for part in ("target", "val"):
        shutil.copytree(streets / part, tmp_path / part)
    out = tmp_path / "out"

    def claim(where: Path = tmp_path) -> Path:
        request = request_for(where, out)
        return claim_inputs(request, check_inputs(request), str)

    claim()
    assert (out / MANIFEST_FILE).exists()
    moved = tmp_path / "moved"
    for part in ("target", "val"):
        shutil.copytree(tmp_path / part, moved / part, copy_function=shutil.copyfile)
    os.utime(moved / "target" / "images" / "00001.png", ns=(1, 1))
    claim(moved)
    before = (out / MANIFEST_FILE).read_bytes()
    for name in ("target/images/00002.png", "val/labels/00001.png", "val/images/00000.png"):
        path = tmp_path / name
        former = path.read_bytes()
        shape = np.asarray(Image.open(path)).shape
        Image.fromarray(np.zeros(shape, np.uint8)).save(path)
        named = f"{name.split('/')[0]} {name.split('/')[1]}/{path.stem}"
        with pytest.raises(ResumeError, match=rf"1 of 10 input files were changed .*'{named}'"):
            claim()
        path.write_bytes(former)
    claim()
    assert read(out) == read_bytes(before, tmp_path)


def read(folder: Path) -> set:
    from sfss_ray.data.content import read_manifest

    return {(name, c.sha256) for name, c in read_manifest(folder / MANIFEST_FILE).items()}


def read_bytes(data: bytes, tmp_path: Path) -> set:
    (tmp_path / "former").mkdir()
    (tmp_path / "former" / MANIFEST_FILE).write_bytes(data)
    return read(tmp_path / "former")


def test_a_request_names_every_argument_of_adapt():
    fields = {field.name for field in dataclasses.fields(Request)}
    assert set(inspect.signature(sfss_ray.adapt).parameters) - {"progress"} == fields - {"kind"}


def test_val_images_are_as_bright_as_the_target_images(streets, tmp_path: Path):
    """A dim folder of labelled frames by the camera of the target images, which has 12 bits."""
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


def test_what_was_chosen_among_labels_is_a_note_of_the_run(streets, tmp_path: Path):
    """Of two encodings the labelIds are used, and the run says so."""
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


def test_a_pretraining_is_not_resumed_with_other_labels(streets, tmp_path: Path, monkeypatch):
    """Stopped before its first step, then a label map is replaced under its name."""
    shutil.copytree(streets / "val", tmp_path / "day")
    images, labels = tmp_path / "day" / "images", tmp_path / "day" / "labels"

    def stopped(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfss_ray.train.launch.fit", stopped)
    config = override(Config(), CPU | {"pretrain.batch_size": 2})

    def pretrain() -> None:
        sfss_ray.pretrain_source(images, labels, tmp_path / "out", config=config, progress=str)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pretrain()
    path = labels / "00001.png"
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(path)
    with pytest.raises(ResumeError, match=r"1 of 4 input files .*'training labels/00001'"):
        pretrain()
