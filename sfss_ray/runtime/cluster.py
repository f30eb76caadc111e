"""The connection to a Ray cluster: joined or started, its resources, and the device of workers."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.resources import Resources

AUTO, LOCAL = "auto", "local"
_ADDRESS_VARIABLE = "RAY_ADDRESS"
_TIMEOUT_S = 5.0


def local_device(compute: ComputeConfig) -> str:
    """Return the device, 'cpu' or 'cuda', of what this process computes itself.

    Raises:
        ClusterError: CUDA is requested, this machine has none, and no cluster is named that may have it.
    """
    if compute.device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if compute.device == "cuda" and not _uses_running_cluster(compute):
        raise ClusterError(
            "device is 'cuda' but this machine has no CUDA device that torch can use: choose device"
            " cpu or auto, or give the address of a cluster with GPUs"
        )
    return "cpu"


def resolve_device(compute: ComputeConfig) -> str:
    """Return the device of a cluster's workers, 'cpu' or 'cuda'; see `choose_device`."""
    local_device(compute)
    return choose_device(compute, capacity(compute))


def choose_device(compute: ComputeConfig, resources: Resources) -> str:
    """Return the device of workers, 'cpu' or 'cuda', from the GPUs of the cluster.

    The GPUs of the driver's own machine do not count. A head node without a GPU may drive a cluster
    with GPUs. A workstation with a GPU may drive a cluster without, where Ray would wait for ever.

    Raises:
        ClusterError: CUDA is requested and the cluster has no GPU.
    """
    if compute.device == "cpu":
        return "cpu"
    if resources.gpus or (resources.limit and resources.limit[1]):
        return "cuda"
    if compute.device == "cuda":
        raise ClusterError("device is 'cuda' but the cluster has no GPU: choose device cpu or auto")
    return "cpu"


def capacity(compute: ComputeConfig) -> Resources:
    """Return the resources of this config's cluster; a local one is not started for that."""
    if _uses_running_cluster(compute):
        with connected(compute) as resources:
            return resources
    import torch
    from ray._private.utils import get_num_cpus  # heeds a container's limit, as ray.init does

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Resources(float(get_num_cpus(override_docker_cpu_warning=True)), gpus)


def _uses_running_cluster(compute: ComputeConfig) -> bool:
    return _is_connected() or cluster_address(compute) != LOCAL


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def cluster_address(compute: ComputeConfig) -> str:
    """Return `local`, or the address of the cluster to join; an empty RAY_ADDRESS counts as unset."""
    if compute.address != AUTO:
        return compute.address
    return os.environ.get(_ADDRESS_VARIABLE, "").strip() or LOCAL


def check_address(compute: ComputeConfig) -> None:
    """Check that an explicit HOST:PORT answers; joining would wait for minutes.

    Raises:
        ClusterError: it does not answer, or it is no address that a driver can join.
    """
    address = cluster_address(compute)
    if address in (AUTO, LOCAL):
        return
    _refuse_dashboard(address)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"Ray address {address!r}: allowed is auto, local or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"Ray address {address!r} cannot be reached ({error}): start the cluster with `ray start"
            " --head`, correct the address, or use address local"
        ) from error


def _refuse_dashboard(address: str) -> None:
    """Refuse the address that `ray job submit` takes; a driver cannot join it."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"Ray address {address!r} is that of the dashboard, which takes jobs: submit the command"
            f" with `ray job submit --address {address}`, or give HOST:PORT of the head node (the port"
            " of `ray start --head`, 6379 by default)"
        )


def prepare_environment() -> None:
    """Set what Ray reads when it starts; values that the user has set stay."""
    if not os.environ.get(_ADDRESS_VARIABLE, "unset").strip():
        del os.environ[_ADDRESS_VARIABLE]  # set but empty, as a shell script leaves it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Ray would otherwise throttle metrics to one report every few seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # no tables by Tune: progress is ours
    # Workers of a cluster that starts here get this on top of the driver's niceness. Ray's own 15 would
    # let every other program of the machine go first.
    os.environ.setdefault("RAY_worker_niceness", "0")


@contextlib.contextmanager
def connected(compute: ComputeConfig) -> Iterator[Resources]:
    """Connect to a cluster for the block; a cluster that was started here ends with it.

    An existing connection is used as it is and stays open.

    Raises:
        ClusterError: the cluster cannot be started or joined, or has no GPU where one is requested.
    """
    check_address(compute)
    prepare_environment()
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield _resources(compute)
        return
    if cluster_address(compute) == LOCAL:
        _start_local()
    else:
        # Ray itself reads RAY_ADDRESS, by which the driver of a submitted job joins.
        _join(None if compute.address == AUTO else compute.address, compute)
    try:
        yield _resources(compute)
    finally:
        ray.shutdown()


def _start_local() -> None:
    """Start a cluster on this machine, with one retry.

    A busy machine may take longer than the 30 s that Ray waits. Ray raises plain exceptions then.

    Raises:
        ClusterError: it does not start at the second try either.
    """
    try:
        _init("local")
        return
    except Exception as first:
        logging.getLogger(__name__).debug("Ray did not start: %s", first)
    try:
        _init("local")
    except Exception as error:
        raise ClusterError(
            f"no Ray cluster could be started on this machine ({_first_line(error)}): it may be"
            " overloaded, or out of memory or of disk for Ray's files (/tmp/ray); free some and run"
            " again: finished work is kept"
        ) from error


def _join(address: str | None, compute: ComputeConfig) -> None:
    """Join a running cluster; None is the address in RAY_ADDRESS.

    Raises:
        ClusterError: it cannot be joined.
    """
    try:
        _init(address)
    except Exception as error:
        address_text = compute.address if address else os.environ.get(_ADDRESS_VARIABLE)
        raise ClusterError(
            f"Ray address {address_text!r} cannot be joined ({_first_line(error)}): check that the"
            " cluster runs, with the same versions of Ray and Python, and that its token is set here"
            " (RAY_AUTH_MODE)"
        ) from error


def _init(address: str | None) -> None:
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _resources(compute: ComputeConfig) -> Resources:
    import ray

    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = Resources(
        total.get("CPU", 0.0),
        int(total.get("GPU", 0)),
        tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes),
        _autoscaler_limit(),
    )
    choose_device(compute, resources)
    return resources


def _autoscaler_limit() -> tuple[float, float] | None:
    """Return the (CPUs, GPUs) that an autoscaler may grow to, from the source that Ray Train uses."""
    from ray._private.state import state

    limit = state.get_max_resources_from_cluster_config()
    return (float(limit.get("CPU", 0)), float(limit.get("GPU", 0))) if limit else None


def pickled(value: object, by_value: Sequence[ModuleType] = ()) -> bytes:
    """Pickle a value as Ray does, with the code of some modules included instead of their names.

    Args:
        value: What a worker is to receive.
        by_value: Modules that workers cannot import.
    """
    import ray.cloudpickle

    registered = ray.cloudpickle.list_registry_pickle_by_value()
    # Modules that the user has registered must stay so afterwards.
    added = [module for module in by_value if module.__name__ not in registered]
    for module in added:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        return ray.cloudpickle.dumps(value)  # pyright: ignore[reportPrivateImportUsage]
    finally:
        for module in added:
            ray.cloudpickle.unregister_pickle_by_value(module)
