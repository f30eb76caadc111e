"""The three stages of masks without a cluster: the same rows as one actor, and no work lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mask_runs import put_noise

from sfss_ray.config import MaskConfig
from sfss_ray.masks import stages as module
from sfss_ray.masks.actor import CRASHED, MaskActor, actor_spec
from sfss_ray.masks.bank.claims import claim_folder
from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import make_recipe
from sfss_ray.masks.stages import StagedMaskActor, decode_shard, write_rows
from sfss_ray.runtime.crash_guard import MAX_CRASHES
from sfss_ray.runtime.item_table import unpack_item

SMALL = {"regions": "small_sam", "points_per_side": 3, "pred_iou_thresh": 0.0}


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, str]]:
    """Three images of noise, one of which is damaged."""
    folder = put_noise(tmp_path / "images", "a.png", "b.png", "c.png", size=(40, 60))
    (folder / "b.png").write_bytes(b"a letter")
    return [(path.stem, str(path)) for path in sorted(folder.iterdir())]


def spec_for(folder: Path, **knobs: Any) -> dict[str, Any]:
    config = MaskConfig(**(SMALL | {"stability_score_thresh": 0.0} | knobs))
    recipe, checkpoint = make_recipe(config, None)
    folder.mkdir(exist_ok=True)
    return actor_spec(recipe, checkpoint, folder, config) | {"threads": 1, "pool": 1}


def batch_of(images: list[tuple[str, str]]) -> pa.Table:
    return pa.table({"shard": [json.dumps(images)]})


def through_stages(images: list[tuple[str, str]], spec: dict[str, Any]) -> dict[str, list[int]]:
    actor = StagedMaskActor(spec)
    return write_rows(actor(decode_shard(batch_of(images), spec)), spec)


@pytest.mark.parametrize("embeddings", [False, True])
def test_stages_write_the_shard_of_one_actor(embeddings, images, tmp_path: Path):
    spec = spec_for(tmp_path / "staged", embeddings=embeddings)
    counts = through_stages(images, spec)
    plain = MaskActor(spec_for(tmp_path / "plain", embeddings=embeddings))
    assert plain({"shard": [json.dumps(images)]}) == counts
    ours, theirs = (MaskStore(tmp_path / name) for name in ("staged", "plain"))
    assert ours.errors == theirs.errors
    assert set(ours.errors) == {"b"}
    for image_id in ("a", "c"):
        assert len(ours.load(image_id)["masks"]) > 0
        assert ours.load(image_id) == theirs.load(image_id)
    assert [p.name for p in shard_paths(tmp_path / "staged")] == [
        p.name for p in shard_paths(tmp_path / "plain")
    ]
    assert not list((tmp_path / "staged").glob(".*"))


def test_run_lengths_become_strings_when_they_are_written(images, tmp_path: Path):
    spec = spec_for(tmp_path / "masks")
    rows = unpack_item(StagedMaskActor(spec)(decode_shard(batch_of(images), spec)))
    counts = [mask["counts"] for row in rows for mask in row["masks"]]
    assert counts
    assert {array.dtype for array in counts} == {np.dtype(np.int32)}


def test_images_without_room_are_decoded_beside_the_network(images, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "ITEM_BYTES", 1)
    spec = spec_for(tmp_path / "masks")
    item = decode_shard(batch_of(images), spec)
    assert [image.is_pending for image in unpack_item(item)] == [False, True, True]
    write_rows(StagedMaskActor(spec)(item), spec)
    store = MaskStore(tmp_path / "masks")
    assert set(store.errors) == {"b"}
    assert store.load("c")["height"] == 40


class Killed(BaseException):
    """In place of a signal."""


def test_an_image_that_kills_the_network_is_given_up(images, tmp_path: Path):
    spec = spec_for(tmp_path / "masks")
    item = decode_shard(batch_of(images), spec)
    for attempt in range(MAX_CRASHES + 1):
        actor = StagedMaskActor(spec)
        find, calls = actor.find_regions, []

        def kill(image: np.ndarray, find=find, calls=calls) -> list[dict[str, Any]]:
            calls.append(image)
            if len(calls) == 1 and attempt < MAX_CRASHES:  # noqa: B023
                raise Killed
            return find(image)

        actor.find_regions = kill
        if attempt < MAX_CRASHES:
            with pytest.raises(Killed):
                actor(item)
        else:
            write_rows(actor(item), spec)
    store = MaskStore(tmp_path / "masks")
    assert store.errors["a"] == CRASHED
    assert set(store.errors) == {"a", "b"}
    assert store.ids() == ["a", "b", "c"]


def test_a_shard_that_kills_its_writers_stops_the_pool(images, tmp_path: Path, monkeypatch):
    spec = spec_for(tmp_path / "masks")
    item = StagedMaskActor(spec)(decode_shard(batch_of(images), spec))

    def kill(*arguments: Any) -> None:
        raise Killed

    monkeypatch.setattr(module, "commit_shard", kill)
    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed):
            write_rows(item, spec)
    with pytest.raises(RuntimeError, match="3 processes died while they wrote the results of 'a'"):
        write_rows(item, spec)


def test_a_writer_of_a_killed_run_writes_nothing_to_the_folder_of_another(images, tmp_path: Path):
    spec = spec_for(tmp_path / "masks")
    with claim_folder(tmp_path / "masks") as former:
        orphan = spec | {"claim": former}
    item = StagedMaskActor(orphan)(decode_shard(batch_of(images), orphan))
    with claim_folder(tmp_path / "masks") as present:
        write_rows(item, orphan)
        assert shard_paths(tmp_path / "masks") == []
        write_rows(item, spec | {"claim": present})
        assert len(shard_paths(tmp_path / "masks")) == 1
    shutil.rmtree(tmp_path / "masks")
