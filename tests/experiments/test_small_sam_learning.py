"""The small SAM is trained by other code than it is used by; both must compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfss_ray.masks.sam.networks import SMALL_IMAGE_SIZE, build_small_sam

SIZE = (128, 256)
POINTS = torch.tensor([[[10.0, 20.0], [200.0, 100.0], [255.0, 0.0]]])


@pytest.fixture
def learning(experiment):
    return experiment("small_sam_learning")


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_small_sam()


def at(row: int, column: int) -> torch.Tensor:
    return torch.tensor([row, column])


def low_resolution_map(patches: torch.Tensor) -> torch.Tensor:
    """(.., h*w*16) in patch order to (.., 4h, 4w), for the 16 x 32 tokens of SIZE."""
    split = patches.unflatten(-1, (16, 32, 2, 2, 2, 2))
    lead = patches.shape[:-1]
    order = [len(lead) + axis for axis in (0, 2, 4, 1, 3, 5)]
    return split.permute(*range(len(lead)), *order).reshape(*lead, 64, 128)


@torch.no_grad()
def test_points_are_decoded_as_by_sam(learning, sam):
    embeddings = torch.randn(1, 64, 32, 32)
    logits, predicted = learning.decode_points(sam, embeddings, POINTS, at(0, 0), valid_rows=16)

    labels = torch.ones(3, 1)
    sparse, dense = sam.prompt_encoder((POINTS[0][:, None], labels), None, None)
    masks, ious = sam.mask_decoder.predict_masks(
        embeddings, sam.prompt_encoder.get_dense_pe(), sparse, dense
    )
    torch.testing.assert_close(predicted[0], ious, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        low_resolution_map(logits[0]), masks[:, :, :64], rtol=1e-3, atol=1e-3
    )


@torch.no_grad()
def test_a_padded_image_is_encoded_as_by_sam(learning, sam):
    image = torch.randint(0, 256, (1, 3, *SIZE)).float()
    square = sam.pixel_mean.expand(1, 3, SMALL_IMAGE_SIZE, SMALL_IMAGE_SIZE).clone()
    square[:, :, : SIZE[0]] = image
    ours = learning.encode_window(sam, square, at(0, 0))
    theirs = sam.image_encoder(sam.preprocess(image[0])[None])
    assert (ours - theirs).abs().max() < 0.1 * theirs.std()  # bfloat16 where the processor has it


@torch.no_grad()
def test_a_window_has_the_places_of_the_square_it_lies_in(learning, sam):
    table = torch.arange(32 * 32).view(1, 32, 32, 1)
    cut = learning.cut_table(table, at(3, 7), 2, 4)
    assert cut[0, :, :, 0].tolist() == [[103, 104, 105, 106], [135, 136, 137, 138]]
    inside = learning.point_tokens(sam, POINTS[:, :1], at(3, 7))
    moved = learning.point_tokens(sam, POINTS[:, :1] + torch.tensor([56.0, 24.0]), at(0, 0))
    torch.testing.assert_close(inside, moved)


def test_targets_are_the_pixels_of_the_object_and_of_the_part_under_each_point(learning):
    from small_sam_scenes import ScenePool, Stage, make_batch

    stage = Stage(1.0, (SIZE,), padded=1.0, images=2, points=5, focal=True)
    batch = make_batch(ScenePool(0), stage, np.random.default_rng(1))
    maps = low_resolution_map(batch.targets().movedim(-1, 2))  # (B, P, 2, H / 2, W / 2)
    target_ids = batch.target_ids[:, :, :, None, None]
    assert (maps == (batch.ids.movedim(-1, 1)[:, None] == target_ids)).all()
    assert maps[:, :, 0].any(), "no point lies on an object"


@pytest.mark.gpu
def test_updates_as_graphs_are_the_updates(learning):
    from argparse import Namespace

    import train_small_sam as trainer
    from small_sam_scenes import STAGES, ScenePool, make_batch

    options = Namespace(seed=0, start=None, device="cuda", images_times=1, points_times=1)
    pool, rng = ScenePool(0), np.random.default_rng(0)
    batches = [make_batch(pool, STAGES[0], rng) for _ in range(8)]
    weight = torch.tensor(0.5)
    losses = []
    for eager in (True, False):
        run = trainer.start_run(options)
        update = trainer.make_update(run)
        if eager:
            plain = update.update  # type: ignore[attr-defined]
            seen = [plain(b.to(run.sam.device), weight.cuda())[0].item() for b in batches]
        else:
            seen = [update(b, weight)[0].item() for b in batches]
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
