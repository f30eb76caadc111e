"""Pools of actors: their size and threads, and one line of Ray's errors. Ray Data is replaced."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.data
import ray.exceptions

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.pool import Pool, Stages
from sfss_ray.runtime.pool_plan import make_plan
from sfss_ray.runtime.resources import Resources


class Doubler:
    """An actor that doubles the number in a row."""

    def __init__(self, spec: dict):
        self.spec = spec

    def __call__(self, row: dict) -> dict:
        return {"doubled": 2 * int(row["item"]), "threads": self.spec["threads"]}


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """Runs the actor of a pool in this process; records how Ray Data is called."""
    calls: list[dict] = []

    def from_items(items, override_num_blocks):
        bars = ray.data.DataContext.get_current().enable_progress_bars

        def map_batches(actor, fn_constructor_args, **options):
            calls.append(options | {"blocks": override_num_blocks, "bars": bars})
            executor = SimpleNamespace(shutdown=lambda force: calls.append({"shutdown": force}))

            def iter_rows():
                worker = actor(*fn_constructor_args)
                for item in items:
                    yield worker(item)

            return SimpleNamespace(iter_rows=iter_rows, _current_executor=executor)

        return SimpleNamespace(map_batches=map_batches)

    monkeypatch.setattr(ray.data, "from_items", from_items)
    return calls


def pool(folder: Path, actor: type = Doubler, size: int = 4, gpus: float = 0.0) -> Pool:
    return Pool("masks", folder, actor, make_plan(size, Resources(6.0, 2), gpus))


@pytest.fixture
def plans(monkeypatch) -> list[dict]:
    """The stages of data sets, without running them: function, and how Ray Data is called."""
    plans: list[dict] = []

    class Planned:
        def __init__(self):
            self.limits = ray.data.DataContext.get_current().execution_options.resource_limits

        def map_batches(self, function, **options):
            plans.append(options | {"function": function, "limits": self.limits})
            return self

    monkeypatch.setattr(ray.data, "from_items", lambda items, override_num_blocks: Planned())
    return plans


def decode(batch, spec): ...


def write(batch, spec): ...


def test_with_gpus_decoding_and_writing_are_tasks_on_cpus(plans, tmp_path: Path):
    context = ray.data.DataContext.get_current()
    before = context.execution_options
    compute = ComputeConfig(label_selector="market-type=spot", accelerator_type="A100")
    plan = make_plan("1-2", Resources(6.0, 2), 1.0)
    stages = Stages(decode, Doubler, write)
    chosen = Pool("masks", tmp_path, Doubler, plan, compute, stages)
    chosen._dataset([{"item": str(k)} for k in range(9)], {"folder": "x"})
    first, network, last = plans
    assert [stage["function"] for stage in plans] == [decode, Doubler, write]
    assert {stage["batch_size"] for stage in plans} == {1}
    for task in (first, last):
        assert "num_gpus" not in task
        assert task["num_cpus"] == 1.0
        assert task["fn_kwargs"]["spec"]["folder"] == "x"
        assert task["label_selector"] == {"market-type": "spot"}
        assert "accelerator_type" not in task
    assert first["compute"].size == plan.decoders
    assert (network["compute"].min_size, network["compute"].max_size) == (1, 2)
    assert (network["num_gpus"], network["accelerator_type"]) == (1.0, "A100")
    assert network["limits"].object_store_memory == plan.object_store_bytes
    assert context.execution_options is before, "other data sets of the process are as before"


def test_without_gpus_an_actor_does_all_of_the_work(plans, tmp_path: Path):
    stages = Stages(decode, Doubler, write)
    plan = make_plan("2-4", Resources(6.0, 2), 0.0)
    Pool("masks", tmp_path, Doubler, plan, stages=stages)._dataset([{"item": "1"}] * 3, {})
    (only,) = plans
    assert only["function"] is Doubler
    assert (only["compute"].min_size, only["compute"].max_size) == (2, 3), "no more than items"
    assert only["fn_constructor_args"][0]["pool"] == 3


def all_results(pool: Pool, items: list[dict]) -> list[dict]:
    with pool.results(items, {}) as results:
        return list(results)


def test_each_item_has_a_result(calls, tmp_path: Path):
    items = [{"item": str(number)} for number in range(3)]
    results = all_results(pool(tmp_path), items)
    assert results == [{"doubled": 2 * number, "threads": 2} for number in range(3)]
    call, end = calls
    assert end == {"shutdown": True}
    assert call["compute"].min_size == call["compute"].max_size == 3, "no more actors than items"
    assert (call["batch_size"], call["blocks"], call["num_gpus"]) == (1, 3, 0)


def test_ray_data_keeps_a_share_of_the_cpus(calls, tmp_path: Path):
    items = [{"item": str(number)} for number in range(12)]
    all_results(pool(tmp_path, size=6), items)
    (on_cpus,) = (call for call in calls if "num_cpus" in call)
    assert 6 * on_cpus["num_cpus"] == pytest.approx(0.9 * 6.0)


def test_the_pools_actors_are_placed_as_the_user_says(calls, tmp_path: Path):
    compute = ComputeConfig(label_selector="market-type=spot", accelerator_type="A100")
    placement = {"label_selector": {"market-type": "spot"}, "accelerator_type": "A100"}
    chosen = dataclasses.replace(pool(tmp_path, gpus=0.5), compute=compute)
    all_results(chosen, [{"item": "1"}])
    assert calls[0].items() >= (placement | {"num_gpus": 0.5}).items()


@pytest.mark.parametrize("shown", [False, True])
def test_rays_own_bars_are_shown_on_request(shown, calls, tmp_path: Path):
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    chosen = dataclasses.replace(pool(tmp_path), compute=ComputeConfig(ray_progress=shown))
    all_results(chosen, [{"item": "1"}])
    assert calls[0]["bars"] is (shown or before)
    assert context.enable_progress_bars is before, "other data sets of the process are as before"


def test_a_pool_that_is_interrupted_ends_before_its_cluster(calls, tmp_path: Path):
    """Its tasks would call a cluster whose connection is closed."""
    items = [{"item": str(number)} for number in range(3)]

    def work() -> None:
        with pool(tmp_path).results(items, {}) as results:
            assert next(results)["doubled"] == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert calls[-1] == {"shutdown": True}


RAY_TEXT = """\x1b[36mray::MapWorker() (pid=1)\x1b[0m
  File "masks/actor.py", line 3, in __init__
RuntimeError: 3 processes died while they loaded the network
The above exception was the direct cause of the following exception:
UserCodeException: UDF failed to process a data block."""
FULL_DISK = """ray.exceptions.RayTaskError(UserCodeException)
sfss_ray.errors.OutputError: 'a.png' cannot be written (No space left on device): free some space
UserCodeException: UDF failed"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            RAY_TEXT,
            "the pool of masks stopped (RuntimeError: 3 processes died while they loaded the network):"
            " fix the cause and run again: finished work is kept",
        ),
        (
            FULL_DISK,
            "the pool of masks stopped: 'a.png' cannot be written (No space left on device): free some"
            " space",
        ),
        (
            "",
            "the pool of masks stopped (RayError): fix the cause and run again: finished work is kept",
        ),
    ],
    ids=["an actor", "this package", "no text"],
)
def test_an_error_of_ray_is_one_line_with_its_first_cause(text, line, calls, tmp_path: Path):
    class Failing:
        def __init__(self, spec: dict):
            (tmp_path / ".start-0").touch()

        def __call__(self, row: dict):
            raise ray.exceptions.RayError(text)

    with pytest.raises(ClusterError) as refused:
        all_results(pool(tmp_path, Failing), [{"item": "1"}])
    assert str(refused.value) == line
    assert list(tmp_path.iterdir()) == [], "crashes do not count in the next run"
