"""Every stage on clusters whose GPUs the driver's machine lacks; see tests/helpers/gpu_cluster.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfss_ray.config import flatten

pytestmark = pytest.mark.ray
HELPERS = Path(__file__).resolve().parents[1] / "helpers"

HEADER = """
import faulthandler, json, sys
from pathlib import Path

import sfss_ray
from gpu_cluster import expect_workers, join_with_notes, start_cluster, take_notes
from sfss_ray.config import override
from sfss_ray.errors import SfssError

faulthandler.dump_traceback_later(480, exit=True)  # a stage that hangs says where
job = json.loads(sys.argv[1])
out, config = Path(job["out"]), override(sfss_ray.Config(), job["config"])
found = {}

def masks(name, on_line=str, **compute):
    lines = []

    def progress(line):
        lines.append(line)
        on_line(line)

    settings = {f"compute.{key}": value for key, value in compute.items()}
    small_sam = {"masks.regions": "small_sam", "masks.points_per_side": 4}
    try:
        sfss_ray.generate_masks(
            job["images"], out / name, config=override(config, settings | small_sam),
            progress=progress,
        )
    except SfssError as error:
        lines.append(f"{type(error).__name__}: {error}")
    return lines

def refusal(function, *arguments, **settings):
    try:
        function(*arguments, config=override(config, settings), progress=str)
    except SfssError as error:
        return f"{type(error).__name__}: {error}"
"""
FOOTER = """
print("FOUND " + json.dumps(found), flush=True)
import ray
ray.shutdown()
cluster.shutdown()
"""


def run_script(code: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a driver in a process of its own; returns what it found."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().startswith("ray_")}
    paths = [str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths)}
    code = HEADER + code + FOOTER
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


@pytest.fixture(scope="module")
def job(streets, source_model, tiny_config, tmp_path_factory) -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        pytest.skip("declared GPUs would be real ones here")
    return {
        "out": str(tmp_path_factory.mktemp("gpus")),
        "source": str(source_model),
        "images": str(streets / "target" / "images"),
        "val": [str(streets / "val" / "images"), str(streets / "val" / "labels")],
        "config": {k: v for k, v in flatten(tiny_config).items() if v is not None},
    }


FOUR_GPUS = """
cluster = start_cluster(
    {"num_cpus": 2, "num_gpus": 0},
    [
        {
            "num_cpus": 3, "num_gpus": 2, "labels": {"market-type": "spot"},
            "resources": {"accelerator_type:A100": 1},
        },
        {"num_cpus": 3, "num_gpus": 2},
    ],
)
join_with_notes(cluster, out / "notes")
import ray
found["nodes"] = [[node["NodeID"], node["Labels"].get("market-type")] for node in ray.nodes()]
data = job["source"], job["images"], out / "run"
lines = []
expect_workers(out / "notes", 4)
workers = {"compute.num_workers": 2, "masks.regions": "small_sam", "masks.points_per_side": 4}
sfss_ray.adapt(*data, config=override(config, workers), progress=lines.append)
found["adapt"] = lines, take_notes(out / "notes")
found["decoders"] = take_notes(out / "notes" / "decoders")
found["spot"] = masks("spot", label_selector="market-type=spot", gpus_per_actor=0.5)
found["spot_notes"] = take_notes(out / "notes")
expect_workers(out / "notes", 0)
trials = {
    "compute.accelerator_type": "A100", "compute.gpus_per_worker": 0.5, "tune.num_trials": 2,
    "tune.early_stopping": False, "evaluation.pictures": 0,
}
sfss_ray.tune_hyperparameters(
    job["source"], job["images"], out / "tune", masks=out / "run" / "masks",
    config=override(config, trials), progress=str,
)
found["tune_notes"] = take_notes(out / "notes")

five = {"compute.num_workers": 5, "train.batch_size": 5}
fresh = job["source"], job["images"], out / "fresh"
found["refused"] = {
    "adapt": refusal(sfss_ray.adapt, *fresh, **five),
    "tune": refusal(sfss_ray.tune_hyperparameters, *fresh, **{"compute.concurrent_trials": 5}),
    "train": refusal(
        sfss_ray.train_student, job["source"], job["images"], out / "run" / "masks",
        out / "fresh", **five,
    ),
    "pretrain": refusal(
        sfss_ray.pretrain_source, *job["val"], out / "fresh",
        **{"compute.num_workers": 5, "pretrain.batch_size": 5},
    ),
    "masks": refusal(
        sfss_ray.generate_masks, job["images"], out / "fresh",
        **{"compute.mask_actors": 9, "compute.gpus_per_actor": 0.5, "masks.regions": "small_sam"},
    ),
    "predict": refusal(
        sfss_ray.predict, *fresh,
        **{"compute.predict_actors": 5, "compute.predict_on_ray_from": 1},
    ),
    "type": refusal(sfss_ray.adapt, *fresh, **{
        "compute.accelerator_type": "A100", "compute.num_workers": 3, "train.batch_size": 3,
    }),
    "shares": refusal(sfss_ray.adapt, *fresh, **{
        "compute.gpus_per_worker": 0.5, "compute.num_workers": 2,
    }),
    "labels": refusal(sfss_ray.adapt, *fresh, **{"compute.label_selector": "market-type=moon"}),
}
found["fresh"] = (out / "fresh").exists()
"""


@pytest.fixture(scope="module")
def four_gpus(job) -> dict[str, Any]:
    """What a driver without a GPU found on a head without GPUs and two nodes of two each."""
    return run_script(FOUR_GPUS, job)


def test_masks_workers_and_report_of_a_run_use_the_gpus_that_the_driver_lacks(four_gpus):
    lines, notes = four_gpus["adapt"]
    described = "device: cuda (8 CPUs and 4 GPUs on 3 nodes); this machine itself computes on cpu"
    assert described in lines
    assert {note["device"] for note in notes} == {"cuda"}
    actors = [note for note in notes if "MaskActor" in note["task"]]
    assert len({(note["node"], *note["gpus"]) for note in actors}) == len(actors) == 4
    (report,) = (note for note in notes if note["task"] == "examine_networks")
    workers = [note for note in notes if note not in actors and note is not report]
    # Each is checked before the workers are joined, and once more when it begins.
    assert len({(note["node"], *note["gpus"]) for note in workers}) == len(workers) / 2 == 2
    assert {note["share"] for note in notes} == {1.0}
    assert lines.index("evaluating source-only") < lines.index("evaluating adapted")


def test_images_are_decoded_outside_of_the_actors_of_the_network(four_gpus):
    _, notes = four_gpus["adapt"]
    actors = {note["pid"] for note in notes if "MaskActor" in note["task"]}
    decoders = four_gpus["decoders"]
    assert decoders
    assert not actors & {note["pid"] for note in decoders}
    assert {(*note["gpus"], note["share"]) for note in decoders} == {(0.0,)}
    assert all("decode_shard" in note["task"] for note in decoders)


def test_actors_with_half_a_gpu_each_stay_on_the_nodes_that_the_labels_name(four_gpus):
    (spot,) = (node for node, label in four_gpus["nodes"] if label == "spot")
    assert "device: cuda (3 CPUs and 2 GPUs)" in four_gpus["spot"], "other nodes do not count"
    notes = four_gpus["spot_notes"]
    assert [note["share"] for note in notes] == [0.5] * 4
    assert {note["node"] for note in notes} == {spot}


def test_trials_share_a_gpu_of_the_type_that_the_user_wants(four_gpus):
    (a100,) = (node for node, label in four_gpus["nodes"] if label == "spot")
    notes = four_gpus["tune_notes"]
    # Two trials, the training with the best values (checked twice), and the scores.
    assert len(notes) == 5
    assert {note["share"] for note in notes} == {0.5}
    assert {note["node"] for note in notes} == {a100}


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("adapt", "5 training workers of 0.5 CPUs and 1 GPU each were asked for"),
        ("tune", "5 training workers of 5 trials at the same time"),
        ("train", "5 training workers of 0.5 CPUs and 1 GPU each were asked for"),
        ("pretrain", "5 training workers of 0.5 CPUs and 1 GPU each were asked for"),
        ("masks", "9 mask actors of 0.5 GPUs each were asked for, but the cluster holds 8"),
        ("predict", "5 predict actors of 1 GPU each were asked for, but the cluster holds 4"),
        (
            "type",
            "1 GPU each were asked for, but the cluster holds 2 (8 CPUs and 2 GPUs on 3 nodes)",
        ),
        ("shares", "NCCL cannot join workers that share a GPU"),
        ("labels", "none of the 3 nodes of the cluster has these labels"),
    ],
)
def test_more_than_the_cluster_holds_is_refused_in_one_line(verb, message, four_gpus):
    refused = four_gpus["refused"][verb]
    assert refused is not None
    assert message in refused
    assert "\n" not in refused
    assert not four_gpus["fresh"], "nothing has been written"


NO_GPU_YET = """
cluster = start_cluster({"num_cpus": 2, "num_gpus": 0})
found["too late"] = masks("late", device="cuda", wait_for_nodes_s=3)
found["auto"] = masks("auto")

def add_node(line):
    if line.startswith("waiting up to"):
        cluster.add_node(num_cpus=1, num_gpus=1)

found["unusable"] = masks("unusable", add_node, device="cuda")
data = job["source"], job["images"], out / "auto", out / "student"
found["training"] = refusal(sfss_ray.train_student, *data)

# An autoscaler that may add three more; Ray Data works with the actor that has a GPU.
from ray._private.state import state
state.get_max_resources_from_cluster_config = lambda: {"CPU": 6, "GPU": 4}
join_with_notes(cluster, out / "notes")
found["growing"] = masks("growing")
found["growing_notes"] = take_notes(out / "notes")
"""


@pytest.fixture(scope="module")
def no_gpu_yet(job) -> dict[str, Any]:
    """What a driver found on a cluster whose only GPU joins later."""
    return run_script(NO_GPU_YET, job | {"out": f"{job['out']}/later"})


def test_cuda_waits_for_a_gpu_and_says_for_what(no_gpu_yet):
    lines = no_gpu_yet["unusable"]
    waiting = (
        "waiting up to 600 s (compute.wait_for_nodes_s) for nodes that hold 1 mask actors of 1 GPU"
        " each: the cluster has 2 CPUs and 0 GPUs"
    )
    assert waiting in lines
    (joined,) = (line for line in lines if line.startswith("the cluster has 3 CPUs and 1 GPU on 2"))
    assert lines.index(waiting) < lines.index(joined)


def test_cuda_without_a_gpu_in_time_is_one_line(no_gpu_yet):
    error = no_gpu_yet["too late"][-1]
    assert error == (
        "ClusterError: no nodes that hold 1 mask actors of 1 GPU each joined within 3 s: the cluster"
        " has 2 CPUs and 0 GPUs; check that the group of nodes can grow, raise"
        " compute.wait_for_nodes_s, or choose compute.device cpu"
    )


def test_auto_computes_on_cpus_where_no_gpu_is_announced(no_gpu_yet):
    assert "device: cpu (2 CPUs and 0 GPUs)" in no_gpu_yet["auto"]
    assert any(line.startswith("masks 12/12") for line in no_gpu_yet["auto"])


@pytest.mark.parametrize("stage", ["masks", "training"])
def test_a_gpu_that_torch_cannot_use_is_one_line_with_its_node(stage, no_gpu_yet):
    error = no_gpu_yet["training"] if stage == "training" else no_gpu_yet["unusable"][-1]
    assert error is not None
    assert "has a GPU for Ray (CUDA_VISIBLE_DEVICES='0') that torch" in error
    assert error.endswith("or choose compute.device cpu")
    assert "\n" not in error


def test_a_pool_begins_with_the_gpus_that_are_there(no_gpu_yet):
    """Three of four actors wait for nodes that never come; the stage ends all the same."""
    assert any(line.startswith("masks 12/12") for line in no_gpu_yet["growing"])
    assert len(no_gpu_yet["growing_notes"]) == 1
