"""The loop: what is logged, evaluated and saved, and how a run resumes."""

import pytest
import torch

from sfss_ray.train.gradients import StepContext
from sfss_ray.train.loop import Schedule, run_loop
from sfss_ray.train.run_state import LocalRun, load_state, read_progress


class Counter:
    """A `Trainable` that counts its steps and remembers how it was called."""

    def __init__(self, num_steps: int):
        self.num_steps, self.steps_taken = num_steps, 0
        self.calls: list[str] = []
        self.contexts: list[StepContext] = []
        self.random_numbers: list[float] = []

    def initialize(self):
        self.calls.append("initialize")

    def load_state_dict(self, state):
        self.calls.append("load")
        self.steps_taken = state["steps_taken"]

    def distribute(self):
        self.calls.append("distribute")

    def batches(self, start):
        self.calls.append(f"batches after {start}")
        return [{"image": torch.full((1,), 255).byte()} for _ in range(start, self.num_steps)]

    def step(self, batch, context):
        assert batch["image"].tolist() == [1.0]
        self.steps_taken += 1
        self.contexts.append(context)
        self.random_numbers.append(float(torch.rand(())))
        return {"loss": torch.tensor(float(context.step))}

    def evaluate(self, step):
        assert step == self.steps_taken
        torch.rand(7)  # an evaluation may draw random numbers
        return {"score": 1.0}

    def state_dict(self):
        return {"steps_taken": self.steps_taken}


def schedule(num_steps: int, every: int) -> Schedule:
    return Schedule(num_steps, every, seed=0)


def test_steps_are_logged_reported_and_averaged(tmp_path):
    reported = []
    run_loop(Counter(25), LocalRun(tmp_path, on_report=reported.append), schedule(25, 15))
    records = read_progress(tmp_path)
    assert [r["step"] for r in records] == [10, 15, 20, 25]
    assert [r["loss"] for r in records] == [5.5, 13.0, 18.0, 23.0]
    assert {r["num_steps"] for r in records} == {25}
    assert [r["step"] for r in reported] == [15, 25]
    assert [r.get("score") for r in records] == [None, 1.0, None, 1.0]
    assert load_state(tmp_path) == {"step": 25, "steps_taken": 25}


def test_a_new_run_is_initialized_and_a_resumed_one_restored(tmp_path):
    first, second = Counter(4), Counter(6)
    run_loop(first, LocalRun(tmp_path), schedule(4, 2))
    assert first.calls == ["initialize", "distribute", "batches after 0"]
    run_loop(second, LocalRun(tmp_path), schedule(6, 2))
    assert second.calls == ["load", "distribute", "batches after 4"]
    assert second.steps_taken == 6
    assert [context.step for context in second.contexts] == [5, 6]


def test_a_finished_run_takes_no_step(tmp_path):
    run_loop(Counter(2), LocalRun(tmp_path), schedule(2, 1))
    again = Counter(2)
    run_loop(again, LocalRun(tmp_path), schedule(2, 1))
    assert again.contexts == []


def test_steps_know_the_newest_checkpoint(tmp_path):
    counter = Counter(5)
    run_loop(counter, LocalRun(tmp_path), schedule(5, 2))
    assert [context.last_checkpoint for context in counter.contexts] == [0, 0, 2, 2, 4]
    resumed = Counter(6)
    run_loop(resumed, LocalRun(tmp_path), schedule(6, 9))
    assert [context.last_checkpoint for context in resumed.contexts] == [5]


def test_random_numbers_depend_on_seed_and_step_alone(tmp_path):
    whole, first_part, second_part = Counter(4), Counter(2), Counter(4)
    run_loop(whole, LocalRun(tmp_path / "whole"), schedule(4, 9))
    for counter, num_steps in ((first_part, 2), (second_part, 4)):
        torch.manual_seed(99)
        run_loop(counter, LocalRun(tmp_path / "parts"), schedule(num_steps, 1))
    assert first_part.random_numbers + second_part.random_numbers == whole.random_numbers
    assert len(set(whole.random_numbers)) == 4
    other_seed = Counter(4)
    run_loop(other_seed, LocalRun(tmp_path / "seed"), Schedule(4, 9, seed=1))
    assert not set(whole.random_numbers) & set(other_seed.random_numbers)


def test_workers_draw_different_random_numbers(tmp_path):
    counters = [Counter(4), Counter(4)]
    for rank, counter in enumerate(counters):
        run = LocalRun(tmp_path / str(rank))
        run.world, run.rank = 2, rank
        run_loop(counter, run, schedule(4, 9))
    assert not set(counters[0].random_numbers) & set(counters[1].random_numbers)


def test_only_rank_zero_evaluates_and_logs(tmp_path):
    reported = []
    run = LocalRun(tmp_path, on_report=reported.append)
    run.rank, run.world = 1, 2
    run_loop(Counter(2), run, schedule(2, 1))
    assert read_progress(tmp_path) == []
    assert [sorted(metrics) for metrics in reported] == [["loss", "num_steps", "step"]] * 2


def test_an_interruption_in_a_report_keeps_its_checkpoint(tmp_path):
    def interrupt(metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_loop(Counter(4), LocalRun(tmp_path, on_report=interrupt), schedule(4, 3))
    assert load_state(tmp_path)["step"] == 3


def test_a_notice_of_preemption_saves_once_between_two_evaluations(tmp_path):
    """The node goes after step 24, and the run resumes from the step of the notice."""
    saved: list[int] = []

    class SpotRun(LocalRun):
        step = 0

        def log(self, record):
            self.step = record["step"]
            super().log(record)

        def is_preempted(self):
            return self.step >= 20

        def report(self, metrics, state):
            saved.append(metrics["step"])
            super().report(metrics, state)

    counter = Counter(100)
    run_loop(counter, SpotRun(tmp_path), schedule(100, 50))
    assert saved == [20, 50, 100]
    assert [c.last_checkpoint for c in counter.contexts][19:22] == [0, 20, 20]
    scored = [r["step"] for r in read_progress(tmp_path) if "score" in r]
    assert scored == [50, 100]
