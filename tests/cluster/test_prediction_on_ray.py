"""Prediction over Ray Data's actors: the same files as in one process, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfss_ray.config import override
from sfss_ray.errors import ClusterError
from sfss_ray.prediction import folder as prediction
from sfss_ray.prediction.folder import PredictionActor, predict
from sfss_ray.streets.default import SOURCE_MODEL

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def test_actors_write_what_one_process_writes(streets, tiny_config, tmp_path: Path):
    images = streets / "target" / "images"
    on_ray = override(tiny_config, {"compute.predict_on_ray_from": 2})
    (images / "cut.png").write_bytes(b"no image")
    try:
        lines: list[str] = []
        there = predict(
            SOURCE_MODEL, images, tmp_path / "ray", config=on_ray, progress=lines.append
        )
        here = predict(SOURCE_MODEL, images, tmp_path / "one", config=tiny_config, progress=str)
    finally:
        (images / "cut.png").unlink()
    assert there.images == here.images == 12
    assert there.errors == here.errors
    assert set(there.errors) == {"cut"}
    assert any("13/13" in line and "1 unreadable" in line for line in lines)
    ours = files_below(tmp_path / "ray")
    assert ours == files_below(tmp_path / "one")
    assert len(ours) == 12 * 4
    for name in [n for n in ours if n.startswith("train_ids")][:5]:
        (tmp_path / "ray" / name).unlink()
    assert predict(SOURCE_MODEL, images, tmp_path / "ray", config=on_ray, progress=str).made == 5
    assert files_below(tmp_path / "ray") == ours


def test_a_pool_that_stops_is_one_line(streets, tiny_config, tmp_path: Path, monkeypatch):
    class Broken(PredictionActor):
        def __call__(self, batch):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(prediction, "PredictionActor", Broken)
    on_ray = override(tiny_config, {"compute.predict_on_ray_from": 2})
    images = streets / "target" / "images"
    with pytest.raises(
        ClusterError, match=r"predictions stopped \(.*No space left on device.*run again"
    ) as told:
        predict(SOURCE_MODEL, images, tmp_path / "out", config=on_ray, progress=str)
    assert "\n" not in str(told.value)
