"""Resources of a cluster, and the demands that stages make on them. No Ray here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError

_SLACK = 1e-6  # 3 * 0.1 CPUs fit into 0.3
TRIAL_DRIVER_CPUS = 0.01
"""CPUs of a trial that starts workers of its own: almost none, so that trials cannot starve workers."""


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of a cluster, in total and on each node."""

    cpus: float
    gpus: int
    nodes: tuple[tuple[float, float], ...] = ()
    """(CPUs, GPUs) of each node; empty where only the totals are known."""
    limit: tuple[float, float] | None = None
    """(CPUs, GPUs) that an autoscaler may grow the cluster to; None without one."""

    def holds(self, cpus: float, gpus: float = 0.0) -> int:
        """Return how many processes of `cpus` and `gpus` fit at once; none is split over nodes."""
        nodes = self.nodes or ((self.cpus, self.gpus),)
        process = (cpus, gpus)
        at_once = sum(_fitting(node, process) for node in nodes)
        return max(at_once, _fitting(self.limit, process) if self.limit else 0)

    def describe(self) -> str:
        """Describe the cluster for people: '8 CPUs and 2 GPUs on 2 nodes'."""
        text = f"{_counted(self.cpus, 'CPU')} and {_counted(self.gpus, 'GPU')}"
        text += f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        return f"{text}, at most {self.limit[0]:g} and {self.limit[1]:g}" if self.limit else text


def _counted(count: float, unit: str) -> str:
    return f"{count:g} {unit}{'' if count == 1 else 's'}"


def _fitting(node: tuple[float, float], process: tuple[float, float]) -> int:
    """Processes that fit on a node; both are (CPUs, GPUs)."""
    shares = [have / need + _SLACK for have, need in zip(node, process, strict=True) if need > 0]
    return int(min(shares, default=0.0))


@dataclass(frozen=True)
class Demand:
    """Processes that must run at the same time for a stage to run at all."""

    name: str
    """The processes in the plural, for messages: 'training workers'."""
    count: int
    knobs: str
    """The settings that decide the count."""
    cpus: float
    """CPUs of each process."""
    gpus: float = 0.0
    """GPUs of each process."""
    driver_cpus: float = 0.0
    """CPUs that the processes' driver needs at the same time."""

    def fitting(self, resources: Resources) -> int:
        """Return how many processes fit beside their driver."""
        count = resources.holds(self.cpus, self.gpus)
        if not self.cpus or resources.limit:
            return count
        return min(count, int((resources.cpus - self.driver_cpus) / self.cpus + _SLACK))

    def require(self, resources: Resources) -> None:
        """Check that the cluster can hold the processes; Ray itself would wait without a message.

        Raises:
            ClusterError: it cannot; the message names the settings to lower.
        """
        fitting = self.fitting(resources)
        if fitting >= self.count:
            return
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        each = " and ".join(_counted(count, unit) for unit, count in needs.items() if count)
        raise ClusterError(
            f"{self.count} {self.name} of {each} each were asked for, but the cluster holds"
            f" {fitting} ({resources.describe()}): lower {self.knobs}, or use a larger cluster"
        )


def training_demand(compute: ComputeConfig, device: str) -> Demand:
    """Return the demand of one training: its workers."""
    gpus = 1.0 if device == "cuda" else 0.0
    knobs = "compute.num_workers or compute.cpus_per_worker"
    return Demand("training workers", compute.num_workers, knobs, compute.cpus_per_worker, gpus)


def trials_demand(compute: ComputeConfig, device: str, at_once: int = 1) -> Demand:
    """Return the demand of `at_once` trials of a search: their workers, and drivers if they have any."""
    demand = training_demand(compute, device)
    if compute.num_workers > 1:
        demand = dataclasses.replace(demand, driver_cpus=TRIAL_DRIVER_CPUS * max(at_once, 1))
    if at_once <= 1:
        return demand
    return dataclasses.replace(
        demand,
        name=f"training workers of {at_once} trials at the same time",
        count=at_once * demand.count,
        knobs=f"compute.concurrent_trials, {demand.knobs}",
    )


def actor_demand(stage: str, count: int, device: str) -> Demand:
    """Return the demand of a pool of `count` actors; 0 is as many as fit.

    Args:
        stage: `mask` or `predict`, as in the setting compute.STAGE_actors.
        count: Requested actors.
        device: 'cpu' or 'cuda'; on 'cuda' an actor has a GPU and no CPU of its own.
    """
    on_gpu = device == "cuda"
    knobs = f"compute.{stage}_actors"
    return Demand(f"{stage} actors", count, knobs, 1.0 - on_gpu, float(on_gpu))
