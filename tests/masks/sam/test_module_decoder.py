"""A decoder that calls a model in batches."""

import pytest
import torch

from sfss_ray.masks.sam.module_decoder import ModuleDecoder


class Model:
    """Logits are x + 10 y + output, and the predicted IoU of output k is k."""

    def __init__(self):
        self.batch_sizes = []

    def __call__(self, points):
        self.batch_sizes.append(len(points))
        value = points[:, :1] + 10 * points[:, 1:] + torch.arange(3)
        logits = value[:, :, None, None].expand(-1, -1, 4, 5).clone()
        return logits, torch.arange(3).expand(len(points), 3)


@pytest.mark.parametrize(("threshold", "outputs"), [(None, [0, 1, 2]), (0.5, [1, 2]), (2.0, [])])
def test_masks_above_the_threshold_come_in_order(threshold, outputs):
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    decoded = ModuleDecoder(Model()).decode(points, threshold)
    assert decoded.predicted_iou.tolist() == [[0.0, 1.0, 2.0]] * 2
    assert decoded.passed.tolist() == [3 * k + o for k in range(2) for o in outputs]
    assert decoded.low_size == (4, 5)
    values = [base + o for base in (21, 43) for o in outputs]
    assert decoded.logits.shape == (len(values), 4, 5)
    assert decoded.logits[:, 0, 0].tolist() == values


def test_without_a_threshold_scores_that_are_not_numbers_pass_too():
    decode = lambda points: (torch.zeros(1, 1, 2, 2), torch.tensor([[float("nan")]]))  # noqa: E731
    decoder = ModuleDecoder(decode)
    assert decoder.decode(torch.zeros(1, 2), None).passed.tolist() == [0]
    assert decoder.decode(torch.zeros(1, 2), 0.1).passed.tolist() == []
