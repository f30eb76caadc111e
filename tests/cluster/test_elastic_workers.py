"""A training with a range of workers while one node is killed and another one joins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PATIENCE_S, wait_for
from train_samples import SMALL, sharp_source, write_dataset

from sfss_ray.config import Config, override
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.storage.files import read_torch
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.run_state import PROGRESS_FILE, LocalRun, load_state
from sfss_ray.train.training_inputs import prepare_training

pytestmark = pytest.mark.ray
TOLERANCE = 3e-5  # that of the tests of world size
STEPS = 40  # Ray notices a new node after up to 20 of them
KNOBS = SMALL | {
    "train.num_steps": STEPS,
    "train.evaluate_every": 1,
    "train.batch_norm": "frozen",
    "train.source_share": 0.0,
    "train.optim.optimizer": "sgd",
    "train.optim.learning_rate": 0.001,
    "train.optim.warmup_share": 0.0,
    "train.loss.ramp": [0.0, 0.0],
    "train.loss.neighbour_weight": 1.0,
    "train.loss.neighbour_space": "geometry",
    "train.loss.mask_vote": "pooled",
    "evaluation.held_out_share": 0.0,
    "compute.device": "cpu",
    "compute.num_workers": "1-2",
    "compute.resize_interval_s": 1.0,
}


def inputs_of(root: Path) -> tuple[Path, Path, Path]:
    """Source model, images and masks."""
    return root / "source.pt", root / "images", root / "masks"


def start(root: Path, address: str) -> subprocess.Popen:
    """Start the command of a training on a cluster."""
    (root / "config.json").write_text(json.dumps(KNOBS))
    source, images, masks = inputs_of(root)
    words = ["train", "--source-model", source, "--target-images", images, "--masks", masks]
    words += ["--output-dir", root / "run", "--config", root / "config.json"]
    words += ["--compute.address", address]
    # Ray takes one report a second, so that steps take a second whatever the machine.
    pace = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1", "RAY_ADDRESS": address}
    return subprocess.Popen(
        [sys.executable, "-m", "sfss_ray.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | pace,
    )


def train_alone(root: Path) -> Path:
    """Train with one worker in this process, without interruption."""
    source, images, masks = inputs_of(root)
    config = override(Config(), KNOBS | {"compute.num_workers": 1})
    request = Request("train", source, images, root / "unused", config, masks=masks)
    inputs = check_inputs(request)
    assert inputs.masks is not None
    task = prepare_training(inputs, inputs.masks, inputs.config).task(inputs.config)
    adapt_student(task, LocalRun(root / "alone"))
    return root / "alone"


def records(root: Path) -> list[dict[str, Any]]:
    """The lines of the progress file in the order in which they were written."""
    path = root / "run" / "train" / PROGRESS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def workers_of_last_step(root: Path) -> int:
    return records(root)[-1]["workers"] if records(root) else 0


def test_a_training_shrinks_with_a_lost_node_and_grows_with_a_new_one(tmp_path):
    """Each change is seen in the records before the next one is made."""
    from ray.cluster_utils import Cluster

    write_dataset(tmp_path)
    sharp_source(tmp_path / "source.pt")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        process = start(tmp_path, cluster.address)
        try:
            wait_for(lambda: workers_of_last_step(tmp_path) == 2, "two workers", process)
            cluster.remove_node(nodes[1], allow_graceful=False)
            wait_for(lambda: workers_of_last_step(tmp_path) == 1, "one worker", process)
            cluster.add_node(num_cpus=1)
            output = process.communicate(timeout=PATIENCE_S)[0]
        finally:
            process.kill()
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    assert [count for count, _ in groupby(records(tmp_path), itemgetter("workers"))] == [2, 1, 2]
    assert f"step: {STEPS}\n" in output
    assert ", 1 worker\n" in output
    assert_trained_as_alone(tmp_path)


def assert_trained_as_alone(root: Path) -> None:
    """Assert that the networks are those of one worker, and that they have moved."""
    checkpoint = max((root / "run" / "train").glob("checkpoint_*/state.pt"))
    state, alone = (load_state(folder) for folder in (checkpoint.parent, train_alone(root)))
    assert (state["step"], alone["step"]) == (STEPS, STEPS)
    assert state["bank"]["written"].sum() > 0
    assert state["neighbours"]["written"] > 0
    for name in ("student", "teacher"):
        expected = alone[name]
        for key, tensor in state[name].items():
            atol = TOLERANCE * max(float(expected[key].abs().max()), 1.0)
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=atol)
    source = read_torch(root / "source.pt")["state_dict"]["classifier.weight"]
    moved = state["student"]["segmenter.classifier.weight"] - source
    assert moved.abs().max() > 30 * TOLERANCE
