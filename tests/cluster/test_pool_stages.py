"""Pools in stages on a real cluster: who does what, how much is on its way, and what a death costs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle

from sfss_ray.config import override
from sfss_ray.masks import generate
from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks
from sfss_ray.masks.stages import StagedMaskActor, decode_shard, write_rows
from sfss_ray.prediction import workers
from sfss_ray.prediction.folder import predict
from sfss_ray.runtime import pool_plan
from sfss_ray.runtime.item_table import pack_item, unpack_item
from sfss_ray.runtime.pool import Pool, Stages
from sfss_ray.runtime.pool_plan import DECODERS_PER_ACTOR, make_plan
from sfss_ray.runtime.resources import Resources
from sfss_ray.streets.default import SOURCE_MODEL

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]
TWO_CPUS = Resources(2.0, 0)


@pytest.fixture
def staged(monkeypatch) -> Iterator[None]:
    """Stages on CPUs: the plan of a pool with GPUs, on a cluster that needs none."""
    monkeypatch.setattr(pool_plan, "works_in_stages", lambda gpus: True)
    # Workers cannot import this module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def note(folder: Path, kind: str) -> None:
    """Write down which process does what, and when."""
    (folder / f"{kind} {os.getpid()} {time.time()} {uuid.uuid4().hex[:8]}").touch()


def pids(folder: Path, kind: str) -> set[str]:
    return {path.name.split()[1] for path in folder.glob(f"{kind} *")}


def die_once(folder: Path, kind: str) -> None:
    """Kill this process as the kernel does, if no process of this kind has died yet."""
    mark = folder / f"died {kind}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def stored_rows(folder: Path) -> list[str]:
    return [i for f in shard_paths(folder) for i in pq.read_table(f)["image_id"].to_pylist()]


def test_masks_are_made_in_three_kinds_of_processes_any_of_which_may_die(
    streets, tiny_config, tmp_path: Path, monkeypatch, staged
):
    """One decoder, one actor and one writer are killed, and one image kills every decoder."""
    images, notes = tmp_path / "images", tmp_path / "notes"
    shutil.copytree(streets / "target" / "images", images)
    notes.mkdir()
    (images / "deadly.png").write_bytes(b"no image, but a fault in its decoder")
    (images / "cut.png").write_bytes(b"no image")

    def decode(batch: Any, spec: dict[str, Any]) -> Any:
        note(notes, "decode")
        if '"deadly"' in batch["shard"][0].as_py():
            die_in_decoder()
        elif "00002" in batch["shard"][0].as_py():
            die_once(notes, "decode")
        return decode_shard(batch, spec)

    def die_in_decoder() -> None:
        from sfss_ray.data import decoded_items

        read = decoded_items.read_with_content

        def deadly(path: Any) -> Any:
            if path.stem == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            return read(path)

        decoded_items.read_with_content = deadly

    class Network(StagedMaskActor):
        def __call__(self, batch: Any) -> Any:
            note(notes, "network")
            die_once(notes, "network")
            return super().__call__(batch)

    def write(batch: Any, spec: dict[str, Any]) -> Any:
        note(notes, "write")
        die_once(notes, "write")
        return write_rows(batch, spec)

    monkeypatch.setattr(generate, "decode_shard", decode)
    monkeypatch.setattr(generate, "StagedMaskActor", Network)
    monkeypatch.setattr(generate, "write_rows", write)
    small_sam = {"masks.regions": "small_sam", "masks.points_per_side": 4}
    config = override(tiny_config, {**small_sam, "compute.mask_actors": 1})
    summary = generate_masks(images, tmp_path / "masks", config=config, progress=str)
    assert set(summary.errors) == {"cut", "deadly"}
    assert "its process died 3 times" in summary.errors["deadly"]
    assert sorted(stored_rows(tmp_path / "masks")) == sorted(p.stem for p in images.iterdir())
    assert {path.name for path in notes.glob("died *")} == {
        "died decode",
        "died network",
        "died write",
    }
    assert not pids(notes, "network") & (pids(notes, "decode") | pids(notes, "write"))
    assert not list((tmp_path / "masks").glob(".begun*"))

    monkeypatch.undo()
    (images / "deadly.png").unlink()
    plain = generate_masks(images, tmp_path / "plain", config=config, progress=str)
    assert plain.masks == summary.masks > 0
    ours, theirs = MaskStore(tmp_path / "masks"), MaskStore(tmp_path / "plain")
    for image_id in set(theirs.ids()) - {"cut"}:
        assert ours.load(image_id) == theirs.load(image_id)


def test_predictions_in_stages_are_those_of_one_process(
    streets, tiny_config, tmp_path: Path, monkeypatch, staged
):
    images, notes = tmp_path / "images", tmp_path / "notes"
    shutil.copytree(streets / "target" / "images", images)
    notes.mkdir()
    (images / "cut.png").write_bytes(b"no image")

    class Network(workers.StagedPredictionActor):
        def __call__(self, batch: Any) -> Any:
            die_once(notes, "network")
            return super().__call__(batch)

    monkeypatch.setattr(workers, "StagedPredictionActor", Network)
    on_ray = override(tiny_config, {"compute.predict_on_ray_from": 2})
    result = predict(SOURCE_MODEL, images, tmp_path / "ray", config=on_ray, progress=str)
    alone = predict(SOURCE_MODEL, images, tmp_path / "one", config=tiny_config, progress=str)
    assert (result.images, result.errors) == (alone.images, alone.errors)
    files = {p.relative_to(tmp_path / "one"): p for p in (tmp_path / "one").rglob("*.png")}
    assert len(files) == 12 * 4
    for name, path in files.items():
        assert (tmp_path / "ray" / name).read_bytes() == path.read_bytes()
    assert (notes / "died network").exists()


class Slow:
    """An actor that takes its time; `spec` names the folder of its notes."""

    def __init__(self, spec: dict[str, Any]):
        self.notes = Path(spec["notes"])

    def __call__(self, batch: Any) -> Any:
        note(self.notes, "network")
        time.sleep(0.4)
        return pack_item(unpack_item(batch)[0])


def test_a_range_of_actors_grows_and_memory_on_the_way_stays_limited(
    tmp_path: Path, monkeypatch, staged
):
    item_bytes, num_items = 2**20, 40
    monkeypatch.setattr(pool_plan, "ITEM_BYTES", item_bytes)
    notes = tmp_path / "notes"
    notes.mkdir()

    def decode(batch: Any, spec: dict[str, Any]) -> Any:
        note(notes, "decode")
        return pack_item([batch["item"][0].as_py(), np.zeros(item_bytes, np.uint8)])

    class Network(Slow): ...

    def write(batch: Any, spec: dict[str, Any]) -> dict[str, list]:
        return {"item": [unpack_item(batch)]}

    plan = make_plan("1-2", TWO_CPUS, 0.0)
    pool = Pool("items", tmp_path, Slow, plan, stages=Stages(decode, Network, write))
    items = [{"item": str(number)} for number in range(num_items)]
    with pool.results(items, {"notes": str(notes)}) as results:
        done = sorted(int(row["item"]) for row in results)
    assert done == list(range(num_items))
    assert len(pids(notes, "network")) == 2, "a second actor was added"
    events = sorted((float(p.name.split()[2]), p.name.split()[0]) for p in notes.iterdir())
    waiting, most = 0, 0
    for _, kind in events:
        waiting += 1 if kind == "decode" else -1
        most = max(most, waiting)
    # What decoders are writing is not in the store yet.
    limit = plan.object_store_bytes // item_bytes + plan.decoders
    assert most <= limit < num_items
    assert plan.decoders == 2 * DECODERS_PER_ACTOR
