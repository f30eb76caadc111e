"""The door to Ray Data: items of work over a pool of actors, each of which holds a network."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.errors import ClusterError
from sfss_ray.runtime.crash_guard import forget_deaths
from sfss_ray.runtime.resources import Resources


def pool_size(wanted: int, resources: Resources, on_gpu: bool) -> int:
    """Actors: as many as are wanted (0: one for each GPU, or for each CPU where none is used)."""
    return wanted or max(1, resources.gpus if on_gpu else int(resources.cpus))


def threads_of_actor(resources: Resources, pool: int) -> int:
    """Compute threads of an actor: its share of the cluster's CPUs."""
    return max(1, int(resources.cpus / pool))


@dataclass(frozen=True)
class Pool:
    """A stage's pool.

    Attributes:
        what: of the stage, for errors ("masks").
        folder: where the stage writes.
        actor: class whose instances are made of a dict `spec` in processes of their own. It loads its
            network inside deaths.started, and its work on images notes its deaths.Attempts.
        size: most actors; never more than items.
        on_gpu: each actor has a GPU.
        resources: of the cluster.
    """

    what: str
    folder: Path
    actor: type
    size: int
    on_gpu: bool
    resources: Resources

    def results(
        self, items: Sequence[dict[str, str]], spec: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """What actors return of each item, as they are done. `spec` gets `threads` and `pool`.

        Ray Data starts what was lost again, without end.

        Raises:
            ClusterError: an actor raised an error, or the cluster was lost.
        """
        import ray.data
        import ray.exceptions

        # The import sets it to INFO; what stops the pool is told once, without Ray's stack traces.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        size = min(self.size, len(items))
        threads = threads_of_actor(self.resources, size)
        dataset = ray.data.from_items(list(items), override_num_blocks=len(items)).map_batches(
            self.actor,
            fn_constructor_args=(spec | {"threads": threads, "pool": size},),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size),
            # Ray Data needs a share of a CPU for itself: actors that hold every CPU starve it for ever.
            num_cpus=min(1.0, 0.9 * self.resources.cpus / size),
            num_gpus=1 if self.on_gpu else 0,
        )
        forget_deaths(self.folder)
        _hand_over_by_value()
        try:
            yield from dataset.iter_rows()
        except ray.exceptions.RayError as error:
            raise ClusterError(_explained(self.what, str(error) or type(error).__name__)) from error
        finally:
            forget_deaths(self.folder)


def _hand_over_by_value() -> None:
    """Have actors of Ray Data constructed from values, not from references to the object store.

    Ray Data puts its context and the map function into the store and hands each restartable actor
    references to them. Ray then warns, in red at every first run, that a restart fails when such an
    object is lost. Both are a few kilobytes here, so that the constructor call carries them itself.
    A release that keeps them elsewhere is left as it is.
    """
    from ray.data._internal.execution.operators import actor_pool_map_operator, map_operator

    pool, base = actor_pool_map_operator.ActorPoolMapOperator, map_operator.MapOperator
    if hasattr(base, "_data_context_ref") and hasattr(base, "_map_transformer_ref"):
        pool._data_context_ref = property(lambda self: self.data_context)  # pyright: ignore
        pool._map_transformer_ref = property(lambda self: self._map_transformer)  # pyright: ignore


def _explained(what: str, text: str) -> str:
    """Why a pool stopped: Ray sends a text of all exceptions, the first cause first.

    An error of this package, such as that of a full disk, says what to do itself.
    """
    own = re.search(r"^sfss_ray\.errors\.\w+: (.+)$", text, re.MULTILINE)
    if own is not None:
        return f"the pool of {what} stopped: {own[1].strip()}"
    lines = text.strip().splitlines()
    raised = (line for line in lines if re.match(r"\w[\w.]*(Error|Exception)\b", line))
    cause = next(raised, lines[0]).strip()[:200]
    advice = "put that right and run again, what is finished is kept"
    return f"the pool of {what} stopped ({cause}): {advice}"
