"""SAM 3 of transformers, prompted with text: instances of a concept with scores.

An image is encoded once for all prompts, and a prompt once for all images. Prompts run one by one, so
the masks of a prompt do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.errors import ConfigError

MAX_TOKENS = 32
"""Length of SAM 3's text input."""
_MASKS_AT_ONCE = 8  # enlarged to the image's size


class Tokenizer(Protocol):
    """Turns text into the numbers of a text encoder, as CLIPTokenizer does."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Return `input_ids` and `attention_mask`, a row for each text."""
        ...


@dataclass(frozen=True)
class Prompt:
    """An encoded prompt."""

    text: str
    embedding: Any
    attention_mask: Tensor
    """(1, MAX_TOKENS)."""


@dataclass(frozen=True)
class Instance:
    """One instance of a concept in an image."""

    mask: NDArray[np.bool_]
    """(H, W) of the image."""
    score: float
    """Presence of the concept in the image times the score of the instance, 0 to 1."""


class Sam3Concepts:
    """A Sam3Model with its tokenizer and its image processor.

    Args:
        model: In float32, on the device where it runs.
        tokenizer: The text encoder's.
        processor: The image processor.
        dtype: float32, or bfloat16 for autocast.
    """

    on_encoded: Callable[[], None] = staticmethod(lambda: None)
    """Called with each image after the image encoder."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, processor: Any, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor
        self.dtype = dtype

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> list[Prompt]:
        """Encode prompts, each by itself.

        Raises:
            ConfigError: a prompt has more than MAX_TOKENS tokens.
        """
        return [self._encode_prompt(text) for text in texts]

    def _encode_prompt(self, text: str) -> Prompt:
        length = len(self.tokenizer([text])["input_ids"][0])
        if length > MAX_TOKENS:
            raise ConfigError(
                f"prompt {text!r} has {length} tokens; allowed are {MAX_TOKENS}, with begin and end:"
                " write fewer words in masks.concept_prompts"
            )
        tokens = self.tokenizer(
            [text], return_tensors="pt", padding="max_length", max_length=MAX_TOKENS
        )
        ids, mask = (tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        with self._autocast():
            embedding = self.model.get_text_features(input_ids=ids, attention_mask=mask)
        return Prompt(text, embedding, mask)

    @torch.no_grad()
    def find(
        self, image: NDArray[np.uint8], prompts: Sequence[Prompt], score_thresh: float
    ) -> Iterator[list[Instance]]:
        """Yield the instances of each prompt, in the order of the network's queries.

        Scores and masks are those of transformers' `post_process_instance_segmentation`.

        Args:
            image: (H, W, 3) RGB.
            prompts: Of `encode_prompts`.
            score_thresh: Instances need a higher score.
        """
        channels_first = torch.tensor(image).permute(2, 0, 1)  # a copy: the array may be read-only
        inputs = self.processor(
            images=[channels_first], input_data_format="channels_first", return_tensors="pt"
        )
        with self._autocast():
            encoded = self.model.get_vision_features(inputs["pixel_values"].to(self.model.device))
        self.on_encoded()
        for prompt in prompts:
            with self._autocast():
                outputs = self.model(
                    vision_embeds=encoded,
                    text_embeds=prompt.embedding,
                    attention_mask=prompt.attention_mask,
                )
            yield _instances(outputs, image.shape[:2], score_thresh)

    def _autocast(self) -> torch.autocast:
        is_lower = self.dtype != torch.float32
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=is_lower)


def _instances(outputs: Any, size: tuple[int, int], score_thresh: float) -> list[Instance]:
    scores = outputs.pred_logits[0].float().sigmoid()
    if outputs.presence_logits is not None:
        scores = scores * outputs.presence_logits[0].float().sigmoid()
    chosen = (scores > score_thresh).nonzero()[:, 0]
    instances = []
    for first in range(0, len(chosen), _MASKS_AT_ONCE):
        part = chosen[first : first + _MASKS_AT_ONCE]
        shares = outputs.pred_masks[0, part].float().sigmoid()
        enlarged = F.interpolate(shares[None], size=size, mode="bilinear", align_corners=False)[0]
        masks = (enlarged > 0.5).cpu().numpy()
        part_scores = scores[part].tolist()
        instances += [Instance(*pair) for pair in zip(masks, part_scores, strict=True)]
    return instances
