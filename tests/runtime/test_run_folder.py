"""Output folders: which run they belong to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfss_ray.config import Config, flatten, override
from sfss_ray.errors import DataError, OutputError, ResumeError
from sfss_ray.runtime.run_folder import RECORD_FILE, claim, refuse_inside, write_json

RECORD = {"seed": 0, "train.augment.crop_size": (64, 64), "inputs.images": 4}


def refusal(folder: Path, record=RECORD) -> str:
    with pytest.raises(ResumeError) as refused:
        claim(folder, record)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_new_folder_is_made_with_its_record(tmp_path: Path):
    folder = claim(tmp_path / "runs" / "new", RECORD)
    assert folder == tmp_path / "runs" / "new"
    assert json.loads((folder / RECORD_FILE).read_text())["inputs.images"] == 4
    assert [p.name for p in folder.iterdir()] == [RECORD_FILE]


def test_a_folder_among_the_images_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    for output in (tmp_path / "images", "images/run", tmp_path / "link" / "a" / "b"):
        with pytest.raises(DataError, match="lies in the folder of images 'images': give one"):
            refuse_inside(output, "images")
    refuse_inside(tmp_path / "images_run", "images")
    refuse_inside(tmp_path, "images")
    refuse_inside("s3://bucket/images_run", "s3://bucket/images")
    with pytest.raises(DataError, match="lies in the folder of images"):
        refuse_inside("s3://bucket/images/run", "s3://bucket/images")


def test_an_empty_folder_is_claimed(tmp_path: Path):
    assert claim(tmp_path, RECORD) == tmp_path


def test_the_path_returned_is_absolute(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert claim("run", RECORD) == tmp_path / "run"


def test_the_same_run_is_resumed(tmp_path: Path):
    claim(tmp_path, RECORD)
    (tmp_path / "student.pt").write_bytes(b"work")
    before = (tmp_path / RECORD_FILE).read_bytes()
    assert claim(tmp_path, dict(reversed(RECORD.items()))) == tmp_path
    assert (tmp_path / RECORD_FILE).read_bytes() == before


def test_a_whole_config_compares_equal_to_itself(tmp_path: Path):
    claim(tmp_path, flatten(Config()))
    claim(tmp_path, flatten(Config()))
    message = refusal(tmp_path, flatten(override(Config(), {"train.loss.temperature": 0.7})))
    assert "train.loss.temperature: 0.1 -> 0.7" in message


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path):
    claim(tmp_path, RECORD)
    message = refusal(tmp_path, RECORD | {"seed": 1})
    assert str(tmp_path) in message
    assert "(seed: 0 -> 1)" in message
    assert json.loads((tmp_path / RECORD_FILE).read_text())["seed"] == 0


def test_many_differences_are_counted(tmp_path: Path):
    claim(tmp_path, {str(i): 0 for i in range(7)})
    message = refusal(tmp_path, {str(i): 1 for i in range(7)})
    assert "3: 0 -> 1 and 3 more" in message
    assert "4: 0" not in message


def test_a_folder_with_other_files_is_refused_and_not_touched(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds files of something else" in refusal(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused_as_an_output_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "give a new or empty folder" in refusal(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        claim(tmp_path / "file" / "run", {"seed": 0})


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "7"])
def test_a_file_that_is_not_a_record_is_refused(content, tmp_path: Path):
    (tmp_path / RECORD_FILE).write_text(content)
    assert "give another output folder" in refusal(tmp_path)
    assert (tmp_path / RECORD_FILE).read_text() == content


def test_json_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]
