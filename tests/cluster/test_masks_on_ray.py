"""Stage 1 on a real cluster: real Parquet, damaged files, repeated calls."""

import os
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sfss_ray.config import override
from sfss_ray.errors import ClusterError, DataError, ResumeError
from sfss_ray.masks import generate
from sfss_ray.masks.actor import MaskActor
from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


@pytest.fixture
def mixed_folder(streets, tmp_path):
    """Good images in folders, and one empty, one truncated, one that is text."""
    folder = tmp_path / "images"
    shutil.copytree(streets / "target" / "images", folder / "city one")
    good = sorted((folder / "city one").iterdir())
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(good[0].read_bytes()[:900])
    (folder / "text.jpg").write_text("no image")
    return folder


def test_every_image_has_one_row_and_bad_ones_a_reason(mixed_folder, tiny_config, tmp_path):
    lines = []
    summary = generate_masks(
        mixed_folder, tmp_path / "masks", config=tiny_config, progress=lines.append
    )
    assert summary.images == 15
    assert summary.made == 15
    assert set(summary.errors) == {"empty", "cut", "text"}
    assert "0 bytes" in summary.errors["empty"]
    rows = [
        i for f in shard_paths(tmp_path / "masks") for i in pq.read_table(f)["image_id"].to_pylist()
    ]
    assert sorted(rows) == sorted(set(rows))
    assert len(rows) == 15
    assert any("15/15" in line and "3 unreadable" in line for line in lines)


def test_a_second_run_makes_nothing_and_leaves_files_alone(streets, tiny_config, tmp_path):
    target, out = streets / "target" / "images", tmp_path / "masks"
    generate_masks(target, out, config=tiny_config, progress=str)
    before = {f.name: f.stat().st_mtime_ns for f in shard_paths(out)}
    assert generate_masks(target, out, config=tiny_config, progress=str).made == 0
    assert {f.name: f.stat().st_mtime_ns for f in shard_paths(out)} == before


def test_a_lost_and_a_half_written_shard_are_made_again(streets, tiny_config, tmp_path):
    target, out = streets / "target" / "images", tmp_path / "masks"
    generate_masks(target, out, config=tiny_config, progress=str)
    whole = {i: MaskStore(out).load(i) for i in MaskStore(out).ids()}
    first, second, *_ = shard_paths(out)
    redone = sum(len(pq.read_table(f)) for f in (first, second))
    first.unlink()
    second.write_bytes(second.read_bytes()[:200])
    assert generate_masks(target, out, config=tiny_config, progress=str).made == redone
    again = MaskStore(out)
    assert {i: again.load(i)["masks"] for i in again.ids()} == {
        i: row["masks"] for i, row in whole.items()
    } or _equal_but_for_nan(again, whole)


def _equal_but_for_nan(store, rows):
    return all(
        [m["counts"] for m in store.load(i)["masks"]] == [m["counts"] for m in row["masks"]]
        for i, row in rows.items()
    )


def test_masks_made_otherwise_are_refused_by_name(streets, tiny_config, tmp_path):
    target, out = streets / "target" / "images", tmp_path / "masks"
    generate_masks(target, out, config=tiny_config, progress=str)
    other = override(tiny_config, {"masks.felzenszwalb_scale": 80.0})
    with pytest.raises(ResumeError, match=r"felzenszwalb_scale: 50.0 -> 80.0"):
        generate_masks(target, out, config=other, progress=str)


def test_nothing_readable_is_an_error(tiny_config, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images has masks"):
        generate_masks(folder, tmp_path / "masks", config=tiny_config, progress=str)


def test_the_shipped_small_sam_finds_masks_on_the_pool(streets, tiny_config, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for file in sorted((streets / "target" / "images").iterdir())[:2]:
        shutil.copy(file, folder)
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    config = override(
        tiny_config,
        {
            "masks.regions": "small_sam",
            "masks.points_per_side": 8,
            "masks.pred_iou_thresh": 0.2,
            "masks.stability_score_thresh": 0.8,
            "masks.stability_score_offset": 0.1,
        },
    )
    summary = generate_masks(folder, tmp_path / "masks", config=config, progress=str)
    assert summary.source == "small_sam"
    assert summary.images == 3
    assert not summary.errors
    assert summary.masks > 3


def test_strict_refuses_what_cannot_be_read_after_the_rest_is_done(
    mixed_folder, tiny_config, tmp_path
):
    with pytest.raises(DataError, match=r"3 of 15 images have no masks \(first: 'cut': cannot be"):
        generate_masks(
            mixed_folder, tmp_path / "masks", strict=True, config=tiny_config, progress=str
        )
    assert len(MaskStore(tmp_path / "masks")) == 15


def test_an_image_that_was_mended_is_made_the_rest_is_kept(mixed_folder, tiny_config, tmp_path):
    out = tmp_path / "masks"
    first = generate_masks(mixed_folder, out, config=tiny_config, progress=str)
    assert first.exit_code == 13
    good = sorted((mixed_folder / "city one").iterdir())
    shutil.copy(good[0], mixed_folder / "cut.png")
    again = generate_masks(mixed_folder, out, config=tiny_config, progress=str)
    assert again.made == 1
    assert set(again.errors) == {"empty", "text"}
    assert again.exit_code == 12
    store = MaskStore(out)
    assert np.array_equal(store.id_map("cut"), store.id_map(f"city one/{good[0].stem}"))
    rows = [i for f in shard_paths(out) for i in pq.read_table(f)["image_id"].to_pylist()]
    assert len(rows) == len(set(rows)) == 15


def test_the_limit_of_pixels_can_be_raised(streets, tiny_config, tmp_path):
    """Refused images are made by the next run that allows them."""
    folder, out = tmp_path / "images", tmp_path / "masks"
    folder.mkdir()
    small = sorted((streets / "target" / "images").iterdir())[0]
    shutil.copy(small, folder)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(folder / "large.png")
    low = override(tiny_config, {"masks.max_pixels": 640 * 480 - 1})
    refused = generate_masks(folder, out, config=low, progress=str)
    assert set(refused.errors) == {"large"}
    assert "640x480 pixels: more than 307,199 are refused" in refused.errors["large"]
    assert "masks.max_pixels" in refused.errors["large"]
    high = override(tiny_config, {"masks.max_pixels": 640 * 480})
    raised = generate_masks(folder, out, config=high, progress=str)
    assert raised.made == 1
    assert not raised.errors
    assert MaskStore(out).id_map("large").shape == (480, 640)


def test_a_source_that_finds_nothing_says_what_to_change(streets, tiny_config, tmp_path):
    config = override(tiny_config, {"masks.regions": "small_sam", "masks.pred_iou_thresh": 1.0})
    config = override(config, {"masks.points_per_side": 2})
    lines = []
    summary = generate_masks(
        streets / "target" / "images", tmp_path / "m", config=config, progress=lines.append
    )
    assert summary.masks == 0
    assert "lower masks.pred_iou_thresh" in lines[-1]


def test_an_image_that_kills_its_process_costs_that_image(
    streets, tiny_config, tmp_path, monkeypatch
):
    """As the kernel does when memory runs out: no error is raised anywhere."""

    class Deadly(MaskActor):
        def _make_row(self, image_id: str, path: str):
            if image_id == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._make_row(image_id, path)

    folder = tmp_path / "images"
    shutil.copytree(streets / "target" / "images", folder)
    shutil.copy(sorted(folder.iterdir())[0], folder / "deadly.png")
    monkeypatch.setattr(generate, "MaskActor", Deadly)
    summary = generate_masks(folder, tmp_path / "masks", config=tiny_config, progress=str)
    assert (summary.made, list(summary.errors)) == (13, ["deadly"])
    assert "its process died 3 times" in summary.errors["deadly"]
    assert generate_masks(folder, tmp_path / "masks", config=tiny_config, progress=str).made == 0


def test_a_network_that_kills_its_process_stops_the_pool(
    streets, tiny_config, tmp_path, monkeypatch
):
    """Ray would start it again without end."""

    class TooLarge(MaskActor):
        def _load_source(self):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(generate, "MaskActor", TooLarge)
    images, out = streets / "target" / "images", tmp_path / "masks"
    with pytest.raises(ClusterError, match=r"stopped \(.*3 processes died .*run again"):
        generate_masks(images, out, config=tiny_config, progress=str)
    assert not list(out.glob(".start*"))


def test_a_pool_that_stops_is_one_line(streets, tiny_config, tmp_path, monkeypatch):
    class Broken(MaskActor):
        def __call__(self, batch):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate, "MaskActor", Broken)
    with pytest.raises(
        ClusterError, match=r"stopped \(.*No space left on device.*run again"
    ) as told:
        generate_masks(
            streets / "target" / "images", tmp_path / "masks", config=tiny_config, progress=str
        )
    assert "\n" not in str(told.value)
