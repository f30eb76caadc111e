"""Training and search while a worker, the driver, a node or the storage goes: the same student.

Inputs and output are at addresses. The nodes have working folders and homes of their own, so nothing but
the addresses is shared. The student to compare with is trained from files, in this process, without any
loss. The stage of masks has its cells in test_lost_workers.py.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from object_storage import BUCKET, FailingStorage, upload
from processes import PATIENCE_S, descendants, name_of, wait_for
from training_in_process import train_in_process

from sfss_ray.config import Config, flatten, override
from sfss_ray.masks.generate import generate_masks
from sfss_ray.storage.files import read_torch
from sfss_ray.storage.object_cache import FOLDER_VARIABLE
from sfss_ray.storage.places import ObjectPath, Place, to_place
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.train.launch import train_student
from sfss_ray.train.run_state import read_progress

pytestmark = pytest.mark.slow
AWAY_S = 12
STEPS = 5
KNOBS = {
    "train.num_steps": STEPS,
    "train.evaluate_every": 1,
    "evaluation.held_out_share": 0.2,
    "evaluation.pictures": 0,
    "tune.num_trials": 1,
    "tune.early_stopping": False,
    "tune.space": ["train.optim.learning_rate=log:0.00001..0.0001"],
    "compute.concurrent_trials": 1,
}
WORKERS = {"train": "ray::RayTrainWorker", "tune": "ray::ImplicitFunc"}


class Fleet:
    """A cluster of two nodes behind a head without CPUs, and a server with the output."""

    def __init__(self, root: Path):
        from ray.cluster_utils import Cluster

        self.root, self.arguments = root, list[object]()
        self.storage = FailingStorage()
        self.environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "RAY_AUTH_TOKEN_PATH": str(Path.home() / ".ray" / "auth_token"),
        }
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "env_vars": self._home("head")}
        )
        self.nodes = [self.add_node(), self.add_node()]

    def _home(self, name: str) -> dict[str, str]:
        home = self.root / name
        home.mkdir()
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN_PATH")
        return {"HOME": str(home)} | {key: self.environment[key] for key in names}

    def add_node(self) -> Any:
        """Add a node with a working folder and a home of its own."""
        home = self._home(f"node-{len(list(self.root.iterdir()))}")
        before = Path.cwd()
        os.chdir(home["HOME"])
        try:
            return self.cluster.add_node(num_cpus=1, env_vars=home)
        finally:
            os.chdir(before)

    def address(self, name: str) -> str:
        """Address of a run."""
        return f"s3://{BUCKET}/{name}?{self.storage.options}"

    def start(self, stage: str, name: str, *options: object) -> subprocess.Popen:
        """Start the command of a run."""
        words = [stage, *self.arguments, "--output-dir", self.address(name), *options]
        words += ["--compute.address", self.cluster.address]
        return subprocess.Popen(
            [sys.executable, "-m", "sfss_ray.cli", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=self.root,
        )

    def workers(self, stage: str, node: Any = None) -> list[int]:
        """Process ids of the stage's workers, on all nodes or on one."""
        raylets = [
            process.process.pid
            for each in ([node] if node else self.nodes)
            for process in each.all_processes["raylet"]
        ]
        below = {pid for raylet in raylets for pid in descendants(raylet)}
        return sorted(pid for pid in below if name_of(pid).startswith(WORKERS[stage]))

    def upload_inputs(self, images: Path, config: Config) -> None:
        """Copy images, masks and source model into the bucket, and write down the config."""
        inputs = to_place(self.address("inputs"))
        upload(images, inputs / "images")
        upload(self.root / "masks", inputs / "masks")
        (inputs / "source.pt").write_bytes(SOURCE_MODEL.read_bytes())
        (self.root / "config.json").write_text(json.dumps(flatten(config)))
        names = {"--source-model": "source.pt", "--target-images": "images", "--masks": "masks"}
        self.arguments = ["--config", self.root / "config.json"]
        for option, name in names.items():
            self.arguments += [option, self.address(f"inputs/{name}")]

    def close(self) -> None:
        """End all."""
        self.cluster.shutdown()
        self.storage.close()


@pytest.fixture(scope="module")
def fleet(streets, tiny_config, tmp_path_factory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("fleet")
    config, images = override(tiny_config, KNOBS), streets / "target" / "images"
    generate_masks(images, root / "masks", config=config, progress=str)
    fleet = Fleet(root)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, fleet.environment[name])
        patch.setenv(FOLDER_VARIABLE, str(root / "copies"))
        fleet.storage.create_bucket()
        fleet.upload_inputs(images, config)
        yield fleet
    fleet.close()


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output = process.communicate(timeout=PATIENCE_S)[0]
    return process.returncode, output


def progress_of(stage: str, folder: ObjectPath) -> list[int]:
    """Steps of the training, or of the first trial."""
    if stage == "train":
        return [record["step"] for record in read_progress(folder / "train")]
    for trial in (folder / "trials").glob("trial-*"):
        return [record["step"] for record in read_progress(trial)]
    return []


def result_of(folder: Place) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Weights of the student, and the steps of its curve."""
    steps = [record["step"] for record in read_progress(folder / "train") if record["step"]]
    return read_torch(folder / "student.pt")["state_dict"], steps


@pytest.fixture(scope="module")
def uninterrupted(fleet, streets, tiny_config) -> Callable[[dict[str, Any]], Any]:
    """Weights and steps of a training with some settings in this process, in which nothing goes."""

    @functools.cache
    def train(settings: str) -> tuple[dict[str, torch.Tensor], list[int]]:
        config = override(tiny_config, KNOBS | json.loads(settings))
        folder = fleet.root / f"uninterrupted-{len(list(fleet.root.iterdir()))}"
        with pytest.MonkeyPatch.context() as patch:
            train_in_process(patch)
            images = streets / "target" / "images"
            train_student(
                SOURCE_MODEL, images, fleet.root / "masks", folder, config=config, progress=str
            )
        return result_of(folder)

    return lambda settings: train(json.dumps(settings))


def node_of(fleet: Fleet, stage: str) -> Any:
    """The node of a stage's worker."""
    return next(node for node in fleet.nodes if fleet.workers(stage, node))


def lose_worker(fleet: Fleet, stage: str, process: subprocess.Popen) -> None:
    wait_for(lambda: fleet.workers(stage), "workers", process)
    os.kill(fleet.workers(stage)[0], signal.SIGKILL)


def lose_driver(fleet: Fleet, stage: str, process: subprocess.Popen) -> None:
    process.kill()


def lose_node(fleet: Fleet, stage: str, process: subprocess.Popen) -> None:
    wait_for(lambda: fleet.workers(stage), "workers", process)
    lost = node_of(fleet, stage)
    fleet.nodes.remove(lost)
    fleet.cluster.remove_node(lost, allow_graceful=False)
    fleet.nodes.append(fleet.add_node())


def lose_storage(fleet: Fleet, stage: str, process: subprocess.Popen) -> None:
    fleet.storage.is_away = True
    time.sleep(AWAY_S)
    fleet.storage.is_away = False


@pytest.mark.parametrize("stage", ["train", "tune"])
@pytest.mark.parametrize("lose", [lose_worker, lose_driver, lose_node, lose_storage])
def test_a_run_that_loses(lose, stage, fleet, uninterrupted):
    name = f"{stage}-{lose.__name__}"
    folder = to_place(fleet.address(name))
    moment = random.Random(name).randint(1, STEPS - 2)
    process = fleet.start(stage, name)
    wait_for(
        lambda: max(progress_of(stage, folder), default=0) >= moment, f"step {moment}", process
    )
    assert max(progress_of(stage, folder)) < STEPS, "it has ended before"
    lose(fleet, stage, process)
    code, output = finish(process)
    if code != 0:
        assert lose in (lose_driver, lose_storage), output
        if lose is lose_storage:
            assert output.splitlines()[-1].startswith("error: "), output
        code, output = finish(fleet.start(stage, name))
    assert code == 0, output
    weights, steps = result_of(folder)
    best = json.loads((folder / "best_config.json").read_text()) if stage == "tune" else {}
    expected_weights, expected_steps = uninterrupted(best)
    assert steps == expected_steps
    assert weights.keys() == expected_weights.keys()
    for key, tensor in weights.items():
        assert torch.equal(tensor, expected_weights[key]), key


def test_a_notice_of_preemption_saves_a_checkpoint(fleet):
    """No other checkpoint comes before the last step. Steps from before the notice are not repeated."""
    folder = to_place(fleet.address("notice"))
    options = ("--train.num-steps", 400, "--train.evaluate-every", 400)
    process = fleet.start("train", "notice", *options)
    wait_for(lambda: max(progress_of("train", folder), default=0) >= 20, "step 20", process)
    words = ["drain-node", "--address", fleet.cluster.address, "--deadline-remaining-seconds", "60"]
    words += ["--node-id", node_of(fleet, "train").node_id, "--reason-message", "spot"]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True, timeout=60)

    def saved() -> list[ObjectPath]:
        checkpoints = (folder / "train").glob("checkpoint_*")
        return [file for file in checkpoints if (file / "state.pt").exists()]

    wait_for(saved, "a checkpoint", process)
    step = read_torch(saved()[0] / "state.pt")["step"]
    assert 20 <= step < 400
    time.sleep(2)  # Ray learns of the checkpoint from the worker's report
    lose_node(fleet, "train", process)
    code, output = finish(process)
    assert code == 0, output
    lines = (folder / "train" / "progress.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert [steps.count(early) for early in range(10, step + 1, 10)] == [1] * (step // 10)
    assert steps[-1] == 400
