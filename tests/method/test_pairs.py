"""Random scenes against slow loops, and what must hold of every draw whatever the random numbers."""

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from train_samples import KEY_STEP, RandomScene, pool_of, random_scene

from sfss_ray.config import PairConfig
from sfss_ray.method.cell_grid import cell_mask_ids
from sfss_ray.method.mask_table import MaskTable, Opinion, Origins, describe_masks
from sfss_ray.method.pairs import (
    Pairs,
    PrototypePool,
    allowed_negative_classes,
    draw_anchors,
    sample_pairs,
)

# A smaller seed is no simpler scene, so failures are not shrunk.
many_seeds = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
seeds = st.integers(0, 10**6)


def cells_by_counting(ids: np.ndarray, grid: tuple[int, int], share: float) -> np.ndarray:
    """Every id of every block is counted; sizes that do not divide are sampled to ones that do."""
    steps = [max(1, round(n / g)) for n, g in zip(ids.shape, grid, strict=True)]
    rows, columns = (
        (np.arange(g * s) * n) // (g * s) for g, s, n in zip(grid, steps, ids.shape, strict=True)
    )
    ids = ids[rows[:, None], columns]
    cells = np.zeros(grid, np.int64)
    for i, j in np.ndindex(*grid):
        block = ids[i * steps[0] : (i + 1) * steps[0], j * steps[1] : (j + 1) * steps[1]]
        for name, count in zip(*np.unique(block, return_counts=True), strict=True):
            if count >= share * block.size:
                cells[i, j] = name
    return cells


@pytest.mark.parametrize("share", [0.75, 0.51, 1.0])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((32, 48), (8, 12)), ((33, 47), (8, 12)), ((65, 65), (17, 17)), ((4, 6), (8, 6))],
)
def test_cells_take_the_id_that_has_enough_pixels(size, grid, share):
    rng = np.random.default_rng(0)
    names = np.array([0, 3, 4, 70_000])
    coarse = rng.choice(names, (2, size[0] // 4 + 1, size[1] // 4 + 1))
    ids = coarse.repeat(4, 1).repeat(4, 2)[:, : size[0], : size[1]].copy()
    stray = rng.random(ids.shape) < 0.12
    ids[stray] = rng.choice(names, stray.sum())
    found = cell_mask_ids(torch.from_numpy(ids), grid, share).numpy()
    for b in range(2):
        np.testing.assert_array_equal(found[b], cells_by_counting(ids[b], grid, share))
    assert (found > 0).any()


def test_exactly_three_quarters_are_enough():
    ids = torch.zeros(1, 4, 8, dtype=torch.long)
    ids[0, :3, :4] = 9  # 12 of 16 pixels
    ids[0, :3, 4:] = 7
    ids[0, 0, 4] = 0  # 11 of 16
    assert cell_mask_ids(ids, (1, 2), 0.75).tolist() == [[[9, 0]]]


def test_sizes_that_do_not_divide_keep_masks_in_place():
    ids = torch.ones(1, 67, 45, dtype=torch.long)
    ids[0, 30:, 20:] = 2
    cells = cell_mask_ids(ids, (17, 11), 0.75)[0]
    for i, j in np.ndindex(17, 11):
        rows = slice(max(0, int(i * 67 / 17) - 1), int((i + 1) * 67 / 17) + 2)
        columns = slice(max(0, int(j * 45 / 11) - 1), int((j + 1) * 45 / 11) + 2)
        around = ids[0, rows, columns].unique()
        if len(around) == 1:
            assert cells[i, j] == around[0]


def slow_statistics(scene: RandomScene, name: int, config: PairConfig) -> dict:
    """What the method says of one mask, cell by cell."""
    q, t = scene.probabilities.double().numpy(), scene.embeddings.double().numpy()
    cells = np.argwhere(scene.ids.numpy() == name)
    opinions = np.array([q[:, i, j] for i, j in cells])
    mean = opinions.mean(0)
    label = int(mean.argmax())
    sure = [o.argmax() for o in opinions if o.max() >= config.merged_confidence]
    shares = [sure.count(c) / len(cells) for c in range(len(mean))]
    merged = sum(share >= config.merged_share for share in shares) >= 2
    purity = float(np.mean([o.argmax() == label for o in opinions]))
    total = sum(o.max() * t[:, i, j] for o, (i, j) in zip(opinions, cells, strict=True))
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
        names = scene.ids[scene.ids > 0].unique().tolist()
        assert len(table) == len(names)
        for k, name in enumerate(names):
            expected = slow_statistics(scene, name, config)
            for field, value in expected.items():
                found = np.asarray(getattr(table, field)[k])
                np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5, err_msg=field)
            kind = next((n for n in ("reliable", "merged") if expected[n]), "neither")
            kinds[kind] += 1
    assert min(kinds.values()) >= 10, kinds


def test_the_cells_of_a_table_are_those_of_the_map():
    scene = random_scene(5)
    table = scene.table(PairConfig())
    flat = scene.ids.flatten()
    assert sorted(table.cells.tolist()) == (flat > 0).nonzero()[:, 0].tolist()
    names = flat[flat > 0].unique()
    assert torch.equal(flat[table.cells], names[table.owner])
    for k in range(len(table)):
        own = table.cells[table.start[k] : table.start[k] + table.count[k]]
        assert (flat[own] == names[k]).all()
        assert len(own) == (flat == names[k]).sum()
    best, label = scene.probabilities.flatten(1).max(0)
    assert np.array_equal(table.cell_confidence, best[table.cells])
    assert np.array_equal(table.cell_label, label[table.cells])


def test_few_cells_make_no_reliable_mask():
    ids = torch.zeros(4, 4, dtype=torch.long)
    ids[0], ids[1, :3] = 5, 8
    probabilities = torch.full((3, 4, 4), 0.02)
    probabilities[1] = 0.96
    vectors = F.normalize(torch.ones(16, 2), dim=1)
    opinion = Opinion.of(probabilities[None])
    asked = ids[None], opinion, vectors[None]
    (table,) = describe_masks(*asked, torch.full((3,), 0.9), PairConfig())
    assert table.reliable.tolist() == [True, False]
    (strict,) = describe_masks(*asked, torch.full((3,), 0.97), PairConfig())
    assert strict.reliable.tolist() == [False, False]


@many_seeds
@given(seed=seeds)
def test_relabelling_ids_changes_no_statistics(seed):
    scene = random_scene(seed)
    table = scene.table(PairConfig())
    names = scene.ids[scene.ids > 0].unique()
    new_names = 1 + torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    place = torch.searchsorted(names, scene.ids).clamp(max=len(names) - 1)
    renamed = RandomScene(**vars(scene) | {"ids": torch.where(scene.ids > 0, new_names[place], 0)})
    other = renamed.table(PairConfig())
    for field in ("count", "probabilities", "label", "purity", "confidence", "reliable", "merged"):
        found = getattr(other, field)[(new_names - 1).numpy()]
        assert np.array_equal(found, getattr(table, field)), field
    assert torch.equal(other.prototype[new_names - 1], table.prototype)


def as_tensors(record: Any) -> Any:
    """A record whose arrays are tensors, to be judged beside those of a scene and of pairs."""
    values = {f.name: torch.as_tensor(getattr(record, f.name)) for f in fields(record)}
    return SimpleNamespace(**values)


@dataclass
class Draw:
    """One call of `sample_pairs` with all that is needed to judge it."""

    scene: RandomScene
    drawn_from: tuple[MaskTable, PrototypePool]
    table: Any  # as tensors, as the next
    pool: Any
    pairs: Pairs
    mask: torch.Tensor  # (A,) mask index of each anchor
    hard: torch.Tensor  # (M,) per cell of the table

    @property
    def sample_key(self) -> int:
        return KEY_STEP  # the pool's image 1


def draw(seed: int, config: PairConfig, bank: int = 10, **shape) -> Draw:
    """Pairs of image 1 of three."""
    scenes = [random_scene(seed * 10 + i, **shape) for i in range(3)]
    tables = [scene.table(config) for scene in scenes]
    pool = pool_of(tables, bank, len(scenes[1].thresholds), seed)
    return finish_draw(scenes[1], tables[1], pool, config, seed)


def finish_draw(scene, table, pool, config, seed, image=1) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    chosen = draw_anchors(table, scene.student_label, scene.thresholds, config, generator)
    vectors = scene.student()[table.cells[chosen]]
    origins = Origins.alone(table, image, image * KEY_STEP)
    area = scene.ids.numel()
    pairs = sample_pairs([table], [chosen], pool, [origins], vectors, area, config, [generator])
    position = torch.full((scene.ids.numel(),), -1)
    seen = as_tensors(table)
    position[seen.cells] = torch.arange(len(seen.cells))
    label = seen.label[seen.owner]
    hard = (scene.student_label[seen.cells] != label) | (
        seen.cell_confidence < scene.thresholds[label]
    )
    mask = seen.owner[position[pairs.anchors]]
    return Draw(scene, (table, pool), seen, as_tensors(pool), pairs, mask, hard)


@many_seeds
@given(seed=seeds, classes=st.integers(2, 20), bank=st.sampled_from([0, 1, 60]))
def test_no_negative_is_of_a_class_the_mask_may_have(seed, classes, bank):
    config = PairConfig(negatives=40)
    d = draw(seed, config, bank, classes=classes)
    negative_class = d.pool.classes[d.pairs.negatives]
    for a, mask in enumerate(d.mask.tolist()):
        likely = 1 if d.table.reliable[mask] else min(3, classes - 1)
        top = set(d.table.probabilities[mask].topk(likely).indices.tolist())
        drawn = set(negative_class[a][d.pairs.negative_valid[a]].tolist())
        assert not drawn & top
        assert drawn or set(d.pool.classes.tolist()) <= top  # none only where none is allowed


def test_a_reliable_mask_never_has_its_own_class_among_negatives_even_in_a_tie():
    scene = random_scene(0, classes=19)
    table = scene.table(PairConfig(min_cells=1))
    tied = np.full_like(table.probabilities, 1 / 19)
    table = MaskTable(**vars(table) | {"probabilities": tied, "label": tied.argmax(1)})
    allowed = allowed_negative_classes(table, 3)
    own = np.take_along_axis(allowed, table.label[:, None], 1)
    assert not own.any()


@many_seeds
@given(seed=seeds, positives=st.integers(1, 9), bank=st.sampled_from([0, 3, 60]))
def test_positives_are_other_cells_and_other_masks(seed, positives, bank):
    d = draw(seed, PairConfig(positives=positives, negatives=4), bank)
    flat = d.scene.ids.flatten()
    for a, mask in enumerate(d.mask.tolist()):
        cells = d.pairs.instance_positives[a]
        assert len(cells) == positives
        assert (cells != d.pairs.anchors[a]).all()
        assert (flat[cells] == flat[d.pairs.anchors[a]]).all()
        chosen = d.pairs.class_positives[a][d.pairs.class_valid[a]]
        assert (d.pool.classes[chosen] == d.table.label[mask]).all()
        assert (d.pool.keys[chosen] != d.sample_key + mask).all()
        judge_validity(d, a, mask)


def judge_validity(d: Draw, a: int, mask: int) -> None:
    """All slots are filled where anything can fill them, half of them from other images."""
    same = d.pool.classes == d.table.label[mask]
    candidates = same & (d.pool.keys != d.sample_key + mask)
    valid = d.pairs.class_valid[a]
    if not d.table.reliable[mask] or not candidates.any():
        assert not valid.any()
        return
    assert valid.all()
    elsewhere = d.pool.images[d.pairs.class_positives[a]] != 1
    if (same & (d.pool.images != 1)).any():
        assert 2 * int(elsewhere.sum()) >= len(valid)


def test_every_candidate_can_be_drawn_as_a_positive():
    config = PairConfig(positives=64, negatives=4, anchors_per_mask=16)
    d = draw(4, config, bank=12, masks=12, classes=3)
    reached = 0
    for mask in d.mask.unique().tolist():
        if not d.table.reliable[mask]:
            continue
        own = d.sample_key + mask
        same = (d.pool.classes == d.table.label[mask]) & (d.pool.keys != own)
        drawn = d.pairs.class_positives[d.mask == mask].unique()
        assert set(drawn.tolist()) == set(same.nonzero()[:, 0].tolist())
        reached += 1
    assert reached >= 3


@many_seeds
@given(seed=seeds, per_mask=st.integers(1, 20))
def test_anchors_per_mask_are_limited_and_half_of_them_hard(seed, per_mask):
    config = PairConfig(anchors_per_mask=per_mask, anchors_per_image=10_000, negatives=4)
    d = draw(seed, config)
    anchors = d.pairs.anchors
    assert len(anchors.unique()) == len(anchors)
    is_anchor = torch.isin(d.table.cells, anchors)
    for k in range(len(d.table.count)):
        own = d.table.owner == k
        hard, easy = (int((own & kind).sum()) for kind in (d.hard, ~d.hard))
        chosen_hard, chosen_easy = (int((own & k & is_anchor).sum()) for k in (d.hard, ~d.hard))
        if d.table.merged[k] or d.table.count[k] < 2:
            assert chosen_hard + chosen_easy == 0
            continue
        assert chosen_hard + chosen_easy == min(per_mask, hard + easy)
        assert chosen_hard >= min(hard, per_mask // 2)
        assert chosen_easy >= min(easy, per_mask - per_mask // 2)


def test_merged_masks_occur_and_give_no_anchors():
    config = PairConfig(merged_confidence=0.5, negatives=4)
    merged = 0
    for seed in range(5):
        d = draw(seed, config)
        merged += int(d.table.merged.sum())
        assert not d.table.merged[d.mask].any()
        assert not (d.table.merged & d.table.reliable).any()
    assert merged >= 5


def test_an_image_gives_at_most_its_anchors():
    few = draw(1, PairConfig(anchors_per_image=7, negatives=4))
    assert len(few.pairs.anchors) == 7
    assert len(few.mask.unique()) > 1


def two_masks() -> RandomScene:
    """One image with a mask of 16 cells and one of 256, of two classes, all of it sure."""
    ids = torch.cat([torch.full((16, 1), 1), torch.full((16, 16), 2)], 1)
    probabilities = torch.full((2, 16, 17), 0.01)
    probabilities[0, :, 0], probabilities[1, :, 1:] = 0.99, 0.99
    embeddings = F.normalize(torch.ones(2, 16, 17), dim=0)
    return RandomScene(ids, probabilities, embeddings, torch.full((2,), 0.5), ids.flatten() - 1)


def test_masks_win_anchors_in_proportion_to_their_weight():
    # 16 cells of each mask stand for election (all easy), at weights 1/16 and 1/256.
    scene = two_masks()
    config = PairConfig(anchors_per_image=1, negatives=1)
    table = scene.table(config)
    pool = pool_of([table], 0, 2)
    draws = [finish_draw(scene, table, pool, config, seed, image=0) for seed in range(600)]
    large = sum(int(d.mask[0]) for d in draws) / len(draws)
    assert large == pytest.approx(1 / 17, abs=0.03)  # three standard deviations


def test_negatives_are_uniform_over_classes_and_semi_hard():
    config = PairConfig(negatives=400, anchors_per_image=8, unlabelled_top_k=1)
    d = draw(6, config, bank=200, classes=4, masks=12)
    vectors = torch.cat([d.pool.vectors, d.pool.vectors[d.pool.classes == 2].repeat(30, 1)])
    classes = torch.cat([d.pool.classes, torch.full((len(vectors) - len(d.pool.vectors),), 2)])
    absent = np.full(len(vectors), -1)
    pool = PrototypePool.build(vectors, classes.numpy(), absent + 50, absent, 4)
    d = finish_draw(d.scene, d.drawn_from[0], pool, config, 3)
    student = d.scene.student()[d.pairs.anchors]
    similarity = (student @ pool.vectors.T).gather(1, d.pairs.negatives)
    uniform, semi_hard = similarity[:, :200], similarity[:, 200:]
    assert (semi_hard.mean(1) > uniform.mean(1) + 0.2).all()
    drawn = d.pool.classes[d.pairs.negatives[:, :200]]
    for a in range(len(drawn)):
        share = torch.bincount(drawn[a], minlength=4) / 200
        assert share[share > 0].min() > 1 / 3 - 0.12  # class 2 holds nearly all of the pool
        assert share.max() < 1 / 3 + 0.12


def same_pairs(one: Pairs, other: Pairs) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Pairs))


@many_seeds
@given(seed=seeds)
def test_renaming_ids_in_order_and_shuffling_the_pool_changes_no_pair(seed):
    config = PairConfig(negatives=16)
    d = draw(seed, config, bank=0)
    renamed = RandomScene(**vars(d.scene) | {"ids": d.scene.ids * 3 + (d.scene.ids > 0)})
    known = d.drawn_from[1]
    order = np.random.default_rng(seed).permutation(len(known.keys))
    parts = (known.vectors, known.classes, known.images, known.keys)
    pool = PrototypePool.build(*(part[order] for part in parts), len(d.scene.thresholds))
    again = finish_draw(renamed, renamed.table(config), pool, config, seed)
    assert same_pairs(again.pairs, d.pairs)


def test_masks_and_pairs_of_a_batch_are_those_of_its_images():
    config = PairConfig(negatives=16, anchors_per_image=60)
    scenes = [random_scene(seed) for seed in range(3)]
    scenes[1] = RandomScene(**vars(scenes[1]) | {"ids": torch.zeros_like(scenes[1].ids)})
    bound, area = scenes[0].thresholds, scenes[0].ids.numel()
    scenes = [RandomScene(**vars(scene) | {"thresholds": bound}) for scene in scenes]
    alone = [scene.table(config) for scene in scenes]
    tables = describe_masks(
        torch.stack([scene.ids for scene in scenes]),
        Opinion.of(torch.stack([scene.probabilities for scene in scenes])),
        torch.stack([scene.embeddings.flatten(1).T for scene in scenes]),
        bound,
        config,
    )
    for together, single in zip(tables, alone, strict=True):
        for f in fields(MaskTable):
            assert np.array_equal(getattr(together, f.name), getattr(single, f.name)), f.name
    pool = pool_of(tables, 20, len(bound))
    singles = [finish_draw(scenes[b], alone[b], pool, config, b, image=b).pairs for b in range(3)]
    generators = [torch.Generator().manual_seed(b) for b in range(3)]
    chosen = [
        draw_anchors(table, scene.student_label, bound, config, generator)
        for table, scene, generator in zip(tables, scenes, generators, strict=True)
    ]
    vectors = torch.cat(
        [s.student()[t.cells[own]] for s, t, own in zip(scenes, tables, chosen, strict=True)]
    )
    origins = [Origins.alone(table, b, b * KEY_STEP) for b, table in enumerate(tables)]
    pairs = sample_pairs(tables, chosen, pool, origins, vectors, area, config, generators)
    assert [len(one.anchors) for one in singles] == [60, 0, 60]
    for f in fields(Pairs):
        shift = area if f.name in ("anchors", "instance_positives") else 0
        expected = torch.cat([getattr(one, f.name) + shift * b for b, one in enumerate(singles)])
        torch.testing.assert_close(getattr(pairs, f.name), expected, check_dtype=False)


def test_pairs_depend_on_the_generator_alone():
    config = PairConfig(negatives=16)
    first, again, other = draw(2, config), draw(2, config), draw(2, config)
    torch.rand(100)
    other = finish_draw(other.scene, *other.drawn_from, config, seed=99)
    assert same_pairs(first.pairs, again.pairs)
    assert not same_pairs(first.pairs, other.pairs)


def test_the_own_cell_can_be_taken_out_of_its_masks_sum():
    config = PairConfig(negatives=4)
    d = draw(3, config)
    t = d.scene.embeddings.flatten(1).T
    confidence = d.scene.probabilities.flatten(1).max(0).values
    flat = d.scene.ids.flatten()
    for a, cell in enumerate(d.pairs.anchors.tolist()):
        others = (flat == flat[cell]).nonzero()[:, 0]
        others = others[others != cell]
        expected = (confidence[others, None] * t[others]).sum(0)
        found = d.pairs.instance_prototype_sum[a] - d.pairs.own_weight[a] * t[cell]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weight_of_the_class_loss_is_purity_times_confidence():
    d = draw(3, PairConfig(negatives=4))
    expected = d.table.purity * d.table.confidence
    expected[~d.table.reliable] = 0
    assert torch.equal(d.pairs.class_weight, expected[d.mask])
    assert (d.pairs.class_weight == 0).any()
    assert (d.pairs.class_weight > 0).any()


def test_an_image_without_masks_gives_no_pairs():
    scene = random_scene(0)
    empty = RandomScene(**vars(scene) | {"ids": torch.zeros_like(scene.ids)})
    table = empty.table(PairConfig())
    assert len(table) == 0
    for pool in (pool_of([table], 0, 6), pool_of([table], 20, 6)):
        d = finish_draw(empty, table, pool, PairConfig(), 0)
        assert len(d.pairs.anchors) == 0
        assert d.pairs.negatives.shape == (0, 512)


def test_an_empty_pool_gives_anchors_without_valid_pairs():
    scene = random_scene(0)
    table = scene.table(PairConfig())
    nothing = np.zeros(0, np.int64)
    pool = PrototypePool.build(torch.zeros(0, 5), nothing, nothing, nothing, 6)
    d = finish_draw(scene, table, pool, PairConfig(), 0)
    assert len(d.pairs.anchors) > 0
    assert not d.pairs.negative_valid.any()
    assert not d.pairs.class_valid.any()
