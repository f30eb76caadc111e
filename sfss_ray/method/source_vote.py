"""The source model's vote: its own prediction takes part in the teacher's, so that little is forgotten.

The teacher starts with BatchNorm statistics of the target, and then follows the student. Both can lose a
rare class that the source model still sees, and a class without pseudo-labels is never learned again.
The source model, unchanged and with its own statistics, is a second opinion whose errors differ:

    log q(c) = (1 - w) log q_teacher(c) + w log q_source(c) + constant

with w = `source_vote`, a logarithmic opinion pool (Genest and Zidek 1986).
"""

from __future__ import annotations

from torch import Tensor

from sfss_ray.method.mask_evidence import FLOOR


def pool_with_source(teacher: Tensor, source: Tensor, weight: float) -> Tensor:
    """Return the pooled probabilities (B, C, H, W), which sum to 1 over the classes.

    Args:
        teacher: (B, C, H, W) probabilities. Those below `FLOOR` count as this, in both opinions: neither
            may veto a class.
        source: (B, C, H, W) probabilities of the source model for the same pixels.
        weight: w of the source model, 0 to 1.
    """
    logs = teacher.clamp(min=FLOOR).log().lerp(source.clamp(min=FLOOR).log(), weight)
    return logs.softmax(1)
