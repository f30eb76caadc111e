"""The address of a cluster: which one a config names, and whether it answers. No Ray here."""

from __future__ import annotations

import os
import socket

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError

AUTO, LOCAL = "auto", "local"
ADDRESS_VARIABLE = "RAY_ADDRESS"
_TIMEOUT_S = 5.0


def cluster_address(compute: ComputeConfig) -> str:
    """Return `local`, or the address of the cluster to join; an empty RAY_ADDRESS counts as unset."""
    if compute.address != AUTO:
        return compute.address
    return os.environ.get(ADDRESS_VARIABLE, "").strip() or LOCAL


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
