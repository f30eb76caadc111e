"""Waiting for nodes that an autoscaler adds, or that join by hand. No Ray here."""

from __future__ import annotations

import time
from collections.abc import Callable

from sfss_ray.errors import ClusterError
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.runtime.resources import Demand, Resources

_POLL_S = 1.0
_LINE_S = 60.0
"""Seconds between two lines that say how long it has been."""


def wait_until_held(
    demand: Demand, read: Callable[[], Resources], seconds: float, progress: ProgressSink
) -> Resources:
    """Wait until the nodes that have joined hold the processes of a demand.

    Args:
        demand: The processes.
        read: Returns the resources of the cluster at the moment.
        seconds: Longest time to wait.
        progress: Called with a line at the start, each minute, and at the end.

    Returns:
        The resources of the cluster.

    Raises:
        ClusterError: the time has passed.
    """
    started = last_line = time.monotonic()
    resources = read()
    if seconds:
        progress(
            f"waiting up to {seconds:g} s (compute.wait_for_nodes_s) for nodes that hold"
            f" {demand.describe()}: the cluster has {resources.describe()}"
        )
    while demand.fitting_now(resources) < demand.least:
        now = time.monotonic()
        if now - started >= seconds:
            raise ClusterError(_too_late(demand, resources, seconds))
        if now - last_line >= _LINE_S:
            progress(f"waiting for nodes: {now - started:.0f} of {seconds:g} s have passed")
            last_line = now
        time.sleep(min(_POLL_S, seconds - (now - started)))
        resources = read()
    progress(f"the cluster has {resources.describe()} after {time.monotonic() - started:.0f} s")
    return resources


def _too_late(demand: Demand, resources: Resources, seconds: float) -> str:
    advice = "check that the group of nodes can grow, raise compute.wait_for_nodes_s"
    if demand.gpus:
        advice += ", or choose compute.device cpu"
    return (
        f"no nodes that hold {demand.describe()} joined within {seconds:g} s: the cluster has"
        f" {resources.describe()}; {advice}"
    )
