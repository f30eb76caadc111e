"""One process of the pool without a cluster: a failing image does not affect the other images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfss_ray.config import MaskConfig
from sfss_ray.data.depth import with_white
from sfss_ray.data.folders import list_images
from sfss_ray.masks import actor as actor_module
from sfss_ray.masks.actor import MaskActor, actor_spec, reason_of
from sfss_ray.masks.bank.claims import claim_folder
from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import make_recipe
from sfss_ray.runtime import crash_guard
from sfss_ray.runtime.crash_guard import MAX_CRASHES, killed_its_process


def make_actor(folder: Path, **knobs: Any) -> MaskActor:
    config = MaskConfig(**knobs)
    recipe, checkpoint = make_recipe(config, None)
    return MaskActor(actor_spec(recipe, checkpoint, folder, config) | {"threads": 1, "pool": 2})


def put_pictures(folder: Path, **sizes: tuple[int, int]) -> list[tuple[str, str]]:
    """Write images of noise of (height, width) by id; return id and path of each."""
    rng, images = np.random.default_rng(0), []
    for image_id, size in sizes.items():
        path = folder / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        images.append((image_id, str(path)))
    return images


def work(actor: MaskActor, images: list[tuple[str, str]]) -> MaskStore:
    actor({"shard": [json.dumps(images)]})
    return MaskStore(actor.spec["folder"])


def test_images_too_narrow_for_the_network_fail_alone(tmp_path: Path):
    actor = make_actor(tmp_path, regions="small_sam", points_per_side=2)
    images = put_pictures(tmp_path, good=(40, 60), flat=(1, 513), high=(600, 1))
    store = work(actor, images)
    assert set(store.errors) == {"flat", "high"}
    assert "image is 513x1 pixels, too narrow" in store.errors["flat"]
    assert store.load("good")["height"] == 40


class Killed(BaseException):
    """Raised in place of a signal."""


def test_an_image_that_kills_its_process_is_skipped(tmp_path: Path):
    """Each process starts the shard again and repeats the work of the dead one."""
    images = put_pictures(tmp_path, a=(8, 8), deadly=(9, 8), z=(10, 8))
    deaths = 0
    for _ in range(MAX_CRASHES + 1):
        actor = make_actor(tmp_path)
        find = actor.find_regions

        def kill(image: np.ndarray, find=find) -> list[dict[str, Any]]:
            if image.shape[0] == 9:
                raise Killed
            return find(image)

        actor.find_regions = kill
        try:
            work(actor, images)
        except Killed:
            deaths += 1
    assert deaths == MAX_CRASHES
    store = MaskStore(tmp_path)
    assert list(store.errors) == ["deadly"]
    assert killed_its_process(store.errors["deadly"])
    assert store.ids() == ["a", "deadly", "z"]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_network_that_kills_its_process_stops_the_pool(tmp_path: Path, monkeypatch):
    def kill(*arguments: Any) -> None:
        raise Killed

    monkeypatch.setattr(crash_guard, "_remove", lambda file: None)  # as if the process was gone
    with monkeypatch.context() as deadly:
        deadly.setattr(actor_module, "build_region_source", kill)
        for _ in range(MAX_CRASHES + 1):  # two at a time
            with pytest.raises(Killed):
                make_actor(tmp_path)
    with pytest.raises(RuntimeError, match=r"3 processes died .*compute.mask_actors"):
        make_actor(tmp_path)
    monkeypatch.undo()
    crash_guard.forget_crashes(tmp_path)
    make_actor(tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_tiny_images_have_fewer_crops(tmp_path: Path):
    actor = make_actor(tmp_path, regions="small_sam", points_per_side=2, crop_n_layers=1)
    images = put_pictures(tmp_path, dot=(1, 1), wide=(2, 300))
    assert work(actor, images).errors == {}


@pytest.mark.parametrize("error", [ValueError("of\na source"), MemoryError(), RuntimeError("CUDA")])
def test_any_error_of_a_source_fails_only_its_image(error, tmp_path: Path):
    actor = make_actor(tmp_path)
    find = actor.find_regions

    def sometimes(image: np.ndarray) -> list[dict[str, Any]]:
        if image.shape[0] == 9:
            raise error
        return find(image)

    actor.find_regions = sometimes
    store = work(actor, put_pictures(tmp_path, a=(8, 8), b=(9, 8), c=(10, 8)))
    assert store.errors == {"b": reason_of(error)}
    assert "\n" not in store.errors["b"]
    assert store.errors["b"].startswith(type(error).__name__)


@pytest.mark.parametrize(("failures", "errors"), [(1, 0), (2, 1)])
def test_full_gpu_memory_is_freed_and_the_image_tried_again(failures, errors, tmp_path: Path):
    actor = make_actor(tmp_path, regions="small_sam", points_per_side=2)
    find, remaining = actor.find_regions, [failures]

    def full(image: np.ndarray) -> list[dict[str, Any]]:
        if remaining[0]:
            remaining[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return find(image)

    actor.find_regions = full
    store = work(actor, put_pictures(tmp_path, a=(8, 8)))
    assert len(store.errors) == errors
    if errors:
        assert "OutOfMemoryError: CUDA out of memory" in store.errors["a"]


def test_a_source_without_a_network_starts_without_torch(tmp_path: Path):
    """Runs in a separate process, as an actor does."""
    images = put_pictures(tmp_path, a=(40, 40))
    actor = make_actor(tmp_path)
    code = (
        "import json, sys; from sfss_ray.masks.actor import MaskActor;"
        f" MaskActor(json.loads(sys.argv[1]))({{'shard': [{json.dumps(images)!r}]}});"
        " print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps(actor.spec)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"
    assert len(MaskStore(tmp_path)) == 1


def test_every_pixel_format_gets_masks_and_dead_links_get_a_reason(tmp_path: Path):
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    colour.convert("L").save(tmp_path / "grey.png")
    colour.convert("P").save(tmp_path / "palette.png")
    colour.convert("RGBA").save(tmp_path / "alpha.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    colour.save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(rng.integers(0, 2**16, (30, 40), dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    for city in ("aachen", "bonn"):
        (tmp_path / city).mkdir()
        colour.save(tmp_path / city / "frame 1 é.png")
    images, _ = with_white(list_images(tmp_path), None)
    (tmp_path / "masks").mkdir()
    recipe, _ = make_recipe(MaskConfig(), None)
    spec = actor_spec(recipe.for_images(images), None, tmp_path / "masks", MaskConfig())
    actor = MaskActor(spec | {"threads": 1, "pool": 2})
    store = work(actor, [(i.image_id, str(i.path)) for i in images])
    assert set(store.errors) == {"gone", "itself"}
    readable = {"grey", "palette", "alpha", "cmyk", "turned", "deep"}
    assert set(store.ids()) - set(store.errors) == readable | {
        "aachen/frame 1 é",
        "bonn/frame 1 é",
    }
    for image_id in set(store.ids()) - set(store.errors):
        size = (40, 30) if image_id == "turned" else (30, 40)
        assert store.id_map(image_id).shape == size
        assert store.id_map(image_id).max() > 0


def test_an_actor_of_a_killed_run_writes_nothing_to_the_folder_of_another_run(tmp_path: Path):
    """Its driver's lock is gone while it still works, and the next run groups images differently."""
    folder, images = tmp_path / "masks", put_pictures(tmp_path, a=(24, 40))
    recipe, checkpoint = make_recipe(MaskConfig(), None)
    spec = actor_spec(recipe, checkpoint, folder, MaskConfig()) | {"threads": 1, "pool": 1}
    shard = {"shard": [json.dumps(images)]}
    with claim_folder(folder) as former:
        orphan = MaskActor(spec | {"claim": former})
    with claim_folder(folder) as present:
        orphan(shard)
        assert shard_paths(folder) == []
        assert not list(folder.glob(".*.parquet.*"))
        MaskActor(spec | {"claim": present})(shard)
        assert len(shard_paths(folder)) == 1


def test_an_actor_loads_a_folder_of_transformers_and_names_its_kind(tmp_path: Path):
    models = pytest.importorskip("family_models", reason="pip install transformers")
    models.sam2().save_pretrained(tmp_path / "weights")
    config = MaskConfig(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    recipe, checkpoint = make_recipe(config, tmp_path / "weights")
    spec = actor_spec(recipe, checkpoint, tmp_path, config) | {"threads": 1, "pool": 1}
    store = work(MaskActor(json.loads(json.dumps(spec))), put_pictures(tmp_path, a=(40, 60)))
    assert store.recipe["sam_type"] == "sam2"
    assert store.errors == {}
    assert store.num_masks >= 1
