"""The average of student and source model: weights, what is delivered, and what is scored."""

from __future__ import annotations

import pytest
import torch
from train_samples import (
    adaptation_task,
    colour_segmenter,
    sharp_source,
    small_config,
    write_dataset,
)

from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.run_state import LocalRun, load_state
from sfss_ray.train.weight_average import average_weights, averaged_with


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return all floating-point tensors as one vector, in the order of their names."""
    return torch.cat([state[n].flatten() for n in sorted(state) if state[n].is_floating_point()])


def test_weights_and_statistics_are_averaged_and_counts_are_kept():
    student = {"w": torch.tensor([4.0, 8.0]), "n": torch.tensor(7)}
    source = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    average = average_weights(student, source, 0.25)
    assert average["w"].tolist() == [3.0, 7.0]
    assert average["n"].item() == 7
    assert student["w"].tolist() == [4.0, 8.0]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 4.0), (1.0, 0.0)])
def test_the_ends_are_the_networks_themselves(share, expected):
    average = average_weights({"w": torch.tensor(4.0)}, {"w": torch.tensor(0.0)}, share)
    assert average["w"].item() == expected


def test_a_source_of_another_precision_is_averaged_in_the_precision_of_the_student():
    source = {"w": torch.tensor([1.0], dtype=torch.float64)}
    average = average_weights({"w": torch.tensor([3.0])}, source, 0.5)
    assert average["w"].dtype == torch.float32
    assert average["w"].item() == 2.0


def test_a_network_has_the_average_in_the_block_alone():
    student, source = colour_segmenter(), colour_segmenter()
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.1)
    before = flat(student.state_dict())
    with averaged_with(source.state_dict(), student, 0.25):
        expected = 0.75 * before + 0.25 * flat(source.state_dict())
        torch.testing.assert_close(flat(student.state_dict()), expected)
    assert torch.equal(flat(student.state_dict()), before)

    def stop() -> None:
        with averaged_with(source.state_dict(), student, 0.25):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop()
    assert torch.equal(flat(student.state_dict()), before)


def test_what_is_scored_in_training_has_the_share_and_what_trains_has_not(tmp_path):
    write_dataset(tmp_path / "data", count=4)
    source = sharp_source(tmp_path / "source.pt")
    states, scored = [], []
    for share in (0.0, None):
        config = small_config(source_share=share, num_steps=2, evaluate_every=2)
        task = adaptation_task(tmp_path / "data", source, config)
        run = LocalRun(tmp_path / f"share{share}")

        def watch(student, teacher):
            scored.append({name: t.clone() for name, t in student.state_dict().items()})
            return {}

        adapt_student(task, run, watch)
        states.append(load_state(run.folder)["student"])
    assert torch.equal(flat(states[0]), flat(states[1]))
    alone, delivered = scored
    start = torch.load(source, weights_only=True)["state_dict"]
    expected = average_weights(alone, start, 8 / (8 + 4))  # the data set has four images
    torch.testing.assert_close(flat(delivered), flat(expected))
    assert not torch.equal(flat(alone), flat(delivered))
