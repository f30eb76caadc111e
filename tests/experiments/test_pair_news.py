"""The study of news in masks as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "pair_news.py"
CLASS_IOUS = "IoU of each class, neighbours of weight 1, percent"
LIKELIEST = "True class among the likeliest, percent"


def test_labels_and_gradients_of_drawn_streets(tmp_path):
    results = tmp_path / "results"
    command = [sys.executable, str(SCRIPT), "--pair", "streets", "--regions", "ground_truth"]
    command += ["--images", "24", "--judged", "24", "--batches", "1", "--warm-up", "2"]
    command += ["--metric-steps", "20"]
    command += ["--work", str(tmp_path / "work"), "--results", str(results)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert output.returncode == 0, output.stdout + output.stderr
    record = json.loads((results / "pair_news_streets_ground_truth.json").read_text())
    rows, classes, likeliest = (record[name] for name in ("rows", CLASS_IOUS, LIKELIEST))
    labels = {(r["labels"], r.get("weight")): r for r in rows if "labels" in r}
    # In a region of one object the true majority is right everywhere.
    assert labels["true majority", None]["accuracy"] == 100
    assert labels["true majority", None]["miou"] > 99
    vote, control = labels["vote", None], labels["random masks (control)", 1.0]
    assert 40 < vote["accuracy"] < 90
    assert control["miou"] < vote["miou"]
    assert labels["geometry", 1.0]["miou"] > control["miou"]
    learned = labels["learned", 1.0]
    assert learned["miou"] > control["miou"]
    of_classes = {row["class_iou"]: row for row in classes}
    ious = [value for name, value in of_classes["learned"].items() if isinstance(value, float)]
    assert sum(ious) / len(ious) == pytest.approx(learned["miou"], abs=0.01)
    hits = [row["masks"] for row in likeliest if row["of"] == "all"]
    assert hits == sorted(hits)
    assert hits[0] == pytest.approx(vote["accuracy"], abs=0.01)
    gradients = {r["loss"]: r for r in rows if "loss" in r}
    assert {"L_ins", "rule-out by mask", "neighbours by chance (control)"} <= gradients.keys()
    assert all(row["norm"] > 0 for row in gradients.values())
