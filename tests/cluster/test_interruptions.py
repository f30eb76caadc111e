"""Commands that are stopped half-way: nothing is left running, nothing finished is done again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE_S, descendants, name_of, wait_for

from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.train.run_state import read_progress

pytestmark = pytest.mark.slow


def running(pids: set[int]) -> set[int]:
    """Those that still run; zombies that nobody has waited for do not."""
    alive = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.add(pid)
    return alive


# A shell starts background jobs deaf to SIGINT, and their children inherit that. The command listens
# again from within: a preexec_fn would fork this process, and Ray's connections here do not survive it.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from sfss_ray.cli import main
sys.exit(main())
"""


def start(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


# They look for a dead head node for the 60 s of Ray's gcs_rpc_server_reconnect_timeout_s, then end.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
WORKER = "ray::RayTrainWorker"


def stop(process: subprocess.Popen, number: signal.Signals) -> str:
    """Send a signal to the command alone; returns its output once its whole tree is gone.

    After SIGKILL nobody is left to end the cluster: all ends by itself, Ray's agents a minute later.
    """
    tree = descendants(process.pid)
    assert tree, "the command has started no cluster yet"
    if number == signal.SIGKILL:
        tree = {pid for pid in tree if not name_of(pid).startswith(AGENTS)}
    process.send_signal(number)
    output = process.communicate(timeout=PATIENCE_S)[0]
    wait_for(lambda: not running(tree), f"{len(tree)} processes to end")
    return output


def test_masks_go_on_where_they_were(streets, tmp_path):
    """After Ctrl-C; test_lost_workers.py has the command killed."""
    out = tmp_path / "masks"
    words = ["masks", "--target-images", streets / "target" / "images", "--output-dir", out]
    words += ["--masks.images-per-shard", 1, "--compute.address", "local"]
    process = start(*words)
    wait_for(lambda: len(shard_paths(out)) >= 2, "two shards", process)
    output = stop(process, signal.SIGINT)
    assert process.returncode == 130, output
    assert "run the same command again" in output
    assert "Traceback" not in output, output
    done = {f.name: f.stat().st_mtime_ns for f in shard_paths(out)}
    assert 2 <= len(done) < 12
    again = start(*words)
    output = again.communicate(timeout=PATIENCE_S)[0]
    assert again.returncode == 0, output
    assert f": {12 - len(done)} of 12 images to do, {len(done)} are done already" in output
    assert len(MaskStore(out)) == 12
    assert {f.name: f.stat().st_mtime_ns for f in shard_paths(out) if f.name in done} == done


def tensors(state: dict, prefix: str = "") -> dict:
    """Dotted name -> value of everything in a saved state."""
    flat = {}
    for name, value in state.items():
        inside = isinstance(value, dict)
        flat |= tensors(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return flat


@pytest.fixture(scope="module")
def adaptation(source_model, streets, tiny_config, tmp_path_factory):
    """A config file of 40 steps with a checkpoint every 5, a folder of masks, and the last state when
    nothing stops it.
    """
    import torch

    from sfss_ray.config import flatten, load_config
    from sfss_ray.inputs.check import check_inputs
    from sfss_ray.inputs.request import Request
    from sfss_ray.masks.actor import MaskActor, actor_spec
    from sfss_ray.masks.bank.store import MaskStore
    from sfss_ray.masks.regions import make_recipe
    from sfss_ray.train.adaptation import adapt_student
    from sfss_ray.train.run_state import LocalRun, load_state
    from sfss_ray.train.training_inputs import prepare_training

    folder = tmp_path_factory.mktemp("whole")
    config_file, images = folder / "config.json", streets / "target" / "images"
    knobs = flatten(tiny_config) | {"train.num_steps": 40, "train.evaluate_every": 5}
    config_file.write_text(json.dumps(knobs | {"compute.address": "local"}))
    config = load_config(config_file)
    recipe, checkpoint = make_recipe(config.masks, None)
    spec = actor_spec(recipe, checkpoint, folder / "masks", config.masks)
    (folder / "masks").mkdir()
    shard = [(file.stem, str(file)) for file in sorted(images.iterdir())]
    MaskActor(spec | {"threads": 1, "pool": 1})({"shard": [json.dumps(shard)]})
    request = Request("train", source_model, images, folder / "out", config, masks=folder / "masks")
    prepared = prepare_training(check_inputs(request), MaskStore(folder / "masks"), config)
    torch.set_num_threads(1)  # as many as a worker with half a CPU has
    adapt_student(prepared.task(config), LocalRun(folder / "run"))
    return config_file, folder / "masks", tensors(load_state(folder / "run"))


def assert_uninterrupted(out: Path, whole: dict) -> None:
    """Weights of student and teacher, optimiser, thresholds, prior and bank: to the last bit."""
    import torch

    from sfss_ray.train.run_state import load_state

    (out / "student.pt").stat()
    last = max((out / "train").glob("checkpoint_*/state.pt"))
    state = tensors(load_state(last.parent))
    assert state.keys() == whole.keys()
    assert state["step"] == 40
    for name, value in whole.items():
        same = torch.equal(state[name], value) if torch.is_tensor(value) else state[name] == value
        assert same, name


def start_adaptation(
    source_model: Path, streets: Path, config_file: Path, out: Path, masks: Path | None = None
) -> subprocess.Popen:
    words = ["adapt", "--source-model", source_model, "--target-images"]
    words += [streets / "target" / "images", "--output-dir", out, "--config", config_file]
    return start(*words, *(["--masks", masks] if masks else []))


def wait_for_two_checkpoints(process: subprocess.Popen, log: Path) -> None:
    wait_for(lambda: len(list(log.glob("checkpoint_*"))) >= 2, "two checkpoints", process)


def known_to_ray(log: Path) -> str:
    """What Ray has written down of the checkpoints from which it starts workers again."""
    snapshot = log / "checkpoint_manager_snapshot.json"
    return snapshot.read_text() if snapshot.exists() else ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_training_ends_as_one_that_was_not(
    source_model, streets, adaptation, tmp_path, number
):
    config_file, masks, whole = adaptation
    inputs = (source_model, streets, config_file, tmp_path / "run")
    if number == signal.SIGINT:  # they are there already; the other one makes them
        inputs = (*inputs, masks)
    process = start_adaptation(*inputs)
    out = tmp_path / "run"
    log = out / "train"
    wait_for_two_checkpoints(process, log)
    output = stop(process, number)
    assert "Traceback" not in output
    assert not (out / "student.pt").exists()
    lines = len((log / "progress.jsonl").read_text().splitlines())
    again = start_adaptation(*inputs)
    output = again.communicate(timeout=PATIENCE_S)[0]
    assert again.returncode == 0, output
    later = (log / "progress.jsonl").read_text().splitlines()[lines:]
    assert json.loads(later[0])["step"] > 5, "it began anew"
    assert_uninterrupted(out, whole)


def test_a_killed_worker_is_started_again_and_ends_as_one_that_lived(
    source_model, streets, adaptation, tmp_path, monkeypatch
):
    # Ray learns of a checkpoint when it asks the worker, by default every two seconds. On a fast machine
    # this training hardly lasts longer.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    config_file, masks, whole = adaptation
    out = tmp_path / "run"
    process = start_adaptation(source_model, streets, config_file, out, masks)
    log = out / "train"
    wait_for(lambda: "checkpoint_" in known_to_ray(log), "a checkpoint that Ray knows", process)
    workers = [pid for pid in descendants(process.pid) if name_of(pid).startswith(WORKER)]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, output
    steps = [json.loads(line)["step"] for line in (log / "progress.jsonl").read_text().splitlines()]
    assert steps[-1] == 40
    assert steps.count(5) == 1, "it began anew"
    assert_uninterrupted(out, whole)


def test_a_killed_pretraining_goes_on_from_its_last_checkpoint(tmp_path):
    """On GTA5's palette labels, with two workers."""
    import cv2
    import numpy as np
    from PIL import Image

    from sfss_ray.models.model_file import load_model

    rng = np.random.default_rng(0)
    colours = np.zeros((256, 3), np.uint8)
    known = {7: (128, 64, 128), 11: (70, 70, 70), 21: (107, 142, 35), 26: (0, 0, 142)}
    for label_id, colour in known.items():
        colours[label_id] = colour
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("00001.png", "00002.png", "00003.png"):
        ids = rng.choice(list(known), (64, 64)).astype(np.uint8)
        assert cv2.imwrite(str(tmp_path / "images" / name), colours[ids][..., ::-1])
        label = Image.fromarray(ids if name != "00003.png" else ids[:, :60])
        label.putpalette(colours.ravel().tolist())
        label.save(tmp_path / "labels" / name)
    out = tmp_path / "run"
    words = ["pretrain", "--images", tmp_path / "images", "--labels", tmp_path / "labels"]
    words += ["--output-dir", out, "--preset", "cnn", "--pretrain.num-steps", 30]
    words += ["--pretrain.batch-size", 2, "--pretrain.checkpoint-every", 5]
    words += ["--pretrain.augment.crop-size", 64, 64, "--compute.num-workers", 2]
    words += ["--compute.cpus-per-worker", 0.5, "--compute.address", "local"]
    words += ["--compute.device", "cpu"]
    process = start(*words)
    log = out / "train"
    wait_for(lambda: len(list(log.glob("checkpoint_*"))) >= 2, "two checkpoints", process)
    output = stop(process, signal.SIGKILL)
    assert "(gta5: palette images coloured by Cityscapes labelId)" in output
    assert "1 pairs skipped: image and labels differ in size (first: '00003')" in output
    assert not (out / "source.pt").exists()
    lines = len((log / "progress.jsonl").read_text().splitlines())
    again = start(*words)
    output = again.communicate(timeout=PATIENCE_S)[0]
    assert again.returncode == 0, output
    assert load_model(out / "source.pt").classes.name == "cityscapes-19"
    assert read_progress(log)[-1]["step"] == 30
    later = (log / "progress.jsonl").read_text().splitlines()[lines:]
    assert json.loads(later[0])["step"] > 5, "it began anew"


TERMINATED_IN_A_LATER_CLUSTER = """
import os, signal, sys
from sfss_ray.cli import run_guarded
from sfss_ray.config import ComputeConfig
from sfss_ray.runtime.cluster import connected

def work():
    compute = ComputeConfig(address="local", device="cpu")
    with connected(compute):
        pass
    with connected(compute):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

sys.exit(run_guarded(work))
"""


def test_a_termination_in_a_later_cluster_of_one_process_is_an_interruption():
    """Ray's own handler of SIGTERM prints a stack trace and leaves the cluster running."""
    result = subprocess.run(
        [sys.executable, "-c", TERMINATED_IN_A_LATER_CLUSTER],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.stdout == "interrupted: run the same command again to resume\n"
    assert result.returncode == 130
