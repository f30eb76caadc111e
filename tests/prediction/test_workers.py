"""Work of predictions: actors and this process write the same files; crashes and items of work."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sfss_ray.config import Config, override
from sfss_ray.data.folders import list_images
from sfss_ray.models.source import open_source
from sfss_ray.prediction import workers
from sfss_ray.prediction.outputs import PredictionFolder
from sfss_ray.prediction.workers import (
    MAX_IMAGES_PER_ITEM,
    PredictionActor,
    PredictionJob,
    predict_locally,
    predict_on_ray,
)
from sfss_ray.runtime import cluster
from sfss_ray.runtime.crash_guard import CRASH_REASON, MAX_CRASHES
from sfss_ray.runtime.item_table import unpack_item
from sfss_ray.runtime.pool import Pool
from sfss_ray.runtime.resources import Resources
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

CPU = override(Config(), {"compute.device": "cpu"})


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Five drawn streets, and a file that is no image."""
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, "camera", 3, 5, (64, 128), with_labels=False)
    (root / "images" / "broken.png").write_bytes(b"a letter")
    return root / "images"


def job_for(images: Path, output: Path, config: Config = CPU) -> PredictionJob:
    source = open_source(SOURCE_MODEL)
    output.mkdir()
    folder = PredictionFolder(output, source.classes)
    return PredictionJob(source, list_images(images), folder, config)


def pixels_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture
def local_pool(monkeypatch) -> list[list[dict[str, str]]]:
    """Pools that run one actor in this process; returns the items that they get."""
    calls: list[list[dict[str, str]]] = []

    def results(self: Pool, items: list[dict[str, str]], spec: dict[str, Any]):
        calls.append(items)
        actor = self.actor(spec | {"threads": 1, "pool": self.plan.actors.largest})
        for item in items:
            batch = actor({"item": [item["item"]]})
            yield {name: column[0] for name, column in batch.items()}

    @contextlib.contextmanager
    def running(self: Pool, items: list[dict[str, str]], spec: dict[str, Any]):
        yield results(self, items, spec)

    class Connection:
        def __enter__(self):
            return Resources(2.0, 0)

        def __exit__(self, *_): ...

    monkeypatch.setattr(Pool, "results", running)
    monkeypatch.setattr(cluster, "connected", lambda compute: Connection())
    monkeypatch.setattr(cluster, "resolve_device", lambda compute: "cpu")
    return calls


def test_actors_write_the_same_files_as_this_process(images, local_pool, tmp_path: Path):
    lines: dict[str, list[str]] = {"local": [], "ray": []}
    local = predict_locally(job_for(images, tmp_path / "local"), lines["local"].append)
    on_ray = predict_on_ray(job_for(images, tmp_path / "ray"), lines["ray"].append)
    assert local == on_ray
    assert set(local) == {"broken"}
    assert len(pixels_below(tmp_path / "local")) == 5 * 4
    assert pixels_below(tmp_path / "local") == pixels_below(tmp_path / "ray")
    for output in lines.values():
        assert output[-1].startswith("predicted 6/6 (")
        assert output[-1].endswith("), 1 unreadable")


def test_few_images_make_short_items(images, local_pool, tmp_path: Path):
    predict_on_ray(job_for(images, tmp_path / "out"), str)
    (items,) = local_pool
    assert [len(json.loads(item["item"])) for item in items] == [1] * 6


def test_items_hold_every_image_once_with_absolute_paths(images, monkeypatch):
    files = list_images(images)
    monkeypatch.chdir(images.parent)
    items = list(workers._items(files, 4))
    rows = [json.loads(item["item"]) for item in items]
    assert [len(row) for row in rows] == [4, 2]
    assert [tuple(entry) for row in rows for entry in row] == [
        (file.image_id, str(file.path)) for file in files
    ]
    assert MAX_IMAGES_PER_ITEM == 8


def spec_of(job) -> dict[str, Any]:
    """What the processes of a pool are told."""
    spec = {"source": job.source, "folder": str(job.folder.root), "config": CPU, "white": None}
    return spec | {"device": "cpu", "threads": 1, "pool": 1}


class Killed(BaseException):
    """In place of a signal."""


def test_an_image_that_crashes_its_process_is_skipped(images, tmp_path: Path, monkeypatch):
    """Each process begins the item anew; finished images are written again."""
    job = job_for(images, tmp_path / "out")
    spec = spec_of(job)
    predict_file = workers.predict_file

    def crash(network, file, folder, config):
        if file.image_id == "00002":
            raise Killed
        predict_file(network, file, folder, config)

    monkeypatch.setattr(workers, "predict_file", crash)
    (item,) = workers._items(job.files, 10)
    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed):
            PredictionActor(spec)({"item": [item["item"]]})
    results = PredictionActor(spec)({"item": [item["item"]]})
    assert results["images"] == [6]
    errors = json.loads(results["errors"][0])
    assert set(errors) == {"00002", "broken"}
    assert errors["00002"] == CRASH_REASON
    assert len(list((tmp_path / "out" / "train_ids").iterdir())) == 4
    assert not list((tmp_path / "out").glob(".*")), "counts of a finished item are removed"


def test_stages_write_the_same_files_as_this_process(images, tmp_path: Path, monkeypatch):
    job = job_for(images, tmp_path / "staged")
    spec = spec_of(job)
    # The last images of an item may have no room in it.
    monkeypatch.setattr(workers, "ITEM_BYTES", 2 * 64 * 128 * 3)
    (item,) = workers._items(job.files, 10)
    decoded = workers.decode_item(pa.table({"item": [item["item"]]}), spec)
    pending = [image.is_pending for image in unpack_item(decoded)]
    assert pending == [False, False, True, True, True, True]
    result = workers.write_item(workers.StagedPredictionActor(spec)(decoded), spec)
    local = predict_locally(job_for(images, tmp_path / "local"), str)
    assert (result["images"], json.loads(result["errors"][0])) == ([6], local)
    assert pixels_below(tmp_path / "staged") == pixels_below(tmp_path / "local")
    assert not list((tmp_path / "staged").glob(".*"))


def test_an_image_that_kills_the_network_is_skipped(images, tmp_path: Path, monkeypatch):
    job = job_for(images, tmp_path / "out")
    spec = spec_of(job)
    predict_pixels = workers.predict_pixels

    def crash(network, file, pixels, config):
        if file.image_id == "00002":
            raise Killed
        return predict_pixels(network, file, pixels, config)

    monkeypatch.setattr(workers, "predict_pixels", crash)
    (item,) = workers._items(job.files, 10)
    decoded = workers.decode_item(pa.table({"item": [item["item"]]}), spec)
    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed):
            workers.StagedPredictionActor(spec)(decoded)
    result = workers.write_item(workers.StagedPredictionActor(spec)(decoded), spec)
    errors = json.loads(result["errors"][0])
    assert errors["00002"] == CRASH_REASON
    assert set(errors) == {"00002", "broken"}
