"""The mark of a student that is worse than its source model, and the verbs that print it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sfss_ray
from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.inputs.check import survey_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, load_model, save_model
from sfss_ray.models.model_mark import describe_mark, mark_model, read_facts
from sfss_ray.models.source import open_source
from sfss_ray.streets.scenes import write_streets

WORD, REASON = "worse: keep the source model", "With labels, mIoU falls."
LINE = f"the run that trained this model judged it {WORD}. {REASON}"
CPU = override(Config(), {"compute.device": "cpu"})


@pytest.fixture
def student(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = SourceModel(build_network("compact", 19), "compact", CITYSCAPES_19, {"steps": 4})
    return save_model(tmp_path / "student.pt", model)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, "camera", 3, 2, (32, 64))
    return root


def test_a_mark_adds_to_the_facts_and_changes_no_weight(student):
    before = load_model(student)
    mark_model(student, WORD, REASON)
    after = load_model(student)
    assert read_facts(student) == {"steps": 4, "verdict": WORD, "verdict_reason": REASON}
    assert after.facts == read_facts(student)
    weights = after.network.state_dict()
    assert all(torch.equal(t, weights[n]) for n, t in before.network.state_dict().items())
    assert list(student.parent.iterdir()) == [student]


def test_the_same_mark_does_not_write_again(student):
    mark_model(student, WORD, REASON)
    written = student.stat().st_mtime_ns
    mark_model(student, WORD, REASON)
    assert student.stat().st_mtime_ns == written


def test_a_mark_is_one_line_and_others_have_none(student):
    assert open_source(student).mark == ""
    mark_model(student, WORD, REASON)
    assert open_source(student).mark == describe_mark(read_facts(student)) == LINE
    assert open_source(load_model(student)).mark == LINE
    assert describe_mark({"verdict": WORD}) == LINE.removesuffix(f" {REASON}")


def test_verbs_print_the_mark_in_one_line(student, streets, tmp_path):
    mark_model(student, WORD, REASON)
    folders, lines = (streets / "images", streets / "labels"), []
    sfss_ray.evaluate_model(student, *folders, config=CPU, progress=lines.append)
    sfss_ray.predict(student, folders[0], tmp_path / "p", config=CPU, progress=lines.append)
    assert [line for line in lines if "judged" in line] == [f"WARNING: {LINE}"] * 2
    verified = sfss_ray.verify_source(student, folders[0], config=CPU, progress=str)
    assert verified.lines()[-1] == f"WARNING: {LINE}"
    request = Request("adapt", student, folders[0], tmp_path / "run", CPU, class_groups="camvid-11")
    notes = survey_inputs(request).notes
    assert f"WARNING: {LINE}" in notes
    source = open_source(student, class_groups="camvid-11")
    assert source.opening_lines() == notes[:2]
    assert notes[1].startswith("class groups 'camvid-11': sky; building = building + wall; ")


def test_an_export_prints_the_mark(student, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    mark_model(student, WORD, REASON)
    lines = []
    sfss_ray.export_onnx(student, tmp_path / "s.onnx", size=(32, 64), progress=lines.append)
    assert lines[0] == f"WARNING: {LINE}"
