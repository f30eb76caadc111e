"""Masks described by the teacher's predictions, against a slow loop."""

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given
from pair_draws import many_seeds, seeds
from torch.nn import functional as F
from train_samples import RandomScene, random_scene

from sfss_ray.config import PairConfig
from sfss_ray.method.mask_table import CellPredictions, MaskOrigins, MaskTable, describe_masks


def slow_statistics(scene: RandomScene, mask_id: int, config: PairConfig) -> dict:
    """Describe one mask cell by cell."""
    q, t = scene.probabilities.double().numpy(), scene.embeddings.double().numpy()
    cells = np.argwhere(scene.ids.numpy() == mask_id)
    cell_probabilities = np.array([q[:, i, j] for i, j in cells])
    mean = cell_probabilities.mean(0)
    label = int(mean.argmax())
    sure = [p.argmax() for p in cell_probabilities if p.max() >= config.merged_confidence]
    shares = [sure.count(c) / len(cells) for c in range(len(mean))]
    merged = sum(share >= config.merged_share for share in shares) >= 2
    purity = float(np.mean([p.argmax() == label for p in cell_probabilities]))
    total = sum(p.max() * t[:, i, j] for p, (i, j) in zip(cell_probabilities, cells, strict=True))
    return {
        "probabilities": mean,
        "label": label,
        "purity": purity,
        "confidence": mean[label],
        "count": len(cells),
        "merged": merged,
        "reliable": (
            len(cells) >= config.min_cells
            and purity >= config.min_purity
            and mean[label] >= scene.thresholds[label].item()
            and not merged
        ),
        "weighted_sum": total,
        "prototype": total / np.linalg.norm(total),
    }


def test_masks_are_described_as_a_slow_loop_does():
    config = PairConfig(merged_confidence=0.7)
    kinds = {"reliable": 0, "merged": 0, "neither": 0}
    for seed in range(12):
        scene = random_scene(seed)
        table = scene.table(config)
        mask_ids = scene.ids[scene.ids > 0].unique().tolist()
        assert len(table) == len(mask_ids)
        for k, mask_id in enumerate(mask_ids):
            expected = slow_statistics(scene, mask_id, config)
            for field, value in expected.items():
                actual = np.asarray(getattr(table, field)[k])
                np.testing.assert_allclose(actual, value, rtol=1e-4, atol=1e-5, err_msg=field)
            kind = next((n for n in ("reliable", "merged") if expected[n]), "neither")
            kinds[kind] += 1
    assert min(kinds.values()) >= 10, kinds


def test_the_cells_of_a_table_are_those_of_the_map():
    scene = random_scene(5)
    table = scene.table(PairConfig())
    flat = scene.ids.flatten()
    assert sorted(table.cells.tolist()) == (flat > 0).nonzero()[:, 0].tolist()
    mask_ids = flat[flat > 0].unique()
    assert torch.equal(flat[table.cells], mask_ids[table.owner])
    for k in range(len(table)):
        cells = table.cells[table.start[k] : table.start[k] + table.count[k]]
        assert (flat[cells] == mask_ids[k]).all()
        assert len(cells) == (flat == mask_ids[k]).sum()
    best, label = scene.probabilities.flatten(1).max(0)
    assert np.array_equal(table.cell_confidence, best[table.cells])
    assert np.array_equal(table.cell_label, label[table.cells])


def test_few_cells_make_no_reliable_mask():
    ids = torch.zeros(4, 4, dtype=torch.long)
    ids[0], ids[1, :3] = 5, 8
    probabilities = torch.full((3, 4, 4), 0.02)
    probabilities[1] = 0.96
    vectors = F.normalize(torch.ones(16, 2), dim=1)
    inputs = ids[None], CellPredictions.of(probabilities[None]), vectors[None]
    (table,) = describe_masks(*inputs, torch.full((3,), 0.9), PairConfig())
    assert table.reliable.tolist() == [True, False]
    (strict,) = describe_masks(*inputs, torch.full((3,), 0.97), PairConfig())
    assert strict.reliable.tolist() == [False, False]


@many_seeds
@given(seed=seeds)
def test_renaming_mask_ids_changes_no_statistics(seed):
    scene = random_scene(seed)
    table = scene.table(PairConfig())
    old_ids = scene.ids[scene.ids > 0].unique()
    new_ids = 1 + torch.randperm(len(old_ids), generator=torch.Generator().manual_seed(seed))
    index = torch.searchsorted(old_ids, scene.ids).clamp(max=len(old_ids) - 1)
    renamed = RandomScene(**vars(scene) | {"ids": torch.where(scene.ids > 0, new_ids[index], 0)})
    other = renamed.table(PairConfig())
    for field in ("count", "probabilities", "label", "purity", "confidence", "reliable", "merged"):
        reordered = getattr(other, field)[(new_ids - 1).numpy()]
        assert np.array_equal(reordered, getattr(table, field)), field
    assert torch.equal(other.prototype[new_ids - 1], table.prototype)


def test_a_batch_is_described_as_its_images_are():
    config = PairConfig()
    scenes = [random_scene(seed) for seed in range(3)]
    scenes[1] = RandomScene(**vars(scenes[1]) | {"ids": torch.zeros_like(scenes[1].ids)})
    thresholds = scenes[0].thresholds
    tables = describe_masks(
        torch.stack([scene.ids for scene in scenes]),
        CellPredictions.of(torch.stack([scene.probabilities for scene in scenes])),
        torch.stack([scene.embeddings.flatten(1).T for scene in scenes]),
        thresholds,
        config,
    )
    for scene, table in zip(scenes, tables, strict=True):
        single = RandomScene(**vars(scene) | {"thresholds": thresholds}).table(config)
        for f in fields(MaskTable):
            assert np.array_equal(getattr(table, f.name), getattr(single, f.name)), f.name
    assert len(tables[1]) == 0


def test_predictions_of_a_tie_are_the_first_class():
    probabilities = torch.tensor([[[[0.25, 0.1]], [[0.5, 0.45]], [[0.25, 0.45]]]])
    predictions = CellPredictions.of(probabilities)
    assert predictions.labels.tolist() == [[1, 1]]
    torch.testing.assert_close(predictions.confidence, torch.tensor([[0.5, 0.45]]))
    assert predictions.probabilities.shape == (1, 2, 3)


def test_masks_of_an_unmixed_image_are_at_home_under_consecutive_keys():
    table = random_scene(1).table(PairConfig())
    origins = MaskOrigins.unmixed(table, image=7, first_key=100)
    assert origins.keys.tolist() == list(range(100, 100 + len(table)))
    assert set(origins.images.tolist()) == {7}
    assert origins.at_home.all()
