"""The device of a run's workers: chosen from the cluster's GPUs, checked where the work is done.

No Ray here.
"""

from __future__ import annotations

import os
import socket

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.resources import Resources, describe_nodes


def choose_device(compute: ComputeConfig, resources: Resources) -> str:
    """Return the device of workers, 'cpu' or 'cuda', from the GPUs of the cluster.

    The GPUs of the driver's own machine do not count. A head node without a GPU may drive a cluster
    with GPUs. A workstation with a GPU may drive a cluster without, where Ray would wait for ever.

    Raises:
        ClusterError: CUDA is requested, the cluster has no GPU, and none is awaited.
    """
    if compute.device == "cpu":
        return "cpu"
    if resources.may_have_gpus:
        return "cuda"
    if requires_gpu(compute):
        advice = "choose another accelerator_type, or device cpu"
        raise ClusterError(
            f"device is {compute.device!r} but the cluster has no GPU{describe_nodes(compute)}:"
            f" {advice if compute.accelerator_type else 'choose device cpu or auto'}"
        )
    return "cpu"


def requires_gpu(compute: ComputeConfig) -> bool:
    """Return whether a run must not fall back to CPUs."""
    return compute.device == "cuda" or (compute.device == "auto" and bool(compute.accelerator_type))


def worker_device(device: str) -> str:
    """Return the device of a worker process, after a check that torch can use it there.

    A worker that computed on its CPU while it holds a GPU would be many times slower, and no one would
    notice. So the run ends with the node and the reason.

    Args:
        device: Device that the driver chose for the run's workers, 'cpu' or 'cuda'.

    Raises:
        ClusterError: Ray assigned a GPU to this process, and torch cannot use it.
    """
    if device != "cuda":
        return device
    import torch

    if torch.cuda.is_available():
        return device
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    raise ClusterError(
        f"node {socket.gethostname()} has a GPU for Ray (CUDA_VISIBLE_DEVICES={visible!r}) that torch"
        f" {torch.__version__}, {build}, cannot use: install a CUDA build of torch and its driver on"
        " every node with a GPU, or choose compute.device cpu"
    )
