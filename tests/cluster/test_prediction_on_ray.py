"""Prediction over Ray Data's actors: the same files as in one process, and nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from sfss_ray.config import override
from sfss_ray.errors import ClusterError
from sfss_ray.prediction import workers
from sfss_ray.prediction.folder import predict
from sfss_ray.prediction.outputs import PredictionFolder
from sfss_ray.prediction.workers import PredictionActor
from sfss_ray.streets.default import SOURCE_MODEL

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]

FORMATS = ("coco", "cvat")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def test_actors_write_what_one_process_writes(streets, tiny_config, tmp_path: Path):
    images = streets / "target" / "images"
    on_ray = override(tiny_config, {"compute.predict_on_ray_from": 2})
    (images / "cut.png").write_bytes(b"no image")
    try:
        lines: list[str] = []
        there = predict(
            *(SOURCE_MODEL, images, tmp_path / "ray"),
            formats=FORMATS,
            config=on_ray,
            progress=lines.append,
        )
        here = predict(
            *(SOURCE_MODEL, images, tmp_path / "one"),
            formats=FORMATS,
            config=tiny_config,
            progress=str,
        )
    finally:
        (images / "cut.png").unlink()
    assert there.images == here.images == 12
    assert there.errors == here.errors
    assert set(there.errors) == {"cut"}
    assert any("13/13" in line and "1 unreadable" in line for line in lines)
    ours = files_below(tmp_path / "ray")
    assert ours == files_below(tmp_path / "one")
    assert len(ours) == 12 * 4
    for path in there.annotations:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    assert len(there.annotations) == len(FORMATS)
    for name in [n for n in ours if n.startswith("train_ids")][:5]:
        (tmp_path / "ray" / name).unlink()
    assert predict(SOURCE_MODEL, images, tmp_path / "ray", config=on_ray, progress=str).made == 5
    assert files_below(tmp_path / "ray") == ours


def test_an_image_that_kills_its_process_costs_that_image(
    streets, tiny_config, tmp_path: Path, monkeypatch
):
    """As the kernel does when memory runs out; Ray would start the image again without end."""

    class DeadlyFolder(PredictionFolder):
        def write(self, image_id, image, train_ids, content):
            if image_id == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            super().write(image_id, image, train_ids, content)

    class Deadly(PredictionActor):
        def __init__(self, spec):
            super().__init__(spec)
            self.folder = DeadlyFolder(self.folder.root, self.folder.classes)

    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(streets / "target" / "images", folder)
    shutil.copy(sorted(folder.iterdir())[0], folder / "deadly.png")
    monkeypatch.setattr(workers, "PredictionActor", Deadly)
    on_ray = override(tiny_config, {"compute.predict_on_ray_from": 2})
    found = predict(SOURCE_MODEL, folder, out, config=on_ray, progress=str)
    assert (found.images, list(found.errors)) == (12, ["deadly"])
    assert "its process died 3 times" in found.errors["deadly"]
    assert not list(out.glob(".begun*"))
    monkeypatch.undo()
    assert predict(SOURCE_MODEL, folder, out, config=tiny_config, progress=str).made == 1


def test_a_pool_that_stops_is_one_line(streets, tiny_config, tmp_path: Path, monkeypatch):
    class Broken(PredictionActor):
        def __call__(self, batch):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers, "PredictionActor", Broken)
    on_ray = override(tiny_config, {"compute.predict_on_ray_from": 2})
    images = streets / "target" / "images"
    with pytest.raises(
        ClusterError, match=r"predictions stopped \(.*No space left on device.*run again"
    ) as told:
        predict(SOURCE_MODEL, images, tmp_path / "out", config=on_ray, progress=str)
    assert "\n" not in str(told.value)
