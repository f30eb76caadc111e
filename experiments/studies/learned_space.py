"""A space of masks learned without class labels, apart from any training of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from domain_pairs import DomainPair
from study_step import StudyStep

from sfss_ray.data.folders import ImageFile
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.teacher import update_teacher, warm_up_momentum
from sfss_ray.models.segmenter import Segmenter

LEARNED = {"neighbour_weight": 1.0, "neighbour_space": "learned"}
"""Settings of `train.loss` for neighbours in a learned space."""
_LEARNING_RATE = 1e-3
_MOMENTUM = 0.9


def learn_space(
    pair: DomainPair, network: Segmenter, regions: str, images: Sequence[ImageFile], steps: int
) -> ContrastNet:
    """Return the network with a space that learned from the masks of some images.

    The network itself stays as it is: only the embedding of its features learns, from two views of each
    mask (mask_metric.py). The space is that of the teacher, an average over the last steps.

    Args:
        pair: Source model and target.
        network: The source model, which is copied.
        regions: Source of the masks.
        images: Target images to learn from.
        steps: Of learning, 1 or more.

    Returns:
        The teacher, in eval mode.
    """
    step = StudyStep(pair, network, regions, LEARNED, images, steps)
    space, averaged = step.student.mask_space, step.teacher.mask_space
    assert space is not None
    assert averaged is not None
    step.student.requires_grad_(False)
    optimizer = torch.optim.Adam(space.requires_grad_(True).parameters(), _LEARNING_RATE)
    for index in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        step.loss().backward()
        optimizer.step()
        update_teacher(averaged, space, warm_up_momentum(index, _MOMENTUM))
    return step.teacher
