"""Scores of classes at the pixels of a crop against a loop over masks and pixels."""

import numpy as np
import pytest

from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_strings
from sfss_ray.masks.bank.schema import CONCEPTS, write_shard
from sfss_ray.masks.concepts import score_maps
from sfss_ray.masks.concepts.score_maps import ConceptScores

SIZE, CLASSES = (9, 13), 4


def drawn_masks(seed):
    rng = np.random.default_rng(seed)
    return [
        (int(rng.integers(0, 3)), rng.random(SIZE) > 0.6, float(rng.uniform(0.5, 1)))
        for _ in range(12)
    ]


def write(folder, masks_of, errors=()):
    rows = []
    for image_id, masks in masks_of.items():
        texts = to_coco_strings(encode_masks([mask for _, mask, _ in masks]))
        stored = [
            {"counts": text, "area": int(mask.sum()), "bbox": [0, 0, SIZE[1], SIZE[0]],
             "predicted_iou": score, "class_id": class_id}
            for text, (class_id, mask, score) in zip(texts, masks, strict=True)
        ]  # fmt: skip
        rows.append({"image_id": image_id, "path": "", "masks": stored, "error": None})
        rows[-1] |= {"height": SIZE[0], "width": SIZE[1]}
    for image_id in errors:
        rows.append({"image_id": image_id, "path": "", "masks": [], "error": "cut"})
        rows[-1] |= {"height": 0, "width": 0}
    folder.mkdir()
    write_shard(folder / "masks-0.parquet", rows, {"source": CONCEPTS})
    return folder


def test_scores_of_a_crop_are_those_of_a_loop(tmp_path):
    masks = drawn_masks(0)
    scores = ConceptScores(write(tmp_path / "c", {"a": masks}), CLASSES)
    rows, columns = np.array([1, 1, 2, 5, 8]), np.array([12, 7, 6, 6, 0, 1])
    crop = scores.crop("a", rows, columns)
    assert (crop.dtype, crop.shape) == (np.uint8, (CLASSES, 5, 6))
    for c in range(CLASSES):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                here = [s for k, mask, s in masks if k == c and mask[row, column]]
                assert crop[c, i, j] == round(255 * float(np.float32(max(here, default=0))))
    assert (crop[3] == 0).all(), "a class without masks"


def test_images_without_masks_a_row_or_with_an_error_have_no_scores(tmp_path):
    folder = write(tmp_path / "c", {"a": drawn_masks(0), "empty": []}, errors=["cut"])
    scores = ConceptScores(folder, CLASSES)
    for image_id in ("empty", "cut", "elsewhere"):
        assert not scores.crop(image_id, np.arange(3), np.arange(4)).any()
    assert scores.crop("a", np.arange(3), np.arange(4)).any()


def test_memory_is_bounded_and_evicted_images_are_painted_again(tmp_path, monkeypatch):
    folder = write(tmp_path / "c", {str(i): drawn_masks(i) for i in range(6)})
    pixels = np.arange(SIZE[0]), np.arange(SIZE[1])
    first = [ConceptScores(folder, CLASSES).crop(str(i), *pixels) for i in range(6)]
    monkeypatch.setattr(score_maps, "_MAX_BYTES", 2000)
    small = ConceptScores(folder, CLASSES)
    for i in [0, 1, 2, 3, 4, 5, 0, 3]:
        assert np.array_equal(small.crop(str(i), *pixels), first[i])
    assert 1 <= len(small._images) < 6
    assert small._nbytes == sum(r.nbytes for image in small._images.values() for r in image)


def test_a_row_outside_the_image_is_refused(tmp_path):
    scores = ConceptScores(write(tmp_path / "c", {"a": drawn_masks(0)}), CLASSES)
    with pytest.raises(Exception, match="rows"):
        scores.crop("a", np.array([SIZE[0]]), np.array([0]))
