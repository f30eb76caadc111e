"""Mean embeddings of masks: against loops over pixels, and from the shipped small SAM to a training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mask_rows import image_row, mask_record, write_rows
from random_sam import LOOSE, drawn_image, random_sam

from sfss_ray.config import LossConfig, MaskConfig
from sfss_ray.config.consistency import check_neighbour_space
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.mask_embeddings import covered_area, embed_masks, image_grid
from sfss_ray.masks.sam.promptable import EncodedCrop


def test_each_cell_counts_as_much_as_the_mask_covers_it():
    grid = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    mask = np.zeros((12, 16), bool)
    mask[2:9, 3:14] = True  # cells of 4x4 pixels, some covered in part
    (embedding,) = embed_masks(grid, [mask_record(mask)["counts"]], mask.shape)
    vectors = [grid[:, row // 4, column // 4] for row, column in np.argwhere(mask)]
    np.testing.assert_allclose(embedding, np.mean(vectors, axis=0), atol=2e-3)
    assert embedding.dtype == np.float16


def test_an_image_of_another_size_than_the_grid_is_resampled_by_area():
    grid = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    mask = np.zeros((5, 7), bool)
    mask[:, 4:] = True  # columns 4.67 and above are the last cell's
    (embedding,) = embed_masks(grid, [mask_record(mask)["counts"]], mask.shape)
    inside = (4 + 2 / 3 - 4) / 3  # share of the mask in the middle cells
    np.testing.assert_allclose(embedding[0], inside * 2.5 + (1 - inside) * 3.5, atol=0.02)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((48, 64), (6, 8)), ((37, 53), (5, 7)), ((8, 8), (8, 8)), ((5, 9), (7, 11)), ((1, 1), (2, 2))],
)
def test_the_area_in_each_cell_is_that_of_a_finer_image(share, size, grid):
    (height, width), (rows, columns) = size, grid
    noise = np.random.default_rng(1).random(size) < share
    block = np.zeros(size, bool)
    block[height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = (
        True  # some columns are empty
    )
    for mask in (noise, block, noise & block):
        # In an image so many times as large, each cell has whole pixels.
        fine = np.kron(mask, np.ones(grid)).reshape(rows, height, columns, width)
        expected = fine.sum((1, 3)) / (rows * columns)
        (counts,) = run_lengths.encode_masks(mask[None])
        area = covered_area(np.asarray(counts), size, grid)
        np.testing.assert_allclose(area, expected, atol=1e-9)


@pytest.mark.parametrize("times", [2, 3])
def test_the_resolution_of_an_image_does_not_matter(times):
    rng = np.random.default_rng(1)
    grid = rng.normal(size=(6, 5, 7)).astype(np.float32)
    masks = rng.random((4, 23, 31)) < 0.3
    embeddings = []
    for scale in (1, times):
        larger = np.kron(masks, np.ones((1, scale, scale))).astype(bool)
        size = larger.shape[1:]
        counts = [run_lengths.encode_masks([mask], [(0, 0)], size)[0] for mask in larger]
        embeddings.append(embed_masks(grid, counts, size))
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=2e-3)


@pytest.mark.parametrize(
    ("unpadded", "expected"),
    [((256, 256), (32, 32)), ((256, 128), (32, 16)), ((100, 256), (13, 32))],
)
def test_the_padding_of_the_image_is_left_out(unpadded, expected):
    embedding = torch.randn(8, 32, 32)
    encoded = EncodedCrop(
        decoder=None,  # pyright: ignore[reportArgumentType]
        size=(50, 60),
        upsampling_sizes=(256, unpadded, (50, 60)),
        point_scale=(1.0, 1.0),
        input_side=256,
        mask_threshold=0.0,
        device=torch.device("cpu"),
        key_bytes=1,
        embedding=embedding,
    )
    grid = image_grid(encoded)
    assert grid.shape == (8, *expected)
    np.testing.assert_array_equal(grid, embedding[:, : expected[0], : expected[1]].numpy())


def test_the_generator_hands_over_the_encoder_s_own_embedding_and_the_same_masks():
    sam, image = random_sam(), drawn_image()
    options = {**LOOSE, "pred_iou_thresh": 1.0, "crop_n_layers": 1, "output_mode": "coco_rle"}
    generator = AutomaticMaskGenerator(sam, **options)
    plain = generator.generate(image)
    crops: list[EncodedCrop] = []
    generator.on_encoded = crops.append
    again = generator.generate(image)
    assert [m["segmentation"] for m in again] == [m["segmentation"] for m in plain]
    assert len(crops) == 5
    assert crops[0].size == image.shape[:2]
    generator.predictor.set_image(image)
    expected = generator.predictor.get_image_embedding()[0]
    torch.testing.assert_close(crops[0].embedding, expected, rtol=1e-4, atol=1e-4)


def test_the_small_sam_stores_embeddings_that_a_store_returns(tmp_path):
    config = MaskConfig(regions="small_sam", points_per_side=4)
    recipe, checkpoint = make_recipe(config, None)
    assert recipe.as_dict()["embeddings"] is True
    image = drawn_image()
    records = build_region_source(recipe, checkpoint, 8, "cpu")(image)
    plain_recipe, _ = make_recipe(replace(config, embeddings=False), None)
    assert "embeddings" not in plain_recipe.as_dict()
    plain = build_region_source(plain_recipe, checkpoint, 8, "cpu")(image)
    assert [r["counts"] for r in records] == [r["counts"] for r in plain]
    row = {"image_id": "a", "path": "a.png", "error": None, "masks": records}
    row |= {"height": image.shape[0], "width": image.shape[1]}
    empty = row | {"image_id": "b", "masks": []}
    write_shard(tmp_path / "masks-0.parquet", [row, empty], recipe.as_dict())
    store = MaskStore(tmp_path)
    assert store.has_embeddings
    embeddings = store.embeddings("a")
    assert embeddings.shape == (len(records) + 1, len(records[0]["embedding"]))
    assert not embeddings[0].any()
    np.testing.assert_array_equal(embeddings[1:], [r["embedding"] for r in records])
    assert store.embeddings("b").shape == (1, embeddings.shape[1])
    assert store.id_map("a").max() > 0


def test_shards_without_embeddings_say_how_to_get_them(tmp_path):
    mask = np.ones((4, 4), bool)
    write_rows(tmp_path, [image_row("a", [mask])])
    store = MaskStore(tmp_path)
    assert not store.has_embeddings
    with pytest.raises(
        DataError, match=r"have no embeddings: make them again with masks\.embeddings"
    ):
        store.embeddings("a")


def test_a_source_without_a_network_does_not_embed():
    recipe, _ = make_recipe(MaskConfig(regions="felzenszwalb"), None)
    assert not recipe.embeddings
    by_sam, _ = make_recipe(MaskConfig(regions="small_sam"), None)
    assert by_sam.embeddings


def test_masks_are_compared_by_embeddings_only_if_they_have_them():
    loss = LossConfig(neighbour_weight=1.0)
    message = (
        r"neighbour_weight is 1 and neighbour_space is 'sam', but the masks have no embeddings"
    )
    with pytest.raises(ConfigError, match=message):
        check_neighbour_space(loss, masks_have_embeddings=False)
    check_neighbour_space(loss, masks_have_embeddings=True)
    for knobs in ({"neighbour_space": "geometry"}, {"neighbour_weight": 0.0}):
        check_neighbour_space(replace(loss, **knobs), masks_have_embeddings=False)
    check_neighbour_space(LossConfig(), masks_have_embeddings=False)
