"""Instances of concepts against transformers' own model and post-processing, on random weights."""

import numpy as np
import pytest
import torch
import transformers
from concept_models import IMAGE_SIDE, concept_model, tokenizer

from sfss_ray.errors import ConfigError
from sfss_ray.masks.concepts.sam3_concepts import MAX_TOKENS, Sam3Concepts

TEXTS = ("road", "street lamp", "car")


@pytest.fixture(scope="module")
def processor():
    return transformers.Sam3ImageProcessor(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE})


@pytest.fixture(scope="module")
def concepts(processor):
    return Sam3Concepts(concept_model(), tokenizer(), processor)


@pytest.fixture(scope="module")
def image():
    coarse = np.random.default_rng(0).integers(0, 255, (5, 9, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((12, 10, 1), np.uint8))


@pytest.mark.parametrize("score_thresh", [0.0, 0.3, 0.5])
def test_instances_are_those_of_the_library(concepts, processor, image, score_thresh):
    whole = transformers.Sam3Processor(processor, tokenizer())
    prompts = concepts.encode_prompts(TEXTS)
    counts = []
    for text, instances in zip(TEXTS, concepts.find(image, prompts, score_thresh), strict=True):
        inputs = whole(
            images=[torch.tensor(image).permute(2, 0, 1)], text=[text], return_tensors="pt"
        )
        with torch.no_grad():
            outputs = concept_model()(**{k: v for k, v in inputs.items() if k != "original_sizes"})
        (expected,) = whole.post_process_instance_segmentation(
            outputs, threshold=score_thresh, target_sizes=[image.shape[:2]]
        )
        masks = [instance.mask for instance in instances]
        assert [i.score for i in instances] == pytest.approx(expected["scores"].tolist(), abs=1e-6)
        assert len(masks) == len(expected["masks"])
        if masks:
            assert np.array_equal(np.stack(masks), expected["masks"].numpy() > 0)
        counts.append(len(masks))
    assert sum(counts) == 18 if score_thresh == 0 else sum(counts) < 18


def test_an_image_is_encoded_once_and_prompts_do_not_depend_on_each_other(
    concepts, image, monkeypatch
):
    calls = []
    encode = concepts.model.get_vision_features
    monkeypatch.setattr(
        concepts.model, "get_vision_features", lambda pixels: calls.append(1) or encode(pixels)
    )
    monkeypatch.setattr(concepts, "on_encoded", lambda: calls.append(2))
    prompts = concepts.encode_prompts(TEXTS)
    together = list(concepts.find(image, prompts, 0.3))
    assert calls == [1, 2]
    backwards = list(concepts.find(image, prompts[::-1], 0.3))[::-1]
    for first, second in zip(together, backwards, strict=True):
        assert [i.score for i in first] == [i.score for i in second]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(first, second, strict=True))


def test_no_instance_above_the_threshold_is_an_empty_list(concepts, image):
    prompts = concepts.encode_prompts(["road"])
    assert list(concepts.find(image, prompts, 1.0)) == [[]]


def test_bfloat16_finds_about_the_same_scores(processor, image):
    rough = Sam3Concepts(concept_model(), tokenizer(), processor, torch.bfloat16)
    exact = Sam3Concepts(concept_model(), tokenizer(), processor)
    (a,), (b,) = (list(c.find(image, c.encode_prompts(["car"]), 0.0)) for c in (rough, exact))
    assert [i.score for i in a] == pytest.approx([i.score for i in b], abs=0.05)
    assert [i.score for i in a] != [i.score for i in b]


def test_a_prompt_that_is_too_long_is_refused(concepts):
    with pytest.raises(ConfigError, match=rf"has 42 tokens; allowed are {MAX_TOKENS}"):
        concepts.encode_prompts(["road " * 40])


def test_any_tokenizer_with_the_same_call_is_taken(processor, image, concepts):
    class Words:
        """Numbers for whole words, without a vocabulary file."""

        def __call__(self, text, **options):
            ids = [[87, *(71 if word == "street" else 62 for word in text[0].split()), 88]]
            if not options:
                return {"input_ids": ids}
            padding = [88] * (options["max_length"] - len(ids[0]))
            mask = [1] * len(ids[0]) + [0] * len(padding)
            return {
                "input_ids": torch.tensor([ids[0] + padding]),
                "attention_mask": torch.tensor([mask]),
            }

    other = Sam3Concepts(concept_model(), Words(), processor)
    (a,), (b,) = (
        list(c.find(image, c.encode_prompts(["street lamp"]), 0.0)) for c in (other, concepts)
    )
    assert [i.score for i in a] == [i.score for i in b]
