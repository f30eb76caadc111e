"""Pasting: all values of a pixel move together, and only between neighbours."""

from dataclasses import fields

import torch

from sfss_ray.method.class_mix import mix_classes
from sfss_ray.method.teacher_view import TeacherView


def drawn(batch=4, size=16, grid=4):
    """Return strong views that contain coordinates: channel 0 the sample, 1 the row, 2 the column."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    strong = torch.stack(
        [torch.stack([torch.full((size, size), b), rows, columns]) for b in range(batch)]
    ).float()
    tiles = torch.randint(0, 5, (batch, grid, grid), generator=generator)
    labels = tiles.repeat_interleave(size // grid, 1).repeat_interleave(size // grid, 2)
    ids = torch.randint(0, 4, (batch, size, size), generator=generator)
    view = TeacherView(
        probabilities=torch.rand(batch, 5, grid, grid, generator=generator),
        embeddings=torch.rand(batch, 3, grid, grid, generator=generator),
        labels=labels,
        confidence=torch.rand(batch, size, size, generator=generator),
        plausible=torch.rand(batch, 5, size, size, generator=generator).argsort(1)[:, :2],
        pixel_probabilities=torch.rand(batch, 5, size, size, generator=generator),
    )
    return {"strong": strong, "mask_ids": ids, "number": torch.arange(batch) + 40}, view


def test_nothing_is_mixed_at_probability_zero():
    batch, view = drawn()
    mixed, same = mix_classes(batch, view, 0.0, seed=0)
    assert torch.equal(mixed["strong"], batch["strong"])
    assert same is view


def test_all_values_of_a_pixel_move_together():
    batch, view = drawn()
    mixed, new = mix_classes(batch, view, 1.0, seed=0)
    pasted = 0
    for b in range(4):
        source = mixed["strong"][b, 0].long()  # which sample each pixel came from
        assert set(source.unique().tolist()) <= {b, b ^ 1}
        pasted += int((source != b).sum())
        # a pixel stays where it was
        assert torch.equal(mixed["strong"][b, 1:], batch["strong"][b, 1:])
        for name in ("labels", "confidence"):
            old = getattr(view, name)
            expected = torch.where(source == b, old[b], old[b ^ 1])
            assert torch.equal(getattr(new, name)[b], expected)
        for name in ("plausible", "pixel_probabilities"):
            old = getattr(view, name)
            assert torch.equal(getattr(new, name)[b], torch.where(source == b, old[b], old[b ^ 1]))
        # the grid has tiles of one label each, so a cell is pasted whole or not at all
        cells = source[::4, ::4] == b
        for name in ("probabilities", "embeddings"):
            old = getattr(view, name)
            assert torch.equal(getattr(new, name)[b], torch.where(cells, old[b], old[b ^ 1]))
    assert 0 < pasted < 4 * 16 * 16


def test_whole_classes_are_pasted_half_of_them():
    batch, view = drawn()
    mixed, _ = mix_classes(batch, view, 1.0, seed=3)
    for b in range(4):
        pasted = mixed["strong"][b, 0].long() != b
        labels = view.labels[b ^ 1]
        chosen = labels[pasted].unique()
        assert len(chosen) == (len(labels.unique()) + 1) // 2
        assert torch.equal(pasted, torch.isin(labels, chosen))


def test_pasted_masks_never_join_masks_of_the_crop():
    batch, view = drawn()
    mixed, _ = mix_classes(batch, view, 1.0, seed=0)
    for b in range(4):
        foreign = mixed["strong"][b, 0].long() != b
        pasted_ids, own_ids = mixed["mask_ids"][b][foreign], mixed["mask_ids"][b][~foreign]
        assert not (set(pasted_ids.unique().tolist()) - {0}) & set(own_ids.unique().tolist())
        original = batch["mask_ids"][b ^ 1][foreign]
        assert torch.equal(pasted_ids == 0, original == 0)
        for k in original.unique():
            assert len(pasted_ids[original == k].unique()) == 1


def test_a_worker_with_an_even_part_mixes_as_one_worker_with_all():
    batch, view = drawn()
    whole, _ = mix_classes(batch, view, 0.7, seed=5)
    for start in (0, 2):
        part = {name: values[start : start + 2] for name, values in batch.items()}
        view_of_part = TeacherView(
            *(
                getattr(view, field.name)[start : start + 2]
                for field in fields(TeacherView)
                if field.name != "metric"  # of the batch before it is mixed
            )
        )
        mixed, _ = mix_classes(part, view_of_part, 0.7, seed=5)
        assert torch.equal(mixed["strong"], whole["strong"][start : start + 2])


def test_a_crop_without_a_neighbour_stays():
    batch, view = drawn(batch=3)
    mixed, new = mix_classes(batch, view, 1.0, seed=0)
    assert torch.equal(mixed["strong"][2], batch["strong"][2])
    assert torch.equal(new.labels[2], view.labels[2])
    assert not torch.equal(mixed["strong"][0], batch["strong"][0])


def test_the_configured_share_of_crops_is_mixed_and_a_seed_repeats_its_draws():
    batch, view = drawn(batch=2)
    mixed = [
        mix_classes(batch | {"number": torch.tensor([2 * n, 2 * n + 1])}, view, 0.3, seed=0)[0]
        for n in range(150)
    ]
    share = sum(float((m["strong"][:, 0, 0, 0] >= 0).sum()) for m in mixed)  # all crops
    changed = sum(int((m["strong"][b] != batch["strong"][b]).any()) for m in mixed for b in (0, 1))
    assert 0.2 < changed / share < 0.4
    again = mix_classes(batch | {"number": torch.tensor([0, 1])}, view, 0.3, seed=0)[0]
    assert torch.equal(again["strong"], mixed[0]["strong"])
