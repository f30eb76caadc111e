"""Training updates as CUDA graphs: one launch for the thousands of small kernels of a step.

Without graphs the speed of the CPU that launches the kernels limits the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from small_sam_learning import Batch
from torch import Tensor

EAGER_STEPS = 3  # before recording, so that libraries and the optimiser allocate their buffers

Update = Callable[[Batch, Tensor], Tensor]
"""(batch, weight of the pair loss) -> values to log. Changes the network in place."""


@dataclass
class RecordedUpdate:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    pair_weight: Tensor
    output: Tensor

    def replay(self, tensors: Mapping[str, Tensor], pair_weight: Tensor) -> Tensor:
        """Run the graph on another batch of the same shapes."""
        for name, buffer in self.inputs.items():
            buffer.copy_(tensors[name])
        self.pair_weight.copy_(pair_weight)
        self.graph.replay()
        return self.output.clone()  # the next replay of any graph may overwrite it


class GraphedUpdates:
    """Runs `update` for the first batches of each shape, then replays its recording.

    `update` must not read a value back from the device, and its optimiser must be capturable. Only the
    network and the state of the optimiser outlive a replay, so all graphs share their memory.
    """

    def __init__(self, update: Update, device: torch.device) -> None:
        self.update, self.device = update, device
        self.eager: dict[Any, int] = {}
        self.recorded: dict[Any, RecordedUpdate] = {}
        self.memory = torch.cuda.graph_pool_handle()
        torch.cuda.set_stream(torch.cuda.Stream(device))  # the default stream cannot record

    def __call__(self, batch: Batch, pair_weight: Tensor) -> Tensor:
        shapes = {name: value.shape for name, value in batch.tensors().items()}
        key = (*shapes.items(), batch.padded, batch.focal)
        if key not in self.recorded:
            on_device = batch.to(self.device)
            if self.eager.get(key, 0) < EAGER_STEPS:
                self.eager[key] = self.eager.get(key, 0) + 1
                return self.update(on_device, pair_weight.to(self.device))
            self.recorded[key] = self._record(on_device, pair_weight.to(self.device))
        return self.recorded[key].replay(batch.tensors(), pair_weight)

    def _record(self, batch: Batch, pair_weight: Tensor) -> RecordedUpdate:
        inputs = {name: value.clone() for name, value in batch.tensors().items()}
        graph = torch.cuda.CUDAGraph()
        # Threads of the loader may call CUDA while this thread records.
        with torch.cuda.graph(
            graph,
            pool=self.memory,
            stream=torch.cuda.current_stream(self.device),
            capture_error_mode="thread_local",
        ):
            output = self.update(batch.with_tensors(inputs), pair_weight)
        return RecordedUpdate(graph, inputs, pair_weight, output)
