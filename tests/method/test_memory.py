"""The memory of a run is restored bit for bit."""

import torch
from step_networks import StepNetworks
from train_samples import CLASSES, drawn_batch, small_config

from sfss_ray.method.memory import Memory


def empty() -> Memory:
    return Memory.empty(len(CLASSES), 16, small_config().train)


def test_an_empty_memory_knows_nothing():
    memory = empty()
    assert not memory.thresholds.histogram.any()
    assert len(set(memory.prior.share().tolist())) == 1
    assert [len(column) for column in memory.bank.contents()] == [0, 0, 0]


def test_a_saved_memory_is_restored(tmp_path):
    networks = StepNetworks(loss__prior_power=0.5, loss__projection="mlp")
    networks.step(drawn_batch([0, 1]))
    saved = networks.memory.state_dict()
    assert saved.keys() == {"thresholds", "prior", "bank"}  # keys of checkpoints
    torch.save(saved, tmp_path / "memory.pt")
    restored = empty()
    restored.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True) | {"step": 3})
    assert torch.equal(restored.thresholds.histogram, networks.memory.thresholds.histogram)
    assert torch.equal(restored.prior.total, networks.memory.prior.total)
    assert torch.equal(restored.bank.vectors, networks.memory.bank.vectors)
    assert torch.equal(restored.bank.written, networks.memory.bank.written)
    assert restored.bank.written.sum() > 0


def test_a_restored_memory_does_not_share_the_tensors_of_its_state():
    memory, state = empty(), empty().state_dict()
    memory.load_state_dict(state)
    memory.thresholds.histogram.add_(1)
    memory.bank.written.add_(1)
    assert not state["thresholds"].any()
    assert not state["bank"]["written"].any()
