"""Crops of images that contain their coordinates, so that every pixel shows where it came from."""

from collections import Counter
from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from train_samples import (
    COLOURS,
    assert_rows_of_masks,
    drawn_image,
    equal,
    labelled,
    tile_masks,
    write_dataset,
    write_image,
    write_masks,
)

from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import Geometry, draw_geometry, strong_view
from sfss_ray.data.folders import LabelledImage, list_images
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.train.samples import (
    LabelledSamples,
    Share,
    TargetSamples,
    image_of_sample,
    step_loader,
)

HEIGHT, WIDTH = 90, 130
CROP = AugmentConfig(crop_size=(48, 64), scale_range=(0.75, 1.5))
# A smaller seed is no simpler crop, so failures are not shrunk.
some = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


def coordinates() -> np.ndarray:
    """Return (H, W, 3) uint8: row, column, 0; rows are doubled, so that half a pixel shows."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([2 * rows, columns * 255 // WIDTH, 0 * rows], 2).astype(np.uint8)


def coordinate_ids() -> np.ndarray:
    """Return (H, W) int: a different number for every pixel."""
    return np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


def geometry(seed: int) -> Geometry:
    return draw_geometry(CROP, (HEIGHT, WIDTH), np.random.default_rng(seed))


@some
@given(seed=st.integers(0, 10**6))
def test_image_and_ids_are_cropped_at_the_same_position(seed):
    g = geometry(seed)
    crop = g.apply_to_image(coordinates()).astype(float)
    rows, columns = np.divmod(g.apply_to_ids(coordinate_ids(), (HEIGHT, WIDTH)), WIDTH)
    assert crop.shape == (48, 64, 3)
    assert np.abs(crop[..., 0] / 2 - rows).max() <= 1
    assert np.abs(crop[..., 1] * WIDTH / 255 - columns).max() <= 1


@some
@given(seed=st.integers(0, 10**6))
def test_crops_lie_inside_and_have_the_drawn_zoom_and_mirror(seed):
    g = geometry(seed)
    rows, columns = np.divmod(g.apply_to_ids(coordinate_ids(), (HEIGHT, WIDTH)), WIDTH)
    assert 0.75 <= g.scale <= 1.5
    assert g.top + 48 / g.scale <= HEIGHT + 1e-6
    assert g.left + 64 / g.scale <= WIDTH + 1e-6
    assert np.ptp(rows[:, 0]) == pytest.approx(47 / g.scale, abs=1)
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
    steps = np.diff(columns[0])
    assert (steps <= 0).all() if g.flip else (steps >= 0).all()


@some
@given(seed=st.integers(0, 10**6))
def test_a_window_of_ids_gives_the_same_crop_as_the_whole_map(seed):
    g = geometry(seed)
    top, left, height, width = g.window((HEIGHT, WIDTH))
    assert top >= 0
    assert left >= 0
    assert top + height <= HEIGHT
    assert left + width <= WIDTH
    ids = coordinate_ids()
    part = ids[top : top + height, left : left + width]
    cropped = g.apply_to_ids(part, (HEIGHT, WIDTH), origin=(top, left))
    np.testing.assert_array_equal(cropped, g.apply_to_ids(ids, (HEIGHT, WIDTH)))


def test_both_mirrors_and_many_zooms_are_drawn():
    drawn = [geometry(seed) for seed in range(200)]
    assert 60 < sum(g.flip for g in drawn) < 140
    assert min(g.scale for g in drawn) < 0.8
    assert max(g.scale for g in drawn) > 1.4
    never = AugmentConfig(crop_size=(48, 64), flip=False)
    rng = np.random.default_rng(0)
    assert not any(draw_geometry(never, (HEIGHT, WIDTH), rng).flip for _ in range(50))


def test_images_smaller_than_the_crop_are_scaled_up_to_fill_it():
    g = draw_geometry(AugmentConfig(crop_size=(128, 64)), (40, 60), np.random.default_rng(0))
    assert g.scale == pytest.approx(128 / 40)
    rows = g.apply_to_ids(np.arange(40)[:, None].repeat(60, 1), (40, 60))[:, 0]
    np.testing.assert_array_equal(np.unique(rows), np.arange(40))


def test_identity_geometry_changes_nothing():
    image = drawn_image(0)
    g = Geometry(0.0, 0.0, 1.0, False, (64, 64))
    np.testing.assert_array_equal(g.apply_to_image(image), image)
    mirrored = Geometry(0.0, 0.0, 1.0, True, (64, 64))
    np.testing.assert_array_equal(mirrored.apply_to_image(image), image[:, ::-1])


def test_strong_view_changes_colours_and_keeps_pixels_in_place():
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:40, 10:30] = (200, 60, 90)
    edges = []
    for seed in range(30):
        view = strong_view(image, AugmentConfig(), np.random.default_rng(seed))
        assert view.dtype == np.uint8
        assert view.shape == image.shape
        contrast = np.abs(view.astype(int) - view[0, 0]).sum(2)
        rows, columns = (contrast > contrast.max() / 2).nonzero()
        edges.append((rows.min(), rows.max(), columns.min(), columns.max()))
    assert set(edges) == {(20, 39, 10, 29)}


def test_strong_view_is_off_when_every_probability_is_zero():
    config = AugmentConfig(jitter_probability=0, grey_probability=0, blur_probability=0)
    image = drawn_image(1)
    np.testing.assert_array_equal(strong_view(image, config, np.random.default_rng(0)), image)


def test_strong_view_never_writes_into_the_weak_one():
    image = drawn_image(1)
    before = image.copy()
    for seed in range(20):
        strong_view(image, AugmentConfig(), np.random.default_rng(seed))
    np.testing.assert_array_equal(image, before)


def test_a_setting_of_the_strong_view_does_not_shift_the_draws_of_another():
    image = drawn_image(2)
    no_jitter = AugmentConfig(jitter_probability=0, grey_probability=0, blur_probability=1)
    with_grey = AugmentConfig(jitter_probability=0, grey_probability=1, blur_probability=1)
    for seed in range(5):
        blurred = strong_view(image, no_jitter, np.random.default_rng(seed))
        grey = strong_view(image, with_grey, np.random.default_rng(seed))
        expected = cv2.cvtColor(blurred, cv2.COLOR_RGB2GRAY).astype(int)
        assert np.abs(grey[..., 0].astype(int) - expected).max() <= 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("samples"))


AUGMENT = AugmentConfig(crop_size=(48, 40), scale_range=(0.8, 1.4))


def target_samples(root, seed=5, masks=True):
    images = list_images(root / "images")
    return TargetSamples(images, root / "masks" if masks else None, AUGMENT, seed)


def test_a_sample_is_a_function_of_seed_and_number(root):
    first, again = target_samples(root), target_samples(root)
    for number in (0, 7, 13):
        assert equal(first[number], again[number])
    assert not torch.equal(first[0]["weak"], target_samples(root, seed=6)[0]["weak"])
    assert not torch.equal(first[0]["weak"], first[6]["weak"])


def test_parts_of_a_sample_are_aligned(tmp_path):
    image = coordinates()
    write_image(tmp_path / "images" / "a.png", image)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30:60, 50:90] = True
    write_masks(tmp_path / "masks", {"a": [mask]}, (HEIGHT, WIDTH))
    plain = AugmentConfig(
        crop_size=(48, 64), jitter_probability=0, grey_probability=0, blur_probability=0
    )
    samples = TargetSamples(list_images(tmp_path / "images"), tmp_path / "masks", plain, 0)
    checked = 0
    for number in range(12):
        sample = samples[number]
        assert torch.equal(sample["weak"], sample["strong"])
        assert sample["mask_ids"].shape == (48, 64)
        rows = sample["weak"][0].float() / 2
        columns = sample["weak"][1].float() * WIDTH / 255
        inside = (rows > 31) & (rows < 58) & (columns > 52) & (columns < 87)
        outside = (rows < 28) | (rows > 61) | (columns < 47) | (columns > 92)
        assert (sample["mask_ids"][inside] == 1).all()
        assert (sample["mask_ids"][outside] == 0).all()
        checked += int(inside.sum())
    assert checked > 1000


def test_views_have_the_shapes_and_types_a_step_expects(root):
    sample = target_samples(root)[3]
    for name in ("weak", "strong"):
        assert sample[name].shape == (3, 48, 40)
        assert sample[name].dtype == torch.uint8
    assert sample["mask_ids"].dtype == torch.int64
    assert sample["number"] == 3
    assert sample["image"] == image_of_sample(5, 3, 6)
    assert set(sample["mask_ids"].unique().tolist()) <= set(range(1, len(tile_masks()) + 1))


def test_without_masks_all_ids_are_zero(root):
    with_masks, without = target_samples(root)[2], target_samples(root, masks=False)[2]
    assert torch.equal(with_masks["weak"], without["weak"])
    assert without["mask_ids"].shape == with_masks["mask_ids"].shape
    assert not without["mask_ids"].any()


def test_labelled_samples_keep_labels_on_their_pixels(root):
    plain = AugmentConfig(
        crop_size=(48, 40), jitter_probability=0, grey_probability=0, blur_probability=0
    )
    samples = LabelledSamples(labelled(root), plain, seed=1)
    for number in range(6):
        sample = samples[number]
        colours = {}
        for label in sample["labels"].unique().tolist():
            pixels = sample["image"].permute(1, 2, 0)[sample["labels"] == label].float()
            colours[label] = pixels.median(0).values
        for label, colour in colours.items():
            # The typical colour of the pixels of a label is that of the class.
            distance = (torch.from_numpy(COLOURS).float() - colour).abs().sum(1)
            assert int(distance.argmin()) == label


def test_a_pair_of_two_sizes_is_refused(tmp_path):
    write_image(tmp_path / "a.png", drawn_image(0))
    write_image(tmp_path / "b.png", np.zeros((32, 64), np.uint8))
    pair = LabelledImage("a", tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(DataError, match="64x32"):
        LabelledSamples([pair], AUGMENT, 0)[0]


def test_every_image_once_per_epoch_in_another_order():
    orders = [[image_of_sample(1, e * 7 + i, 7) for i in range(7)] for e in range(6)]
    assert all(Counter(order) == Counter(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders[0] != [image_of_sample(2, i, 7) for i in range(7)]


def sample_numbers(loader) -> list[list[int]]:
    return [batch["number"].tolist() for batch in loader]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_ranks_together_load_the_batches_of_one(root, world):
    samples = target_samples(root)
    ranks = [
        sample_numbers(step_loader(samples, 1, 4, 4, Share(rank, world))) for rank in range(world)
    ]
    union = [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert union == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize(("unit", "sizes"), [(1, [4, 3, 3]), (2, [4, 4, 2])])
def test_uneven_shares_keep_the_order_of_samples(unit, sizes):
    shares = [Share(rank, 3, parts=2, unit=unit).of_step(1, 20) for rank in range(3)]
    assert [len(share) for share in shares] == [2 * size for size in sizes]
    first = [share[:size] for share, size in zip(shares, sizes, strict=True)]
    second = [share[size:] for share, size in zip(shares, sizes, strict=True)]
    assert list(chain(*first, *second)) == list(range(20, 40))


@pytest.mark.parametrize("world", [1, 2])
def test_a_part_contains_the_same_samples_whatever_the_number_of_workers(world):
    shares = [Share(rank, world, parts=2).of_step(1, 8) for rank in range(world)]
    half = [len(share) // 2 for share in shares]
    first = {n for share, h in zip(shares, half, strict=True) for n in share[:h]}
    assert first == {8, 9, 10, 11}
    assert {n for share in shares for n in share} == set(range(8, 16))


def test_a_finished_run_has_no_batches_left(root):
    assert sample_numbers(step_loader(target_samples(root), 4, 4, 2)) == []


def test_loader_processes_change_nothing(root):
    samples = target_samples(root)
    batches = [list(step_loader(samples, 0, 2, 2, processes=n)) for n in (0, 1)]
    assert all(equal(a, b) for a, b in zip(*batches, strict=True))


def test_geometry_of_masks_is_that_of_the_whole_image_padded_in_a_batch(tmp_path):
    image = coordinates()
    one, other = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    one[: HEIGHT // 2], other[10:20, 30:60] = True, True
    for name in ("a", "b", "c"):
        write_image(tmp_path / "images" / f"{name}.png", image)
    masks_of = {"a": [other], "b": [], "c": [one, other]}
    store = MaskStore(write_masks(tmp_path / "masks", masks_of, (HEIGHT, WIDTH)))
    images = list_images(tmp_path / "images")
    samples = TargetSamples(images, tmp_path / "masks", AUGMENT, 0, with_geometry=True)
    (batch,) = step_loader(samples, 0, 1, 6)
    assert_rows_of_masks(batch, "mask_geometry", lambda i: store.geometry(images[i].image_id))


def test_geometry_without_masks_is_one_row_of_zeros(root):
    images = list_images(root / "images")
    samples = TargetSamples(images, None, AUGMENT, 0, with_geometry=True)
    assert samples[0]["mask_geometry"].tolist() == [[0, 0, 0, 0]]
    assert "mask_geometry" not in TargetSamples(images, None, AUGMENT, 0)[0]
