"""Pools of actors on Ray Data: items of work in, results out, each actor with a network of its own."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.crash_guard import forget_crashes
from sfss_ray.runtime.resources import Resources, placement_options
from sfss_ray.storage.places import Place

_MOST_ACTORS = 1000
"""A limit of an autoscaler that allows more is none: the pool keeps to the GPUs that are there."""


def pool_size(requested: int, resources: Resources, gpus: float) -> int:
    """Return the number of actors: as requested, or with 0 as many as the GPUs hold, or one per CPU.

    GPUs that an autoscaler may add count. Ray Data works with the actors that have started, and those
    that wait are what makes the cluster grow.

    Args:
        requested: Actors that the user asks for; 0 leaves it to the cluster.
        resources: Of the cluster.
        gpus: GPUs of each actor; 0 for a pool on CPUs.
    """
    if requested or not gpus:
        return requested or max(1, int(resources.cpus))
    size = resources.holds(0.0, gpus)
    return max(1, size if size <= _MOST_ACTORS else resources.holds_now(0.0, gpus))


def threads_of_actor(resources: Resources, pool: int) -> int:
    """Return the compute threads of each of `pool` actors: its share of the cluster's CPUs."""
    return max(1, int(resources.cpus / pool))


def cpus_of_actor(resources: Resources, pool: int, gpus: float) -> float:
    """Return the CPUs that each of `pool` actors reserves, at most one.

    Ray Data needs some CPU for itself: actors that hold every CPU starve it for ever. A node with few
    CPUs and many GPUs must hold an actor for each of its GPUs.
    """
    shares = [resources.cpus / pool]
    if gpus:
        shares += [cpus * gpus / node_gpus for cpus, node_gpus in resources.nodes if node_gpus]
    return min(1.0, 0.9 * min(shares))


@dataclass(frozen=True)
class Pool:
    """A pool of actors for one stage."""

    name: str
    """Name of the stage's work, for errors: 'masks'."""
    folder: Place
    """Folder that the stage writes to."""
    actor: type
    """Class of the actors. Each is built from a dict `spec` in a process of its own. It loads its
    network inside `crash_guard.loading_network`, and counts its work with `crash_guard.Attempts`."""
    size: int
    """Largest number of actors; there are never more than items."""
    gpus: float
    """GPUs of each actor; 0 on CPUs."""
    resources: Resources
    """Resources of the cluster."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Says which nodes the actors run on, and what Ray itself may print."""

    @contextlib.contextmanager
    def results(
        self, items: Sequence[dict[str, str]], spec: dict[str, Any]
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Run the pool for a `with` block, which gets the actors' results as they are finished.

        However the block ends, the pool has ended with it. Ray Data repeats lost work without end.

        Args:
            items: Rows of text, each the work of one call of an actor.
            spec: Argument of the actor's class; `threads` and `pool` are added.

        Raises:
            ClusterError: an actor raised an error, or the cluster was lost.
        """
        import ray.data
        import ray.exceptions

        size = min(self.size, len(items))
        threads = threads_of_actor(self.resources, size)
        with _output_of_ray(self.compute):
            dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
        dataset = dataset.map_batches(
            self.actor,
            fn_constructor_args=(spec | {"threads": threads, "pool": size},),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=cpus_of_actor(self.resources, size, self.gpus),
            num_gpus=self.gpus,
            **placement_options(self.compute, self.gpus),
        )
        # Crashes of earlier runs do not count, and this run's are of no use to later ones.
        forget_crashes(self.folder)
        _hand_over_by_value()
        try:
            yield iter(dataset.iter_rows())
        except ray.exceptions.RayError as error:
            raise ClusterError(_explain(self.name, str(error) or type(error).__name__)) from error
        finally:
            _end_execution(dataset)
            forget_crashes(self.folder)


@contextlib.contextmanager
def _output_of_ray(compute: ComputeConfig) -> Iterator[None]:
    """Choose what Ray Data prints: its logs, and the progress of a data set made in the block."""
    import ray.data

    # The import sets the level to INFO; our own error replaces Ray's stack traces.
    level = logging.INFO if compute.ray_logs else logging.CRITICAL
    logging.getLogger("ray.data").setLevel(level)
    # Where the output is no terminal, Ray Data logs its progress instead of drawing bars.
    progress_level = logging.INFO if compute.ray_progress else logging.NOTSET
    logging.getLogger("ray.data._internal.progress").setLevel(progress_level)
    context = ray.data.DataContext.get_current()
    by_default = context.enable_progress_bars
    context.enable_progress_bars = by_default or compute.ray_progress
    try:
        yield
    finally:
        context.enable_progress_bars = by_default


def _end_execution(dataset: Any) -> None:
    """End the tasks of a data set that was not read to its end, as after Ctrl-C.

    Ray Data would do so when the garbage collector finds the data set. By then the connection to the
    cluster is closed, and its calls fail with tracebacks. Ray has no public method for this.
    """
    executor = getattr(dataset, "_current_executor", None)
    if executor is not None:
        executor.shutdown(force=True)


def _hand_over_by_value() -> None:
    """Make Ray Data construct actors from values, not from references to the object store.

    Ray Data puts its context and the map function into the store, and gives each restartable actor
    references to them. Ray then warns, in red at every first run, that a restart fails when such an
    object is lost. Both are a few kilobytes here, so the constructor call carries them itself.
    Releases of Ray that keep them elsewhere are not changed.
    """
    from ray.data._internal.execution.operators import actor_pool_map_operator, map_operator

    pool, base = actor_pool_map_operator.ActorPoolMapOperator, map_operator.MapOperator
    if hasattr(base, "_data_context_ref") and hasattr(base, "_map_transformer_ref"):
        pool._data_context_ref = property(lambda self: self.data_context)  # pyright: ignore
        pool._map_transformer_ref = property(lambda self: self._map_transformer)  # pyright: ignore


def _explain(name: str, text: str) -> str:
    """Return one line on why a pool stopped, from Ray's text of all exceptions, first cause first."""
    # An error of this package, such as that of a full disk, says itself what to do.
    package_error = re.search(r"^sfss_ray\.errors\.\w+: (.+)$", text, re.MULTILINE)
    if package_error is not None:
        return f"the pool of {name} stopped: {package_error[1].strip()}"
    lines = text.strip().splitlines()
    exceptions = (line for line in lines if re.match(r"\w[\w.]*(Error|Exception)\b", line))
    cause = next(exceptions, lines[0]).strip()[:200]
    advice = "fix the cause and run again: finished work is kept"
    return f"the pool of {name} stopped ({cause}): {advice}"
