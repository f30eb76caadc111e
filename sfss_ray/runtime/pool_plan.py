"""Numbers of a pool: how many actors, and how many CPUs and threads its processes get. No Ray here."""

from __future__ import annotations

from dataclasses import dataclass

from sfss_ray.config.ranges import CountRange, count_range
from sfss_ray.runtime.resources import Resources

_MOST_ACTORS = 1000
"""A limit of an autoscaler that allows more is none: the pool keeps to the GPUs that are there."""
_CPUS_OF_STAGED_ACTOR = 0.1
_TASKS_AT_ONCE = 2
"""Tasks of stages on CPUs that must fit beside the actors: one decodes and one writes."""
DECODERS_PER_ACTOR = 4
"""Tasks that decode images at the same time for each actor of a network.

A PNG of 2048x1024 takes about a tenth of a second of one CPU, and the network of an actor at least a
fiftieth of a second of a GPU. More tasks would only fill the object store.
"""
ITEM_BYTES = 64 * 2**20
"""Bytes of decoded images of one item of work. Ten images of 2048x1024 fit."""
_ITEMS_PER_ACTOR = 8
"""Items of decoded images that an actor may have in the object store.

Four are being written by decoders, two are with the actor, and two wait.
"""


@dataclass(frozen=True)
class PoolPlan:
    """Numbers of a pool on a cluster."""

    actors: CountRange
    """Actors of the pool. Ray Data starts the smallest number, and adds more where work waits."""
    gpus: float
    """GPUs of each actor; 0 on CPUs."""
    resources: Resources
    """Resources of the cluster."""
    staged: bool = False
    """Whether decoding and writing are stages of their own, on CPUs beside the actors."""

    @property
    def present(self) -> int:
        """Actors for which the nodes that have joined have room, within the range."""
        cpus = self.resources.cpus
        fitting = self.resources.holds_now(0.0, self.gpus) if self.gpus else int(cpus)
        return max(self.actors.smallest, min(self.actors.largest, fitting))

    @property
    def threads(self) -> int:
        """Compute threads of each actor: its share of the cluster's CPUs."""
        return max(1, int(self.resources.cpus / self.present))

    @property
    def actor_cpus(self) -> float:
        """CPUs that each actor reserves, at most one.

        Ray Data needs some CPU for itself: actors that hold every CPU starve it for ever. A node with
        few CPUs and many GPUs must hold an actor for each of its GPUs. Where tasks work beside the
        actors, Ray Data adds an actor only within the share of CPUs that it sets apart for the network's
        stage, so that an actor which runs a GPU reserves almost none.
        """
        shares = [self.resources.cpus / self.present]
        if self.gpus:
            nodes = self.resources.nodes
            shares += [cpus * self.gpus / node_gpus for cpus, node_gpus in nodes if node_gpus]
        if self.staged:
            return min(_CPUS_OF_STAGED_ACTOR, 0.5 * min(shares))
        return min(1.0, 0.9 * min(shares))

    @property
    def task_cpus(self) -> float:
        """CPUs that each task beside the actors reserves, at most one, so that two fit on a node."""
        nodes = self.resources.nodes or ((self.resources.cpus, float(self.resources.gpus)),)
        free = max(cpus - self.actor_cpus * self._actors_on(cpus, gpus) for cpus, gpus in nodes)
        return min(1.0, free / _TASKS_AT_ONCE)

    def _actors_on(self, cpus: float, gpus: float) -> int:
        """Return the largest number of actors that a node with these resources holds."""
        room = int(gpus / self.gpus + 1e-6) if self.gpus else int(cpus / self.actor_cpus)
        return min(room, self.present)

    @property
    def decoders(self) -> int:
        """Largest number of tasks that decode at the same time."""
        return DECODERS_PER_ACTOR * self.actors.largest

    @property
    def object_store_bytes(self) -> int:
        """Bytes of items that may be in the object store at a time."""
        return _ITEMS_PER_ACTOR * self.actors.largest * ITEM_BYTES


def make_plan(requested: int | str, resources: Resources, gpus: float) -> PoolPlan:
    """Return the plan of a pool; see `pool_size` for the arguments."""
    return PoolPlan(
        pool_size(requested, resources, gpus), gpus, resources, staged=works_in_stages(gpus)
    )


def works_in_stages(gpus: float) -> bool:
    """Return whether decoding and writing are stages of their own, given the GPUs of each actor.

    A GPU would wait while its process decodes and writes. On CPUs all stages compete for the same
    cores, and decoded images would travel between processes for nothing. The form with one stage stays
    there. experiments/bench/pool_scale.py --forms compares both.
    """
    return gpus > 0


def pool_size(requested: int | str, resources: Resources, gpus: float) -> CountRange:
    """Return the numbers of actors: as requested, or with 0 as many as the GPUs hold, or one per CPU.

    GPUs that an autoscaler may add count. Ray Data works with the actors that have started, and those
    that wait are what makes the cluster grow.

    Args:
        requested: A number or a range MIN-MAX that the user asks for; 0 leaves it to the cluster.
        resources: Of the cluster.
        gpus: GPUs of each actor; 0 for a pool on CPUs.
    """
    if requested:
        return count_range(requested)
    if not gpus:
        return count_range(max(1, int(resources.cpus)))
    size = resources.holds(0.0, gpus)
    return count_range(max(1, size if size <= _MOST_ACTORS else resources.holds_now(0.0, gpus)))
