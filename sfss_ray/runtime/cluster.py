"""Joining or starting a Ray cluster, and what it offers. Nothing here knows what runs on it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError

AUTO, LOCAL = "auto", "local"
_ADDRESS_VARIABLE = "RAY_ADDRESS"
_TIMEOUT_S = 5.0
_SLACK = 1e-6  # 3 * 0.1 CPUs fit into 0.3
TRIAL_DRIVER_CPUS = 0.01
"""Of a trial that starts workers of its own: almost none, so that trials cannot starve their workers."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all, and on each of its nodes."""

    cpus: float
    gpus: int
    nodes: tuple[tuple[float, float], ...] = ()
    """(CPUs, GPUs) of each node; empty where only the totals are known."""
    limit: tuple[float, float] | None = None
    """(CPUs, GPUs) that an autoscaler may grow the cluster to; None without one."""

    def holds(self, cpus: float, gpus: float = 0.0) -> int:
        """Processes of `cpus` and `gpus` each that fit at the same time; none is split over nodes."""
        nodes = self.nodes or ((self.cpus, self.gpus),)
        now = sum(_fitting(node, (cpus, gpus)) for node in nodes)
        return max(now, _fitting(self.limit, (cpus, gpus)) if self.limit else 0)

    def describe(self) -> str:
        """'8 CPUs and 2 GPUs on 2 nodes'."""
        text = f"{_counted(self.cpus, 'CPU')} and {_counted(self.gpus, 'GPU')}"
        text += f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        return f"{text}, at most {self.limit[0]:g} and {self.limit[1]:g}" if self.limit else text


def _counted(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _fitting(node: tuple[float, float], needs: tuple[float, float]) -> int:
    shares = [have / need + _SLACK for have, need in zip(node, needs, strict=True) if need > 0]
    return int(min(shares, default=0.0))


@dataclass(frozen=True)
class Demand:
    """Processes that must run at the same time for a stage to run at all."""

    what: str
    """In the plural, for messages: 'training workers'."""
    number: int
    knobs: str
    """The settings that decide it."""
    cpus: float
    """Of each process."""
    gpus: float = 0.0
    beside: float = 0.0
    """CPUs that their driver needs at the same time."""

    def fitting(self, resources: Resources) -> int:
        """Processes that fit beside the driver."""
        number = resources.holds(self.cpus, self.gpus)
        if not self.cpus or resources.limit:
            return number
        return min(number, int((resources.cpus - self.beside) / self.cpus + _SLACK))

    def require(self, resources: Resources) -> None:
        """ClusterError when the cluster can never hold them: Ray would wait without a word."""
        fitting = self.fitting(resources)
        if fitting >= self.number:
            return
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        each = " and ".join(_counted(number, unit) for unit, number in needs.items() if number)
        raise ClusterError(
            f"{self.number} {self.what} of {each} each were asked for, but the cluster holds"
            f" {fitting} ({resources.describe()}): lower {self.knobs}, or use a larger cluster"
        )


def training_demand(compute: ComputeConfig, device: str) -> Demand:
    """The workers of one training."""
    gpus = 1.0 if device == "cuda" else 0.0
    knobs = "compute.num_workers or compute.cpus_per_worker"
    return Demand("training workers", compute.num_workers, knobs, compute.cpus_per_worker, gpus)


def trials_demand(compute: ComputeConfig, device: str, at_once: int = 1) -> Demand:
    """The workers of trials of a search, beside the trials themselves where these are several."""
    demand = training_demand(compute, device)
    if compute.num_workers > 1:
        demand = dataclasses.replace(demand, beside=TRIAL_DRIVER_CPUS * max(at_once, 1))
    if at_once <= 1:
        return demand
    knobs = f"compute.concurrent_trials, {demand.knobs}"
    what = f"training workers of {at_once} trials at the same time"
    return dataclasses.replace(demand, what=what, number=at_once * demand.number, knobs=knobs)


def actor_demand(what: str, number: int, device: str) -> Demand:
    """The actors of a pool; 0 is as many as fit."""
    on_gpu = device == "cuda"
    return Demand(f"{what} actors", number, f"compute.{what}_actors", 1.0 - on_gpu, float(on_gpu))


def local_device(compute: ComputeConfig) -> str:
    """'cpu' or 'cuda', for what this process computes itself.

    ClusterError when CUDA is asked for, and neither this machine has it nor a cluster is named that may.
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
    """'cpu' or 'cuda', for what the workers of a cluster compute; see `choose_device`."""
    local_device(compute)
    return choose_device(compute, capacity(compute))


def choose_device(compute: ComputeConfig, resources: Resources) -> str:
    """'cpu' or 'cuda', for workers: the cluster's GPUs decide, not those of the driver's machine.

    A head node without a GPU drives a cluster that has some, and a workstation with a GPU drives one
    that has none, where Ray would wait for a GPU for ever.

    Raises:
        ClusterError: CUDA is asked for and the cluster has no GPU.
    """
    if compute.device == "cpu":
        return "cpu"
    if resources.gpus or (resources.limit and resources.limit[1]):
        return "cuda"
    if compute.device == "cuda":
        raise ClusterError("device is 'cuda' but the cluster has no GPU: choose device cpu or auto")
    return "cpu"


def capacity(compute: ComputeConfig) -> Resources:
    """What the cluster of this config has. One that is still to be started here is not started."""
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
    """`local`, or the address of the cluster to join; an empty RAY_ADDRESS counts as none."""
    if compute.address != AUTO:
        return compute.address
    return os.environ.get(_ADDRESS_VARIABLE, "").strip() or LOCAL


def check_address(compute: ComputeConfig) -> None:
    """ClusterError when an explicit HOST:PORT does not answer. Joining would wait for minutes."""
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
    """The address that `ray job submit` takes is not one that a driver can join."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"Ray address {address!r} is that of the dashboard, which takes jobs: submit the command"
            f" with `ray job submit --address {address}`, or give HOST:PORT of the head node (the port"
            " of `ray start --head`, 6379 by default)"
        )


def prepare_environment() -> None:
    """Settings that Ray reads when it starts; the user's own values win."""
    if not os.environ.get(_ADDRESS_VARIABLE, "unset").strip():
        del os.environ[_ADDRESS_VARIABLE]  # set but empty, as a shell script leaves it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Metrics would be throttled to one report in seconds otherwise.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's tables; we print progress lines


@contextlib.contextmanager
def connected(compute: ComputeConfig) -> Iterator[Resources]:
    """Be connected to a cluster inside the block; one that was started here ends with it.

    A connection that exists already is used as it is and stays.
    """
    check_address(compute)
    prepare_environment()
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield _resources(compute)
        return
    if cluster_address(compute) == LOCAL:
        _start_here()
    else:
        # A job's driver joins by RAY_ADDRESS, which Ray itself reads.
        _join(None if compute.address == AUTO else compute.address, compute)
    try:
        yield _resources(compute)
    finally:
        ray.shutdown()


def _start_here() -> None:
    """Start a cluster on this machine; once more where it was too busy for Ray's patience of 30 s.

    ClusterError where it does not start: Ray raises plain exceptions of several kinds.
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
            " again, what is finished is kept"
        ) from error


def _join(address: str | None, compute: ComputeConfig) -> None:
    """Join a cluster that runs; None is that of RAY_ADDRESS. ClusterError where that fails."""
    try:
        _init(address)
    except Exception as error:
        named = compute.address if address else os.environ.get(_ADDRESS_VARIABLE)
        raise ClusterError(
            f"Ray address {named!r} cannot be joined ({_first_line(error)}): see that the cluster runs,"
            " with the same versions of Ray and Python, and that its token is set here (RAY_AUTH_MODE)"
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
    """(CPUs, GPUs) that an autoscaler may bring; Ray Train asks the same before it waits."""
    from ray._private.state import state

    most = state.get_max_resources_from_cluster_config()
    return (float(most.get("CPU", 0)), float(most.get("GPU", 0))) if most else None


def pickled(value: object, by_value: Sequence[ModuleType] = ()) -> bytes:
    """What Ray would send of a value, with the code of some modules in it instead of their names."""
    import ray.cloudpickle

    registered = ray.cloudpickle.list_registry_pickle_by_value()
    added = [module for module in by_value if module.__name__ not in registered]
    for module in added:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        return ray.cloudpickle.dumps(value)  # pyright: ignore[reportPrivateImportUsage]
    finally:
        for module in added:
            ray.cloudpickle.unregister_pickle_by_value(module)
