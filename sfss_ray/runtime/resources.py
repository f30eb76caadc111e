"""Resources of a cluster, and the demands that stages make on them. No Ray here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfss_ray.config import ComputeConfig
from sfss_ray.config.node_labels import matches, parse_selector
from sfss_ray.config.ranges import count_range
from sfss_ray.errors import ClusterError

_SLACK = 1e-6  # 3 * 0.1 CPUs fit into 0.3
TYPE_SHARE = 0.001
"""Share of the marker of a GPU's type that a process takes, as in Ray's own `accelerator_type`."""
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
    awaits_gpus: bool = False
    """Whether the cluster has no GPU yet, and a run waits for nodes that nothing announces."""

    def holds(self, cpus: float, gpus: float = 0.0) -> int:
        """Return how many processes of `cpus` and `gpus` fit at once; none is split over nodes."""
        grown = _fitting(self.limit, (cpus, gpus)) if self.limit else 0
        return max(self.holds_now(cpus, gpus), grown)

    def holds_now(self, cpus: float, gpus: float = 0.0) -> int:
        """Return how many processes fit on the nodes that have joined; see `holds`."""
        nodes = self.nodes or ((self.cpus, self.gpus),)
        return sum(_fitting(node, (cpus, gpus)) for node in nodes)

    @property
    def may_have_gpus(self) -> bool:
        """Whether there are GPUs, or some may come."""
        return bool(self.gpus or (self.limit and self.limit[1]) or self.awaits_gpus)

    def describe(self) -> str:
        """Describe the cluster for people: '8 CPUs and 2 GPUs on 2 nodes'."""
        text = f"{_counted(self.cpus, 'CPU')} and {_counted(self.gpus, 'GPU')}"
        text += f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        return f"{text}, at most {self.limit[0]:g} and {self.limit[1]:g}" if self.limit else text


def read_nodes(
    nodes: Sequence[Mapping[str, Any]],
    compute: ComputeConfig,
    limit: tuple[float, float] | None = None,
    awaits_gpus: bool = False,
) -> Resources:
    """Return the resources that a run may use, from Ray's table of nodes.

    Nodes whose labels the selector excludes do not count. Nodes with GPUs of another type than the
    required one count without their GPUs.

    Args:
        nodes: As `ray.nodes()` returns them.
        compute: `label_selector` and `accelerator_type` are used.
        limit: See `Resources`.
        awaits_gpus: Whether the run waits for GPUs where there are none.
    """
    selector = parse_selector(compute.label_selector)
    usable = []
    for node in nodes:
        if node["Alive"] and matches(node.get("Labels") or {}, selector):
            has_type = not compute.accelerator_type or type_resource(compute) in node["Resources"]
            gpus = node["Resources"].get("GPU", 0.0) if has_type else 0.0
            usable.append((node["Resources"].get("CPU", 0.0), gpus))
    total_cpus, total_gpus = (sum(node[k] for node in usable) for k in (0, 1))
    awaits_gpus = awaits_gpus and not total_gpus and limit is None
    return Resources(total_cpus, int(total_gpus), tuple(usable), limit, awaits_gpus)


def type_resource(compute: ComputeConfig) -> str:
    """Return the resource by which Ray marks nodes with GPUs of `compute.accelerator_type`."""
    return f"accelerator_type:{compute.accelerator_type}"


def placement_options(compute: ComputeConfig, gpus: float) -> dict[str, Any]:
    """Return the arguments of Ray that choose nodes for a process of `gpus` GPUs."""
    options: dict[str, Any] = {}
    if compute.label_selector:
        options["label_selector"] = parse_selector(compute.label_selector)
    if compute.accelerator_type and gpus:
        options["accelerator_type"] = compute.accelerator_type
    return options


def process_bundle(demand: Demand, compute: ComputeConfig) -> dict[str, float]:
    """Return the resources of one process of a demand by Ray's names, without zeros."""
    bundle = {"CPU": demand.cpus, "GPU": demand.gpus}
    if compute.accelerator_type and demand.gpus:
        bundle[type_resource(compute)] = TYPE_SHARE
    return {name: count for name, count in bundle.items() if count}


def describe_nodes(compute: ComputeConfig) -> str:
    """Describe the nodes and GPUs that a run may use: ' of type A100 on nodes with x=y'."""
    kind = f" of type {compute.accelerator_type}" if compute.accelerator_type else ""
    return f"{kind} on nodes with {compute.label_selector}" if compute.label_selector else kind


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

    @property
    def least(self) -> int:
        """Processes that must fit before any starts; a pool of as many as fit needs one with a GPU."""
        return self.count or (1 if self.gpus else 0)

    def fitting(self, resources: Resources) -> int:
        """Return how many processes can ever fit beside their driver."""
        count = resources.holds(self.cpus, self.gpus)
        return count if resources.limit else self._beside_driver(count, resources)

    def fitting_now(self, resources: Resources) -> int:
        """Return how many processes fit on the nodes that have joined."""
        return self._beside_driver(resources.holds_now(self.cpus, self.gpus), resources)

    def _beside_driver(self, count: int, resources: Resources) -> int:
        if not self.cpus:
            return count
        return min(count, int((resources.cpus - self.driver_cpus) / self.cpus + _SLACK))

    def describe(self) -> str:
        """Describe the processes: '2 training workers of 1 CPU and 1 GPU each'."""
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        each = " and ".join(_counted(count, unit) for unit, count in needs.items() if count)
        return f"{self.least} {self.name} of {each} each"

    def require(self, resources: Resources) -> None:
        """Check that the cluster can hold the processes; Ray itself would wait without a message.

        Raises:
            ClusterError: it cannot; the message names the settings to lower.
        """
        fitting = self.fitting(resources)
        if fitting >= self.count or (self.gpus and resources.awaits_gpus):
            return
        raise ClusterError(
            f"{self.describe()} were asked for, but the cluster holds {fitting}"
            f" ({resources.describe()}): lower {self.knobs}, or use a larger cluster"
        )


def training_demand(compute: ComputeConfig, device: str) -> Demand:
    """Return the demand of one training: its workers, of a range the smallest number."""
    gpus = compute.gpus_per_worker if device == "cuda" else 0.0
    knobs = "compute.num_workers or compute.cpus_per_worker"
    return Demand(
        "training workers", compute.workers.smallest, knobs, compute.cpus_per_worker, gpus
    )


def trials_demand(compute: ComputeConfig, device: str, at_once: int = 1) -> Demand:
    """Return the demand of `at_once` trials of a search: their workers, and drivers if they have any."""
    demand = training_demand(compute, device)
    if compute.workers.largest > 1:
        demand = dataclasses.replace(demand, driver_cpus=TRIAL_DRIVER_CPUS * max(at_once, 1))
    if at_once <= 1:
        return demand
    return dataclasses.replace(
        demand,
        name=f"training workers of {at_once} trials at the same time",
        count=at_once * demand.count,
        knobs=f"compute.concurrent_trials, {demand.knobs}",
    )


def actor_demand(stage: str, requested: int | str, gpus: float) -> Demand:
    """Return the demand of a pool of actors; 0 is as many as fit.

    Args:
        stage: `mask` or `predict`, as in the setting compute.STAGE_actors.
        requested: Actors that the setting asks for. Of a range, the smallest number must fit.
        gpus: GPUs of each actor; one with a GPU has no CPU of its own.
    """
    knobs = f"compute.{stage}_actors" + (" or compute.gpus_per_actor" if gpus else "")
    count = count_range(requested).smallest
    return Demand(f"{stage} actors", count, knobs, 0.0 if gpus else 1.0, gpus)


def task_demand(compute: ComputeConfig) -> Demand:
    """Return the demand of one task that does the driver's work on a GPU."""
    return dataclasses.replace(training_demand(compute, "cuda"), name="tasks", count=1)


def actor_gpus(compute: ComputeConfig, device: str) -> float:
    """Return the GPUs of each actor of a pool on a device, 'cpu' or 'cuda'."""
    return compute.gpus_per_actor if device == "cuda" else 0.0
