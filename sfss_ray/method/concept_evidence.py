"""Evidence of masks that have classes: a network prompted with class names votes with the teacher.

Let t_i(c) be the highest score of a mask of class c that contains pixel i, 0 without one. The evidence
of a pixel becomes

    s'_i(c) = s_i(c) + b log((t_i(c) + FLOOR) / FLOOR)

with b = `concept_weight`. It is a product of experts (Hinton 2002): one expert is the teacher, corrected
for the prior, and the other says (t + FLOOR) / FLOOR to one for class c against a class without a mask.
A pixel in no such mask keeps its evidence, so a concept that was not found vetoes nothing. Evidence of a
class-agnostic mask is the mean over its pixels, as before.

This is knowledge from outside source model and target images.
"""

from __future__ import annotations

from torch import Tensor

from sfss_ray.method.mask_evidence import Evidence

CONCEPT_SCORES = "concept_scores"
"""Key of t in a batch, (B, C, H, W)."""
FLOOR = 0.05
"""A mask of score 1 says 21 to one for its class."""


def add_concepts(evidence: Evidence, scores: Tensor, weight: float) -> Evidence:
    """Return the evidence of pixels and masks together with that of masks that have classes.

    Args:
        evidence: Of the teacher.
        scores: (B, C, H, W) t, 0 to 1.
        weight: b, 0 or more.
    """
    rows = scores.permute(0, 2, 3, 1).reshape(evidence.of_pixels.shape)
    log_odds = ((rows.to(evidence.of_pixels.dtype) + FLOOR) / FLOOR).log()
    of_pixels = evidence.of_pixels + weight * log_odds
    return Evidence(of_pixels, evidence.masks.mean(of_pixels), evidence.masks, evidence.shape)
