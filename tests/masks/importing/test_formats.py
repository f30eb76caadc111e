"""Formats are recognised from the content of files; pickles and unknown files are refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.formats import FOLDER, LABELS, SUFFIXES, SourceFiles, recognise

CONTENTS: dict[str, Any] = {
    "amg": [{"segmentation": {}}],
    "coco": {"images": [], "annotations": []},
    "sa1b": {"image": {}, "annotations": []},
    "transformers": {"masks": [], "scores": []},
    "ultralytics": [{"box": {}, "confidence": 1, "segments": {}}],
}


def put(folder: Path, *names: str, content: Any = ()) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def format_of(root: Path, *image_ids: str) -> str | None:
    recognised = recognise(SourceFiles.list(root), set(image_ids))
    return recognised.format if recognised else None


def test_files_are_listed_below_folders_and_those_of_amg_count_as_one(tmp_path: Path):
    put(
        tmp_path,
        "a/0.png",
        "a/1.png",
        "a/x/y/0.png",
        "b/metadata.csv",
        "c/d.json",
        "c/e.PNG",
        ".hidden/f.json",
    )
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    files = SourceFiles.list(tmp_path).by_suffix
    assert files == {
        FOLDER: {"a": tmp_path / "a", "a/x/y": tmp_path / "a/x/y", "b": tmp_path / "b"},
        ".json": {"c/d": tmp_path / "c" / "d.json"},
        ".png": {"c/e": tmp_path / "c" / "e.PNG"},
    }
    single = SourceFiles.list(tmp_path / "c" / "d.json")
    assert single.by_suffix == {".json": {"d": tmp_path / "c" / "d.json"}}


def test_the_first_suffix_of_a_format_is_preferred(tmp_path: Path):
    put(tmp_path, "a/0.png", "a.json", "b/0.png")
    assert SourceFiles.list(tmp_path).entries("amg") == {
        "a": tmp_path / "a.json",
        "b": tmp_path / "b",
    }


@pytest.mark.parametrize("kind", CONTENTS)
def test_json_is_recognised_by_its_content(kind, tmp_path: Path):
    put(tmp_path, "a.json", content=CONTENTS[kind])
    assert format_of(tmp_path) == kind
    assert format_of(tmp_path / "a.json") == kind
    (tmp_path / "a.json").rename(tmp_path / "a.coco")
    assert format_of(tmp_path / "a.coco") == kind
    assert format_of(tmp_path) is None


def test_files_with_the_name_of_an_image_come_first(tmp_path: Path):
    put(tmp_path, "config.json", content={"version": 1})
    put(tmp_path, "a.json")
    put(tmp_path, "b.json", content=CONTENTS["ultralytics"])
    assert format_of(tmp_path, "a", "b") == "ultralytics"
    (tmp_path / "b.json").unlink()
    assert format_of(tmp_path, "a", "b") == "amg", "an empty list of masks"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a/0.png", "b.json"], "amg"),
        (["a.npz", "a.png"], "arrays"),
        (["a.npy"], "arrays"),
        (["a_instanceIds.png"], "id_map"),
        (["a.tif"], "id_map"),
        (["a.txt"], "ultralytics"),
        (["a.jpg"], None),
    ],
)
def test_other_files_are_recognised_by_their_suffix(names, kind, tmp_path: Path):
    assert format_of(put(tmp_path, *names)) == kind


def test_outlines_of_cityscapes_do_not_hide_its_id_maps(tmp_path: Path):
    put(tmp_path, "a_gtFine_polygons.json", content={"imgHeight": 9, "objects": []})
    put(tmp_path, "a_gtFine_instanceIds.png")
    assert format_of(tmp_path) == "id_map"


def refusal(root: Path, format_name: Any = "auto") -> str:
    with pytest.raises(DataError) as raised:
        recognise(SourceFiles.list(root), {"a"}, format_name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.pt"])
def test_pickles_are_refused(name, tmp_path: Path):
    assert f"{name}' is a pickle; pickles run code" in refusal(put(tmp_path, name))


def test_json_that_cannot_be_recognised_is_refused(tmp_path: Path):
    put(tmp_path, "a.json", content={"version": 1})
    assert "a.json' is JSON of no known form: allowed are COCO" in refusal(tmp_path)
    (tmp_path / "a.json").write_text('{"images": [')
    assert "a.json' cannot be read as JSON" in refusal(tmp_path)
    (tmp_path / "a.json").write_bytes(b"")
    assert "a.json' cannot be read as JSON (it is empty)" in refusal(tmp_path)
    (tmp_path / "a.json").write_bytes(pickle.dumps({}))
    assert "a.json' cannot be read as JSON (it is a pickle; pickles run code" in refusal(tmp_path)


def test_results_of_several_images_without_names_are_refused(tmp_path: Path):
    put(tmp_path, "a.json", content=[CONTENTS["transformers"]] * 2)
    assert "a.json' lists the masks of several images without their names" in refusal(tmp_path)


def test_a_folder_with_several_coco_files_is_refused(tmp_path: Path):
    put(tmp_path, "train.json", "val.json", content=CONTENTS["coco"])
    assert "contains 2 JSON files, the first is 'train.json': give one file" in refusal(tmp_path)
    put(tmp_path / "none", "a.png")
    assert "contains 0 JSON files: give one file" in refusal(tmp_path / "none", "coco")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch):
    put(tmp_path, "open/a.json", "closed/b.json")
    scandir = os.scandir

    def list_or_refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", list_or_refuse)
    with pytest.raises(DataError, match=r"closed' cannot be listed \(Permission denied\)"):
        SourceFiles.list(tmp_path)


def test_the_user_may_state_the_format(tmp_path: Path):
    recognised = recognise(SourceFiles.list(put(tmp_path, "a.png")), {"a"}, "transformers")
    assert recognised is not None
    assert recognised.format == "transformers"


def test_every_format_has_a_label_and_suffixes():
    assert LABELS.keys() == SUFFIXES.keys()
