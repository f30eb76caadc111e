"""Clusters of several nodes with declared GPUs that do not exist, and workers that take note of theirs.

Ray schedules declared GPUs as real ones. A hook in each worker process replaces the check that torch can
use the GPU: it writes down what Ray assigned, and lets the worker compute on its CPU.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTES_VARIABLE = "GPU_NOTES"
EXPECTED_FILE = "expected"


def start_cluster(head: dict[str, Any], nodes: Sequence[dict[str, Any]] = ()) -> Any:
    """Start a cluster of a head node and other nodes, and set RAY_ADDRESS to it."""
    from ray.cluster_utils import Cluster

    from sfss_ray.runtime.cluster import prepare_environment

    prepare_environment()
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for node in nodes:
        cluster.add_node(**node)
    os.environ["RAY_ADDRESS"] = cluster.address
    return cluster


def join_with_notes(cluster: Any, folder: Path) -> None:
    """Join a cluster so that its workers write their GPUs into `folder` and compute on CPUs."""
    import logging

    import ray

    folder.mkdir(parents=True, exist_ok=True)
    hook = {
        "worker_process_setup_hook": replace_check,
        "env_vars": {NOTES_VARIABLE: str(folder)},
    }
    ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False, runtime_env=hook)


def replace_check() -> None:
    """Replace the check of a worker's device. It runs in every worker process, before its work."""
    import torch.distributed

    from sfss_ray.runtime import devices

    devices.worker_device = noted_device
    note_decoding()
    # NCCL, which Ray Train takes for workers with GPUs, needs real ones.
    init = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend=None, **kw: init("gloo", **kw)


def note_decoding() -> None:
    """Write down which processes decode items of images, once each."""
    from sfss_ray.data import decoded_items

    decode, pids = decoded_items.decode_images, set[int]()

    def noted(*arguments: Any) -> Any:
        if os.getpid() not in pids:
            pids.add(os.getpid())
            write_note(Path(os.environ[NOTES_VARIABLE]) / "decoders", "none")
        return decode(*arguments)

    decoded_items.decode_images = noted


def noted_device(device: str) -> str:
    """Write down the GPUs of this process, and let it compute on its CPU."""
    folder = Path(os.environ[NOTES_VARIABLE])
    write_note(folder, device)
    _wait_for_others(folder)
    return "cpu"


def write_note(folder: Path, device: str) -> None:
    """Write down what Ray assigned to this process."""
    import ray

    context = ray.get_runtime_context()
    note = {
        "pid": os.getpid(),
        "device": device,
        "gpus": context.get_accelerator_ids()["GPU"],
        "share": context.get_assigned_resources().get("GPU", 0.0),
        "node": context.get_node_id(),
        "task": context.get_task_name() or "",
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json").write_text(json.dumps(note))


def _wait_for_others(folder: Path) -> None:
    """Wait until as many workers as expected have started: the first could do all the work alone."""
    expected = folder / EXPECTED_FILE
    count = int(expected.read_text()) if expected.exists() else 0
    end = time.monotonic() + 120
    while len(list(folder.glob("*.json"))) < count and time.monotonic() < end:
        time.sleep(0.2)


def expect_workers(folder: Path, count: int) -> None:
    """Let workers begin only once `count` of them have written a note; 0 lets them begin at once."""
    (folder / EXPECTED_FILE).write_text(str(count))


def take_notes(folder: Path) -> list[dict[str, Any]]:
    """Return what workers have written down since the last call, in no order."""
    notes = []
    for path in folder.glob("*.json"):
        notes.append(json.loads(path.read_text()))
        path.unlink()
    return notes
