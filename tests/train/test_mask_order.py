"""Masks in samples: their numbers, and the rows of geometry and embeddings that follow them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from train_samples import (
    adaptation_task,
    assert_rows_of_masks,
    assert_states_close,
    embed_masks,
    equal,
    sharp_source,
    small_config,
    write_dataset,
)

from sfss_ray.config import AugmentConfig
from sfss_ray.data.folders import list_images
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.run_state import LocalRun
from sfss_ray.train.samples import TargetSamples, number_by_first_pixel, step_loader

AUGMENT = AugmentConfig(crop_size=(48, 40), scale_range=(0.8, 1.4))


def test_embeddings_of_masks_are_padded_in_a_batch(tmp_path):
    write_dataset(tmp_path, count=3, without_masks=(1,))
    embed_masks(tmp_path / "masks")
    images = list_images(tmp_path / "images")
    samples = TargetSamples(images, tmp_path / "masks", AUGMENT, 0, True, True)
    store = MaskStore(tmp_path / "masks")
    (batch,) = step_loader(samples, 0, 1, 3)
    assert_rows_of_masks(batch, "mask_embedding", lambda i: store.embeddings(images[i].image_id))


def test_masks_are_numbered_by_their_first_pixels():
    rng = np.random.default_rng(0)
    for highest in (0, 1, 7, 40):
        ids = rng.integers(0, highest + 1, (6, 5)) * rng.integers(0, 2, (6, 5))
        in_order = [i for i in dict.fromkeys(ids.ravel().tolist()) if i]
        numbered, former = number_by_first_pixel(ids)
        assert former.tolist() == [0, *in_order]
        assert np.array_equal(former[numbered], ids)


def shuffle_masks(folder: Path) -> None:
    """Rewrite a folder of `embed_masks` with the masks of each image in another order."""
    rows = pq.read_table(folder / "masks-0.parquet").to_pylist()
    rng = np.random.default_rng(1)
    for row in rows:
        row["masks"] = [row["masks"][k] for k in rng.permutation(len(row["masks"]))]
    write_shard(folder / "masks-0.parquet", rows, {"source": "drawn", "embeddings": True})


def test_rows_of_masks_follow_their_ids(tmp_path):
    folder = write_dataset(tmp_path, count=2) / "masks"
    embed_masks(folder)
    shuffle_masks(folder)
    images, store = list_images(tmp_path / "images"), MaskStore(folder)
    whole = AugmentConfig(crop_size=(64, 64), scale_range=(1, 1), flip=False)
    samples = TargetSamples(images, folder, whole, 0, True, True)
    for number in range(2):
        sample = samples[number]
        image_id = images[sample["image"]].image_id
        stored = store.id_map(image_id)
        assert len(sample["mask_geometry"]) == len(sample["mask_embedding"]) == 17
        for mask in range(1, 17):
            (stored_id,) = np.unique(stored[(sample["mask_ids"] == mask).numpy()]).tolist()
            geometry_row, embedding = sample["mask_geometry"][mask], sample["mask_embedding"][mask]
            assert geometry_row.tolist() == store.geometry(image_id)[stored_id].tolist()
            assert embedding.tolist() == store.embeddings(image_id)[stored_id].tolist()


def test_the_order_of_masks_in_a_file_changes_nothing(tmp_path):
    write_dataset(tmp_path, count=3)
    embed_masks(tmp_path / "masks")
    images = list_images(tmp_path / "images")

    def batches():
        samples = TargetSamples(images, tmp_path / "masks", AUGMENT, 0, True, True)
        return list(step_loader(samples, 0, 3, 4))

    first = batches()
    shuffle_masks(tmp_path / "masks")
    assert all(equal(a, b) for a, b in zip(first, batches(), strict=True))


def test_a_training_does_not_depend_on_the_order_of_masks_in_a_file(tmp_path):
    source = sharp_source(tmp_path / "source.pt")
    data = write_dataset(tmp_path / "data", count=4)
    embed_masks(data / "masks")
    config = small_config(
        loss__contrast_weight=0.3, loss__mask_vote="pooled", augment__class_mix=0.5
    )
    adapt_student(adaptation_task(data, source, config), LocalRun(tmp_path / "first"))
    shuffle_masks(data / "masks")
    adapt_student(adaptation_task(data, source, config), LocalRun(tmp_path / "second"))
    assert_states_close(tmp_path / "first", tmp_path / "second", tolerance=0.0)
