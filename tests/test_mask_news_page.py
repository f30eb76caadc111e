"""The figures on the page about what masks know are those of the records beside the studies."""

from __future__ import annotations

import statistics

import pytest
from mask_news import (
    LATER,
    OTHER_REGIONS,
    PAGE,
    PAIRS,
    gains_over,
    last_steps,
    page_text,
    short,
    spread,
)
from result_pages import PAGES, RECORDS, ROOT, rows_of, table

GAINING = [name for name in PAIRS if name != "CamVid, day to dusk"]
SPACES = {
    "vote: the mask's own evidence": ("vote", None),
    "nearest class prototype": ("nearest class prototype", None),
    "neighbours by the teacher's features": ("features", 1.0),
    "by geometry": ("geometry", 1.0),
    "by both": ("both", 1.0),
    "in a space learned without labels": ("learned", 1.0),
    "by SAM's embedding": ("sam", 1.0),
    "by SAM's embedding and geometry": ("sam and geometry", 1.0),
    "by chance (control)": ("random masks (control)", 1.0),
    "true majority of each mask": ("true majority", None),
}


def label_mious(record: str) -> dict[tuple[str, float | None], float]:
    rows = [row for row in rows_of(record) if "labels" in row]
    return {(row["labels"], row.get("weight")): row["miou"] for row in rows}


def label_gains(pair: str, name: str, weight: float | None = 1.0) -> float:
    mious = label_mious(f"pair_news_{pair}_small_sam")
    return mious[name, weight] - mious["vote", None]


@pytest.mark.parametrize("number", [0, 1])
def test_labels_of_masks_are_those_of_the_records(number):
    records = [[f"pair_news_{pair}_small_sam" for pair in PAIRS.values()], OTHER_REGIONS.values()]
    rows = table(PAGE, "Labels of masks", number)
    assert [row[0] for row in rows] == list(SPACES)
    for column, record in enumerate(records[number], start=1):
        mious = label_mious(record)
        vote = mious["vote", None]
        assert rows[0][column] == f"{vote:.1f}"
        for row in rows[1:]:
            miou = mious[SPACES[row[0]]]
            assert row[column] == f"{miou:.1f} ({miou - vote:+.1f})"


def test_what_the_page_says_of_labels_is_what_its_tables_say():
    text = page_text()
    twice = [f"{label_gains(pair, 'sam', 2.0):.1f}" for pair in PAIRS.values()]
    assert f"At weight 2 the gains are {', '.join(twice[:3])} and {twice[3]} points" in text
    prototype = {n: label_gains(p, "nearest class prototype", None) for n, p in PAIRS.items()}
    best = {n: max(label_gains(p, *key) for key in SPACES.values() if key[0] != "true majority")
            for n, p in PAIRS.items()}  # fmt: skip
    for name in ("ESPNet, dusk", "CamVid, day to dusk"):
        assert prototype[name] == best[name]
    assert all(prototype[name] < 0 for name in ("drawn streets", "ESPNetv2 1.0, dusk"))
    true_regions = label_mious(OTHER_REGIONS["drawn streets, true regions"])
    corrected = true_regions["sam and geometry", 1.0] - true_regions["vote", None]
    assert f"geometry together correct {corrected:.1f} points" in text
    three = (("vote", None), ("features", 1.0), ("geometry", 1.0))
    of_scenes = [f"{true_regions[key]:.1f}" for key in three]
    assert f"these scenes have {of_scenes[0]}, {of_scenes[1]} and {of_scenes[2]}" in text
    record = rows_of("pair_news_streets_small_sam")
    of_majority = {
        (row["labels"], row.get("weight")): row["miou_of_majority"]
        for row in record
        if "labels" in row
    }
    counted = [f"{of_majority[key]:.1f}" for key in three]
    assert f"have {counted[0]}, {counted[1]} and {counted[2]}, the same gains" in text


KEPT = ("mIoU of all", "kept", "right", "changed", "changed and kept", "right of these", "classes")


def test_labels_that_a_training_keeps_are_those_of_the_records():
    rows = table(PAGE, "From labels to training")
    records = {name: rows_of(f"kept_labels_{pair}") for name, pair in PAIRS.items()}
    expected = [(name, row) for name, record in records.items() for row in record]
    for (name, labels, *cells), (pair, row) in zip(rows, expected, strict=True):
        assert (name, labels) == (pair, row["labels"])
        assert cells == ["" if row[key] is None else f"{row[key]:.1f}" for key in KEPT]
    means = [row for _, row in expected if row["labels"].endswith("mean")]
    assert max(row["changed and kept"] for row in means) < 0.65
    changed = [row["changed"] for row in means]
    text = page_text()
    assert f"of {min(changed):.1f} to {max(changed):.1f} % that change" in text
    by_label = {(name, row["labels"]): row for name, row in expected}
    ours = [by_label[name, "SAM's embedding, weight 2, sum"] for name in GAINING]
    chance = [by_label[name, "chance (control), weight 2, sum"] for name in PAIRS]
    shares = [row["changed and kept"] for row in ours]
    assert f"{min(shares):.1f} to {max(shares):.1f} % are changed and kept on three" in text
    for kept_rows, ending in ((ours, " More"), (chance, "")):
        right = [round(row["right of these"]) for row in kept_rows]
        assert f"{min(right)} to {max(right)} % of these are right.{ending}" in text
    lost, own = (
        by_label["CamVid, day to dusk", labels]
        for labels in ("SAM's embedding, weight 2, sum", "own evidence")
    )
    assert (
        f"{short(lost['changed and kept'])} % are changed and kept, and"
        f" {lost['right of these']:.0f} % of these are right" in text
    )
    assert f"{lost['right']:.1f} % instead of {own['right']:.1f} %" in text


WITH_NEIGHBOURS = (
    "vote",
    "sum_by_sam_twice",
    "agreeing_twice",
    "sum_by_chance_twice",
    "agreeing_by_chance_twice",
)


def test_trainings_with_neighbours_end_where_the_records_say():
    rows = table(PAGE, "From labels to training", 1)
    gains = {}
    for (name, *cells), pair in zip(rows, (PAIRS | LATER).values(), strict=True):
        vote, everywhere, agreeing, *by_chance = (
            last_steps("news", pair, f"{key}_small_sam") for key in WITH_NEIGHBOURS
        )
        assert list(vote) == list(agreeing) == [0, 1, 2]
        assert cells == [
            f"{last_steps('news', pair, 'source_only')[0]:.1f}",
            spread(vote),
            spread(everywhere),
            gains_over(vote, everywhere),
            spread(agreeing),
            gains_over(vote, agreeing),
            *(gains_over(vote, chance) for chance in by_chance),
        ]
        gains[name] = [everywhere[seed] - vote[seed] for seed in everywhere]
    three = [gain for name in GAINING for gain in gains[name]]
    assert min(three) > 0
    lost = sorted(-gain for gain in gains["CamVid, day to dusk"])
    assert lost[0] > 0
    gained = f"{short(min(three))} to {short(max(three))} points on three pairs"
    span = f"{lost[0]:.1f} to {lost[-1]:.1f}"
    text = page_text()
    assert f"gain {gained}, in every seed, and lose {span} on" in text
    heard = {
        name: [ours[seed] - vote[seed] for seed in ours]
        for name, pair in (PAIRS | LATER).items()
        for vote, ours in [
            [last_steps("news", pair, f"{key}_small_sam") for key in ("vote", "agreeing_twice")]
        ]
    }
    means = [short(statistics.fmean(changes)) for changes in heard.values()]
    changes = [change for pair_changes in heard.values() for change in pair_changes]
    losing = sum(change < 0 for change in changes)
    assert (
        f"gain {', '.join(means[:3])} and {means[3]} points on average on four pairs, and"
        f" {means[4]} and {means[5]} on two that were run after the choice. {losing} of"
        f" {len(changes)} trainings lose" in text
    )
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"add {', '.join(means[:5])} and {means[5]} points on six pairs" in readme


def test_neighbours_by_chance_gain_what_the_page_says():
    means = []
    for pair in PAIRS.values():
        vote, chance = (
            last_steps("news", pair, f"{key}_small_sam")
            for key in ("vote", "agreeing_by_chance_twice")
        )
        means.append(statistics.fmean(miou - vote[seed] for seed, miou in chance.items()))
    streets, camvid, espnetv2, espnet = (short(-mean) for mean in means)
    sentence = f"lose {streets} points on drawn streets, {camvid} on CamVid and {espnet} on ESPNet"
    assert f"{sentence}, and change nothing on ESPNetv2 1.0" in page_text()
    assert espnetv2 in (".0", "-.0")


def test_trainings_with_true_regions_end_where_the_records_say():
    rows = table(PAGE, "From labels to training", 2)
    assert [row[0] for row in rows] == ["drawn streets", "CamVid, day to dusk"]
    for name, *cells in rows:
        vote, agreeing, everywhere = (
            last_steps("news", PAIRS[name], f"{key}_ground_truth")
            for key in ("vote", "agreeing_twice", "sum_by_sam_twice")
        )
        assert vote.keys() == agreeing.keys()
        gains = gains_over(vote, agreeing), gains_over(vote, everywhere)
        assert cells == [spread(vote), spread(agreeing), *gains]


def test_the_whole_method_ends_where_the_records_say():
    rows, contrast = table(PAGE, "From labels to training", 3), []
    for (name, *cells), pair in zip(rows, PAIRS.values(), strict=True):
        vote, without, full = (
            last_steps("news", pair, f"{key}_small_sam")
            for key in ("vote", "agreeing_twice", "full_neighbours")
        )
        assert list(vote) == list(without) == list(full) == [0, 1, 2], name
        assert cells == [spread(vote), spread(without), spread(full), gains_over(vote, full)]
        mean = statistics.fmean(full[seed] - without[seed] for seed in full)
        contrast.append(short(mean).replace("-.0", ".0"))
    added = (
        f"{contrast[0]} points to drawn streets, {contrast[1]} to CamVid, {contrast[2]} to ESPNetv2"
    )
    assert f"The contrast adds {added} and {contrast[3]} to ESPNet" in page_text()
    full = last_steps("news", "streets", "full_neighbours_small_sam")
    index = (PAGES / "index.md").read_text()
    assert f"| drawn streets, 600 scenes | 44.4 | 48.0 ± 0.3 | {spread(full)} | small SAM" in index
    readme = (ROOT / "README.md").read_text()
    assert f"600 scenes, 17 classes | 44.4 | 48.0 ± 0.3 | **{spread(full)}** | small SAM" in readme


def test_the_mean_of_evidence_and_opinion_loses():
    text = page_text()
    with_mean = [
        last_steps("news_mean", PAIRS[name], "neighbours_by_sam_small_sam")[0]
        for name in ("drawn streets", "ESPNetv2 1.0, dusk")
    ]
    vote = [
        last_steps("news", PAIRS[name], "vote_small_sam")[0]
        for name in ("drawn streets", "ESPNetv2 1.0, dusk")
    ]
    assert f"loses: {with_mean[0]:.1f} on drawn streets and {with_mean[1]:.1f} on" in text
    assert f"the vote alone has {vote[0]:.1f} and {vote[1]:.1f}." in text


def test_classes_that_agreeing_pixels_save_are_those_of_the_record():
    record = rows_of("news_streets")
    classes = {"pole": 5, "bus": 15}

    def mean_iou(key: str, index: int) -> float:
        (row,) = [row for row in record if row["key"] == key]
        return statistics.fmean(entry["per_class"][index] for entry in row["seeds"])

    lost = {
        key: [
            round(mean_iou("vote_small_sam", i) - mean_iou(f"{key}_small_sam", i))
            for i in classes.values()
        ]
        for key in ("sum_by_sam_twice", "agreeing_twice")
    }
    first, second = lost["sum_by_sam_twice"], lost["agreeing_twice"]
    text = page_text()
    assert f"With all pixels pole and bus lose {first[0]} and {first[1]} points" in text
    assert f"With the agreeing ones they lose {second[0]} and {second[1]}." in text


def test_every_record_of_the_page_is_there():
    names = [f"kept_labels_{pair}" for pair in PAIRS.values()]
    names += [f"pair_news_{pair}_small_sam" for pair in PAIRS.values()]
    assert all((RECORDS / f"{name}.md").is_file() for name in [*names, *OTHER_REGIONS.values()])
