"""Pools of actors on Ray Data: items of work in, results out, each actor with a network of its own.

Where the network runs on a GPU, an item passes three stages of one Ray Data plan. Tasks on CPUs read and
decode its images, an actor runs the network, and tasks on CPUs encode and write the results.

Ray Data has means of its own for bad input and for resuming, which are not used:

- Its checkpoints record finished rows in a folder beside the output, by an id column. They are switched
  off without an error for a data set made of Python objects. They cannot say whether an output file
  still exists, or was made by other settings. Files with fixed names can: what exists is done.
- `max_errored_blocks` drops a whole block, with its good images, and counts raised errors alone. A
  process that the kernel kills raises none, and Ray Data repeats its task without end. The crash guard
  counts these by image.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfss_ray.config import ComputeConfig
from sfss_ray.config.ranges import CountRange
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.crash_guard import forget_crashes
from sfss_ray.runtime.pool_plan import PoolPlan
from sfss_ray.runtime.resources import placement_options
from sfss_ray.storage.places import Place


@dataclass(frozen=True)
class Stages:
    """The work of an item in three stages, each in processes of its own.

    An item is one row of a table from stage to stage, so Ray Data cannot split it over two blocks.
    """

    decode: Callable[..., Any]
    """Task on a CPU: takes a batch of items and `spec`, and returns a table of `pack_item`."""
    network: type
    """Class of the actors, built as `Pool.actor` is: takes such a table, and returns another."""
    write: Callable[..., Any]
    """Task on a CPU: takes that table and `spec`, writes files, and returns the item's result."""


@dataclass(frozen=True)
class Pool:
    """A pool of actors for one stage."""

    name: str
    """Name of the stage's work, for errors: 'masks'."""
    folder: Place
    """Folder that the stage writes to."""
    actor: type
    """Class of the actors, each of which does all of an item's work. It is built from a dict `spec` in
    a process of its own. It loads its network inside `crash_guard.loading_network`, and counts its work
    with `crash_guard.Attempts`."""
    plan: PoolPlan
    """Number of actors, which is never larger than that of items, and the CPUs of all processes."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Says which nodes the processes run on, and what Ray itself may print."""
    stages: Stages | None = None
    """The work of `actor` in stages; used where `plan.staged`."""

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
        import ray.exceptions

        dataset = self._dataset(items, spec)
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

    def _dataset(self, items: Sequence[dict[str, str]], spec: dict[str, Any]) -> Any:
        """Return the data set whose rows are the results of items; nothing runs yet."""
        import ray.data

        actors = self.plan.actors
        smallest, largest = (min(n, len(items)) for n in (actors.smallest, actors.largest))
        plan = dataclasses.replace(self.plan, actors=CountRange(smallest, largest))
        spec = spec | {"threads": plan.threads, "pool": largest}
        network = {
            "fn_constructor_args": (spec,),
            "compute": ray.data.ActorPoolStrategy(min_size=smallest, max_size=largest),
            "num_cpus": plan.actor_cpus,
            "num_gpus": plan.gpus,
            **placement_options(self.compute, plan.gpus),
        }
        with _settings_of_ray(self.compute, plan):
            dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
        if not plan.staged or self.stages is None:
            return dataset.map_batches(self.actor, batch_size=1, **network)
        task = {
            "batch_size": 1,
            "batch_format": "pyarrow",
            "fn_kwargs": {"spec": spec},
            "num_cpus": plan.task_cpus,
            **placement_options(self.compute, 0.0),
        }
        decoders = ray.data.TaskPoolStrategy(size=plan.decoders)
        dataset = dataset.map_batches(self.stages.decode, compute=decoders, **task)
        dataset = dataset.map_batches(
            self.stages.network, batch_size=1, batch_format="pyarrow", **network
        )
        return dataset.map_batches(self.stages.write, **task)


@contextlib.contextmanager
def _settings_of_ray(compute: ComputeConfig, plan: PoolPlan) -> Iterator[None]:
    """Choose what Ray Data prints, and the memory of a data set made in the block."""
    import ray.data

    # The import sets the level to INFO; our own error replaces Ray's stack traces.
    level = logging.INFO if compute.ray_logs else logging.CRITICAL
    logging.getLogger("ray.data").setLevel(level)
    # Where the output is no terminal, Ray Data logs its progress instead of drawing bars.
    progress_level = logging.INFO if compute.ray_progress else logging.NOTSET
    logging.getLogger("ray.data._internal.progress").setLevel(progress_level)
    context = ray.data.DataContext.get_current()
    by_default = context.enable_progress_bars, context.execution_options
    context.enable_progress_bars = context.enable_progress_bars or compute.ray_progress
    if plan.staged:
        # Ray Data's own limit is half of the object store, many gigabytes on a large node.
        options = copy.copy(context.execution_options)
        options.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=plan.object_store_bytes
        )
        context.execution_options = options
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options = by_default


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
