"""The connection to a Ray cluster: joined or started, its nodes, and the device of workers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError, SfssError
from sfss_ray.runtime.address import (
    ADDRESS_VARIABLE,
    AUTO,
    LOCAL,
    check_address,
    cluster_address,
)
from sfss_ray.runtime.devices import choose_device, requires_gpu
from sfss_ray.runtime.node_wait import wait_until_held
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.runtime.resources import (
    Demand,
    Resources,
    placement_options,
    process_bundle,
    read_nodes,
    task_demand,
)
from sfss_ray.storage.object_cache import DEFAULT_GB, LIMIT_VARIABLE, set_limit


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
    """Return the device of a cluster's workers, 'cpu' or 'cuda'; see `devices.choose_device`."""
    if local_device(compute) == compute.device == "cpu":
        return "cpu"
    return choose_device(compute, capacity(compute))


def capacity(compute: ComputeConfig) -> Resources:
    """Return the resources of this config's cluster; a local one is not started for that.

    Raises:
        ClusterError: the cluster cannot be joined, or the label selector excludes every node.
    """
    if _uses_running_cluster(compute):
        with connected(compute) as resources:
            return resources
    if compute.label_selector:
        raise ClusterError(
            f"label_selector is {compute.label_selector!r} but a cluster that starts on this machine"
            " has no labels: give the address of a cluster, or leave it empty"
        )
    import torch
    from ray._private.utils import get_num_cpus  # heeds a container's limit, as ray.init does

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Resources(float(get_num_cpus(override_docker_cpu_warning=True)), gpus)


def _uses_running_cluster(compute: ComputeConfig) -> bool:
    return _is_connected() or cluster_address(compute) != LOCAL


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def prepare_environment() -> None:
    """Set what Ray reads when it starts; values that the user has set stay."""
    if not os.environ.get(ADDRESS_VARIABLE, "unset").strip():
        del os.environ[ADDRESS_VARIABLE]  # set but empty, as a shell script leaves it
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
    set_limit(compute.cache_gb)
    import ray

    logging.getLogger("ray").setLevel(log_level(compute))
    if ray.is_initialized():
        yield _resources(compute)
        return
    if cluster_address(compute) == LOCAL:
        _start_local(compute)
    else:
        # Ray itself reads RAY_ADDRESS, by which the driver of a submitted job joins.
        _join(None if compute.address == AUTO else compute.address, compute)
    try:
        yield _resources(compute)
    finally:
        ray.shutdown()


def _start_local(compute: ComputeConfig) -> None:
    """Start a cluster on this machine, with one retry.

    A busy machine may take longer than the 30 s that Ray waits. Ray raises plain exceptions then.

    Raises:
        ClusterError: it does not start at the second try either.
    """
    options = _no_gpus_for_torch(compute)
    try:
        _init("local", compute, options)
        return
    except Exception as first:
        logging.getLogger(__name__).debug("Ray did not start: %s", first)
    try:
        _init("local", compute, options)
    except Exception as error:
        raise ClusterError(
            f"no Ray cluster could be started on this machine ({_first_line(error)}): it may be"
            " overloaded, or out of memory or of disk for Ray's files (/tmp/ray); free some and run"
            " again: finished work is kept"
        ) from error


def _no_gpus_for_torch(compute: ComputeConfig) -> dict[str, Any]:
    """Return options that hide GPUs from Ray which torch cannot use on this machine.

    Ray counts the GPUs of the driver's machine by their devices, whatever torch was built for.
    """
    if compute.device == "cpu":
        return {}
    import torch

    return {} if torch.cuda.is_available() else {"num_gpus": 0}


def _join(address: str | None, compute: ComputeConfig) -> None:
    """Join a running cluster; None is the address in RAY_ADDRESS.

    Raises:
        ClusterError: it cannot be joined.
    """
    try:
        _init(address, compute)
    except Exception as error:
        address_text = compute.address if address else os.environ.get(ADDRESS_VARIABLE)
        raise ClusterError(
            f"Ray address {address_text!r} cannot be joined ({_first_line(error)}): check that the"
            " cluster runs, with the same versions of Ray and Python, and that its token is set here"
            " (RAY_AUTH_MODE)"
        ) from error


def _init(
    address: str | None, compute: ComputeConfig, options: dict[str, Any] | None = None
) -> None:
    import ray

    options = dict(options or {})
    if address != "local" and compute.cache_gb != DEFAULT_GB:
        # Nodes that run already do not have this process's environment.
        options["runtime_env"] = {"env_vars": {LIMIT_VARIABLE: f"{compute.cache_gb:g}"}}
    with _own_termination():
        ray.init(
            address=address,
            logging_level=log_level(compute),
            log_to_driver=compute.ray_logs,
            **options,
        )


@contextlib.contextmanager
def _own_termination() -> Iterator[None]:
    """Restore this process's handler of SIGTERM after the block.

    Ray puts its own in its place, which prints a stack trace and ends the process without any cleanup.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if callable(handler) and in_main_thread:
            signal.signal(signal.SIGTERM, handler)


def log_level(compute: ComputeConfig) -> int:
    """Return the level from which Ray's messages are printed."""
    return logging.INFO if compute.ray_logs else logging.ERROR


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _resources(compute: ComputeConfig) -> Resources:
    """Return what the nodes of the connected cluster have for a run.

    Raises:
        ClusterError: CUDA is requested and there is no GPU, or the label selector excludes every node.
    """
    import ray

    nodes, limit = ray.nodes(), _autoscaler_limit()
    # Nodes may also join without an autoscaler that says so: by hand, or by KubeRay's older one.
    awaits_gpus = (
        requires_gpu(compute) and compute.wait_for_nodes_s > 0 and cluster_address(compute) != LOCAL
    )
    resources = read_nodes(nodes, compute, limit, awaits_gpus)
    if not (resources.nodes or limit):
        raise ClusterError(
            f"label_selector is {compute.label_selector!r} but none of the {len(nodes)} nodes of the"
            " cluster has these labels: correct it, or leave it empty"
        )
    choose_device(compute, resources)
    return resources


def wait_for_nodes(
    compute: ComputeConfig, demand: Demand, resources: Resources, progress: ProgressSink
) -> Resources:
    """Wait until the nodes of the connected cluster hold a demand, and return their resources.

    Args:
        compute: `wait_for_nodes_s` limits the wait.
        demand: Of the stage that is to start.
        resources: Of the cluster, as `connected` gives them.
        progress: Called with lines while it waits.

    Raises:
        ClusterError: they can never hold it, or do not within `compute.wait_for_nodes_s`.
    """
    demand.require(resources)
    if demand.fitting_now(resources) >= demand.least:
        return resources
    with _announced(demand, compute):
        return wait_until_held(
            demand, lambda: _resources(compute), compute.wait_for_nodes_s, progress
        )


@contextlib.contextmanager
def _announced(demand: Demand, compute: ComputeConfig) -> Iterator[None]:
    """Make a demand pending for the block: an autoscaler adds nodes for what is pending."""
    import ray.util

    bundles = [process_bundle(demand, compute)] * demand.least
    selector = placement_options(compute, demand.gpus).get("label_selector")
    options: dict[str, Any] = {}
    if selector:
        options["bundle_label_selector"] = [selector] * demand.least
    group = ray.util.placement_group(bundles, **options)
    try:
        yield
    finally:
        ray.util.remove_placement_group(group)


def stream(
    function: Callable[[Any, str], Iterator[Any]],
    argument: Any,
    compute: ComputeConfig,
    progress: ProgressSink,
) -> Iterator[Any]:
    """Yield what a generator function yields: in this process, or in a task with a GPU.

    Args:
        function: Called with `argument` and its device, 'cpu' or 'cuda'.
        argument: Sent to the worker, as are the results to this process.
        compute: The cluster. The task is used where it has GPUs and this process has none.
        progress: Called with a line where nodes are awaited.

    Raises:
        ClusterError: no node has room for the task, or its worker was lost.
    """
    device = local_device(compute)
    if device == "cuda" or resolve_device(compute) == "cpu":
        yield from function(argument, device)
        return
    with connected(compute) as resources:
        import ray
        import ray.exceptions

        demand = task_demand(compute)
        wait_for_nodes(compute, demand, resources, progress)
        options: dict[str, Any] = {"num_cpus": demand.cpus, "num_gpus": demand.gpus}
        options |= placement_options(compute, demand.gpus)
        task: Any = ray.remote(function).options(num_returns="streaming", **options)
        try:
            for result in task.remote(argument, "cuda"):
                yield ray.get(result)
        except ray.exceptions.RayTaskError as error:
            # Ray's text is a traceback; errors of this package say in one line what to do.
            raise error.cause if isinstance(error.cause, SfssError) else error from None
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"the worker of a task with a GPU was lost ({_first_line(error)}): run again, finished"
                " work is kept"
            ) from error


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
