"""Evidence of pixels and masks against slow loops."""

import torch

from sfss_ray.method.mask_evidence import Evidence, MaskPixels


def drawn(seed=0, batch=3, classes=4, height=7, width=9, masks=5):
    generator = torch.Generator().manual_seed(seed)
    q = (torch.randn(batch, classes, height, width, generator=generator)).softmax(1)
    ids = torch.randint(0, masks + 1, (batch, height, width), generator=generator)
    prior = torch.rand(classes, generator=generator) + 0.1
    return q, ids, prior / prior.sum()


def test_evidence_of_a_pixel_is_its_log_probability_corrected_for_the_prior():
    q, ids, prior = drawn()
    evidence = Evidence.gather(q, ids, prior, power=0.5)
    assert evidence.shape == (3, 7, 9)
    expected = (q / prior[:, None, None] ** 0.5).log().permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(evidence.of_pixels, expected)


def test_evidence_of_a_mask_is_the_mean_over_its_pixels():
    q, ids, prior = drawn()
    evidence = Evidence.gather(q, ids, prior, power=0.25)
    scores = evidence.of_pixels.view(3, 7, 9, 4)
    per_image = int(ids.max()) + 1
    for b in range(3):
        for mask in ids[b].unique().tolist():
            mean = scores[b][ids[b] == mask].mean(0)
            torch.testing.assert_close(evidence.of_masks[b * per_image + mask], mean)


def test_one_pixel_without_probability_does_not_veto_a_mask():
    q = torch.tensor([0.9, 0.1])[None, :, None, None].repeat(1, 1, 1, 10)
    q[0, :, 0, 0] = torch.tensor([0.0, 1.0])
    evidence = Evidence.gather(q, torch.ones(1, 1, 10).long(), torch.ones(2) / 2, power=0.0)
    assert evidence.of_masks[1].argmax() == 0
    assert evidence.of_masks.isfinite().all()


def test_present_masks_are_those_with_a_pixel():
    ids = torch.tensor([[[0, 2], [2, 5]], [[1, 1], [0, 2]]])
    masks = MaskPixels(ids)
    assert masks.ids_per_image == 6
    assert masks.present().tolist() == [2, 5, 7, 8]
    assert MaskPixels(torch.zeros(2, 3, 3).long()).present().tolist() == []


def test_two_images_never_share_a_mask():
    values = torch.tensor([1.0, 1.0, 3.0, 3.0])[:, None]
    masks = MaskPixels(torch.ones(2, 1, 2).long())
    assert masks.mean(values)[masks.owner].flatten().tolist() == [1.0, 1.0, 3.0, 3.0]
