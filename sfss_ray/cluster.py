"""Joining or starting a Ray cluster, and what it offers. Nothing here knows what runs on it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all."""

    cpus: float
    gpus: int


def local_device(compute: ComputeConfig) -> str:
    """'cpu' or 'cuda', for what this process computes itself.

    ClusterError when CUDA is asked for, and neither this machine has it nor a cluster is named that may.
    """
    if compute.device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if compute.device == "cuda" and not _joins_cluster(compute):
        raise ClusterError(
            "device is 'cuda' but this machine has no CUDA device that torch can use: choose device"
            " cpu or auto, or give the address of a cluster with GPUs"
        )
    return "cpu"


def resolve_device(compute: ComputeConfig) -> str:
    """'cpu' or 'cuda', for what the workers of a cluster compute; ClusterError as `local_device`.

    A driver without a GPU may still ask for a GPU cluster: then an address is given and the cluster
    itself is asked. A driver with a GPU that leaves the choice (auto) takes the CPU where the cluster
    has no GPU to give: Ray would wait for one for ever.
    """
    here = local_device(compute)
    if compute.device != "auto":
        return compute.device
    return here if here == "cpu" or _may_give_gpus(compute) else "cpu"


def _may_give_gpus(compute: ComputeConfig) -> bool:
    """Whether the cluster has a GPU; one that is started here later takes those of this machine."""
    import ray

    if ray.is_initialized() or _joins_cluster(compute):
        with connected(compute) as resources:
            return resources.gpus > 0
    return True


def _joins_cluster(compute: ComputeConfig) -> bool:
    return compute.address not in ("auto", "local") or "RAY_ADDRESS" in os.environ


def check_address(compute: ComputeConfig) -> None:
    """ClusterError when an explicit HOST:PORT does not answer. Joining would wait for minutes."""
    address = (
        compute.address if compute.address != "auto" else os.environ.get("RAY_ADDRESS", "auto")
    )
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"Ray address {address!r}: allowed is auto, local or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"Ray address {address!r} cannot be reached ({error}): start the cluster with `ray start"
            " --head`, correct the address, or use address local"
        ) from error


def prepare_environment() -> None:
    """Settings that Ray reads when it starts; the user's own values win."""
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
    address = _init_address(compute)
    if address == "local":
        _start_here()
    else:
        _join(address, compute)
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
        named = compute.address if address else os.environ.get("RAY_ADDRESS")
        raise ClusterError(
            f"Ray address {named!r} cannot be joined ({_first_line(error)}): see that the cluster runs,"
            " with the same versions of Ray and Python, and that its token is set here (RAY_AUTH_MODE)"
        ) from error


def _init(address: str | None) -> None:
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _init_address(compute: ComputeConfig) -> str | None:
    """What `ray.init` is given; None joins the cluster of RAY_ADDRESS, which jobs have set."""
    if compute.address != "auto":
        return compute.address
    return None if "RAY_ADDRESS" in os.environ else "local"


def _resources(compute: ComputeConfig) -> Resources:
    import ray

    total = ray.cluster_resources()
    resources = Resources(total.get("CPU", 0.0), int(total.get("GPU", 0)))
    if compute.device == "cuda" and not resources.gpus:
        raise ClusterError("device is 'cuda' but the cluster has no GPU: choose device cpu or auto")
    return resources


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
