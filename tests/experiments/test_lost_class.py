"""The study of a class that is lost, as a user starts it, and its figures by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "lost_class.py"


def start(tmp_path, *words):
    command = [sys.executable, str(SCRIPT), "--pair", "streets", "--images", "8", "--steps", "2"]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=500)


def matrix_of(counts) -> ConfusionMatrix:
    matrix = ConfusionMatrix(len(counts))
    matrix.counts += np.array(counts)
    return matrix


def test_figures_of_a_class_are_those_of_its_row_and_column(experiment):
    lost_class = experiment("lost_class")
    counts = [[50, 0, 0, 0], [3, 6, 9, 2], [0, 4, 20, 0], [0, 0, 0, 0]]
    score = lost_class.score_class(matrix_of(counts), 1, ("road", "fence", "tree", "car"))
    assert score["recall"] == pytest.approx(100 * 6 / 20)
    assert score["precision"] == pytest.approx(100 * 6 / 10)
    assert score["iou"] == pytest.approx(100 * 6 / 24)
    assert score["predicted_as"] == pytest.approx({"tree": 45.0, "road": 15.0})
    of_classes = [50 / 53, 6 / 24, 20 / 33]  # no label is a car
    assert score["miou"] == pytest.approx(100 * np.mean(of_classes))
    never = lost_class.score_class(matrix_of([[5, 0], [2, 0]]), 1, ("road", "fence"))
    assert never["precision"] is None
    assert never["iou"] == 0


@pytest.mark.slow
def test_a_class_is_scored_on_the_target_and_on_the_scored_images(tmp_path):
    output = start(tmp_path, "--seeds", "1", "--class-name", "sidewalk")
    assert output.returncode == 0, output.stdout + output.stderr
    stem = tmp_path / "results" / "lost_class_streets_sidewalk"
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert [(row["network"], row["images"]) for row in rows] == [
        (network, images)
        for network in ("source-only", "BatchNorm statistics only", "student, seed 0")
        for images in ("target", "scored")
    ]
    assert rows[1]["miou"] == pytest.approx(44.44, abs=0.05)  # the source model as it is
    table = stem.with_suffix(".md").read_text()
    assert f"| scored | source-only | {rows[1]['miou']:.1f} | {rows[1]['iou']:.1f} |" in table


@pytest.mark.slow
def test_an_unknown_class_is_one_line(tmp_path):
    output = start(tmp_path, "--class-name", "fench")
    assert output.returncode == 2
    assert output.stderr.startswith("error: pair streets has no class 'fench': choose from road,")
    assert "Traceback" not in output.stderr
