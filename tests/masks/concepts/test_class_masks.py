"""Records of masks with classes: what they hold, their order, and the order of prompts."""

import numpy as np
import pytest
from pycocotools import mask as coco

from sfss_ray.masks.concepts.class_masks import class_mask_source
from sfss_ray.masks.concepts.sam3_concepts import Instance, Prompt

CLASSES = ("road", "pole", "sky")
PROMPTS = {"road": ("road",), "pole": ("pole", "street lamp"), "sky": ()}


class Finder:
    """A network whose masks and scores are a function of the prompt's text alone."""

    def __init__(self):
        self.encoded = []

    def encode_prompts(self, texts):
        self.encoded += texts
        return [Prompt(text, None, None) for text in texts]  # pyright: ignore[reportArgumentType]

    def find(self, image, prompts, score_thresh):
        for prompt in prompts:
            rng = np.random.default_rng(len(prompt.text))
            drawn = [
                Instance(rng.random(image.shape[:2]) > 0.7, round(float(rng.random()), 1))
                for _ in range(6)
            ]
            blank = Instance(np.zeros(image.shape[:2], bool), 0.99)
            yield [i for i in [*drawn, blank] if i.score > score_thresh]


def records(prompts=PROMPTS, score_thresh=0.2):
    find_masks = class_mask_source(Finder(), CLASSES, prompts, score_thresh)  # pyright: ignore
    return find_masks(np.zeros((11, 7, 3), np.uint8))


def test_a_record_holds_the_pixels_the_score_and_the_class():
    finder, image = Finder(), np.zeros((11, 7, 3), np.uint8)
    by_text = {
        text: next(iter(finder.find(image, [Prompt(text, None, None)], 0.2)))  # pyright: ignore
        for text in ("road", "pole", "street lamp")
    }
    expected = {
        (class_id, instance.mask.tobytes(), instance.score)
        for text, class_id in (("road", 0), ("pole", 1), ("street lamp", 1))
        for instance in by_text[text]
        if instance.mask.any()
    }
    actual = set()
    for record in records():
        pixels = coco.decode({"size": [11, 7], "counts": record["counts"]}).astype(bool)
        ys, xs = pixels.nonzero()
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert (record["area"], record["bbox"]) == (pixels.sum(), box)
        assert record["crop_box"] == [0, 0, 7, 11]
        assert np.isnan([record["stability_score"], *record["point"]]).all()
        actual.add((record["class_id"], pixels.tobytes(), record["predicted_iou"]))
    assert actual == expected
    assert len(actual) > 5


def test_masks_are_in_order_of_class_and_score():
    keys = [(r["class_id"], -r["predicted_iou"]) for r in records()]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "prompts",
    [
        {"road": ("road",), "pole": ("street lamp", "pole"), "sky": ()},
        {"sky": (), "pole": ("street lamp", "pole"), "road": ("road",)},
    ],
)
def test_the_order_of_prompts_changes_nothing(prompts):
    assert str(records(prompts)) == str(records())


def test_prompts_are_encoded_once_for_all_images():
    finder = Finder()
    find_masks = class_mask_source(finder, CLASSES, PROMPTS, 0.2)  # pyright: ignore
    for _ in range(3):
        find_masks(np.zeros((11, 7, 3), np.uint8))
    assert sorted(finder.encoded) == ["pole", "road", "street lamp"]
