"""Which labels, corrected by neighbours, a training would keep."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def study(experiment):
    return experiment("kept_labels")


@pytest.fixture
def masks(experiment):
    """Six masks of two classes with 10 pixels each. The last one's own evidence is wrong."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    truth = torch.zeros(6, 2)
    truth[torch.arange(6), labels] = 10.0
    evidence = torch.tensor(
        [[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 2.0], [0.5, 0.0]]
    )
    images = torch.arange(6)
    # Masks of one class lie together.
    place = torch.nn.functional.one_hot(labels, 2).float() + 0.01 * torch.rand(6, 2)
    return experiment("mask_labels").LabelledMasks(evidence, {"sam": (place,)}, images, truth)


def test_own_evidence_changes_nothing(study, masks):
    row = study.kept_row("own", masks, masks.evidence)
    assert row["changed"] == row["changed and kept"] == 0
    assert row["right of these"] is None
    assert 0 < row["kept"] <= 100
    assert row["mIoU of all"] == masks.score(masks.evidence.argmax(1))["miou"]


def test_a_corrected_label_counts_where_it_is_kept(study, masks):
    corrected = masks.evidence.clone()
    corrected[5] = torch.tensor([0.0, 9.0])
    row = study.kept_row("sure", masks, corrected)
    assert row["changed"] == row["changed and kept"] == pytest.approx(100 / 6)
    assert row["right of these"] == 100
    assert row["mIoU of all"] == 100
    corrected[5] = torch.tensor([0.0, 0.01])
    row = study.kept_row("unsure", masks, corrected)
    assert row["changed"] == pytest.approx(100 / 6)
    assert row["changed and kept"] == 0


def test_the_mean_has_less_confidence_than_the_sum(study, masks):
    evidence = dict(study.corrected(masks))
    assert next(iter(evidence)) == "own evidence"
    for weight in (1, 2):
        mean, total = (
            evidence[f"SAM's embedding, weight {weight}, {pooling}"] for pooling in ("mean", "sum")
        )
        assert torch.equal(mean.argmax(1), total.argmax(1))
        assert (mean.softmax(1).max(1).values < total.softmax(1).max(1).values).all()
        torch.testing.assert_close(mean * (1 + weight), total)
