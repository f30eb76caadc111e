"""The figures on the pages of results are those of the records beside the studies."""

from __future__ import annotations

import collections
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from sfss_ray.config import TrainConfig
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "results"
RECORDS = ROOT / "experiments" / "studies" / "results"
FOREIGN = {
    "ESPNetv2, width 1.0": "espnetv2_s_1_0_city_1024x512",
    "ESPNetv2, width 2.0": "espnetv2_s_2_0_city_1024x512",
    "ESPNet": "espnet_p_2_q_8",
}
"""Name of a model on the page -> in file names of records."""
DELIVERED_SHARE = 0.25


def table(page: str, section: str, number: int = 0) -> list[list[str]]:
    """Return the cells of a table without its header: the number-th one below a heading of a page."""
    text = (PAGES / page).read_text()
    (below,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.M)
    found = re.findall(r"(?:^\|.*\|\n)+", below, re.M)[number]
    rows = [
        [cell.strip().strip("*") for cell in line[1:-1].split("|")] for line in found.splitlines()
    ]
    assert set("".join(rows[1])) == {"-"}
    return rows[2:]


def rows_of(record: str) -> list[dict]:
    return json.loads((RECORDS / f"{record}.json").read_text())["rows"]


def mean_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def shares_record(model: str, light: str) -> list[dict]:
    return rows_of(f"source_shares_cityscapes2camvid_{light}_{FOREIGN[model]}_felzenszwalb")


def delivered(rows: list[dict]) -> list[dict]:
    """Return the students of all seeds with the default share of the source model."""
    return [row for row in rows if row.get("share") == DELIVERED_SHARE]


def test_foreign_models_end_where_the_records_say(experiment):
    rows = table("foreign-models.md", "Results")
    assert [row[0] for row in rows] == 2 * list(FOREIGN)
    for model, light, source_only, adapted, gain, gains, teacher, lost in rows:
        record = shares_record(model, light)
        source = next(row["miou"] for row in record if row["network"] == "source-only")
        mious = [row["miou"] for row in delivered(record)]
        assert len(mious) == 3
        assert source_only == f"{source:.1f}"
        assert adapted == mean_and_spread(mious)
        assert gain == f"{statistics.fmean(mious) - source:+.1f}"
        assert gains == ", ".join(f"{miou - source:+.1f}" for miou in mious)
        teachers = [row["miou"] for row in record if row["network"] == "teacher"]
        assert teacher == mean_and_spread(teachers)
        before = next(row for row in record if row["network"] == "source-only")
        worst = experiment("class_losses").worst_class
        assert lost == worst(delivered(record), before, CAMVID_11.classes)


def test_plain_runs_end_where_the_records_say(experiment):
    rows = table("foreign-models.md", "Plain runs")
    assert len(rows) == len(list(RECORDS.glob("plain_city*.json")))
    for model, target, images, source_only, adapted, gains, verdicts, lost in rows:
        light, _, part = target.partition(", ")
        pair = "cityscapes" if light == "Cityscapes" else f"cityscapes2camvid_{light}"
        ending = "_every_8" if part == "every eighth" else ""
        record = rows_of(f"plain_{pair}_{FOREIGN[model]}{ending}")
        source = [row["miou"] for row in record if row["network"] == "source-only"]
        students = [row for row in record if row["network"] == "student"]
        mious = [row["miou"] for row in students]
        assert [row["seed"] for row in students] == [0, 1, 2]
        assert images == f"{students[0]['images']} ({students[0]['held_out']})"
        assert source_only == f"{source[0]:.1f}"
        assert adapted == mean_and_spread(mious)
        differences = [f"{b - a:+.1f}" for a, b in zip(source, mious, strict=True)]
        assert gains == ", ".join(differences)
        counts = collections.Counter(row["verdict"] for row in students)
        assert verdicts == ", ".join(f"{word} ({number})" for word, number in counts.items())
        classes = CITYSCAPES_19 if light == "Cityscapes" else CAMVID_11
        (before, *_) = [row for row in record if row["network"] == "source-only"]
        assert lost == experiment("class_losses").worst_class(students, before, classes.classes)


def test_classes_of_foreign_models_are_those_of_the_records():
    rows = table("foreign-models.md", "Results", 1)
    assert len(rows) == 12
    results = table("foreign-models.md", "Results")
    for (model, light, *_), before, after in zip(results, rows[::2], rows[1::2], strict=True):
        assert before[0] == f"{model.removeprefix('ESPNetv2, ')}, {light}: source-only"
        record = shares_record(model, light)
        source = [row for row in record if row["network"] == "source-only"]
        for cells, networks in ((before, source), (after, delivered(record))):
            for index, cell in enumerate(cells[1:]):
                mean = statistics.fmean(row["per_class"][index] for row in networks)
                assert cell == f"{mean:.0f}", (model, light, index)


@pytest.mark.parametrize(
    ("column", "record"),
    [
        (2, "dusk_espnetv2_s_1_0_city_1024x512"),
        (4, "dusk_espnet_p_2_q_8"),
        (6, "day_espnetv2_s_1_0_city_1024x512"),
        (8, "day_espnet_p_2_q_8"),
    ],
)
def test_parts_of_the_method_are_those_of_the_ablations(column, record):
    recorded = {
        (row["row"], row["regions"]): row
        for row in rows_of(f"ablation_cityscapes2camvid_{record}_100_steps")
    }
    plain = {s["seed"]: s["student_last"] for s in recorded["self-training (A1)", "none"]["seeds"]}
    rows = table("foreign-models.md", "What each part brings")
    assert len(rows) == len(recorded)
    for cells in rows:
        seeds = recorded[cells[0], cells[1] or "none"]["seeds"]
        mious = [seed["student_last"] for seed in seeds]
        assert cells[column] == mean_and_spread(mious), cells[0]
        if cells[column + 1]:
            differences = [f"{s['student_last'] - plain[s['seed']]:+.1f}" for s in seeds]
            assert cells[column + 1] == ", ".join(differences), cells[0]


def test_statistics_that_a_run_finds_are_those_of_the_records():
    rows = table("foreign-models.md", "Which BatchNorm statistics?")
    assert len(rows) == len(list(RECORDS.glob("norm_shares_*.json"))) == 11
    own = {"source of the drawn streets": "streets", "source of CamVid day": "camvid_day2dusk"}
    for model, target, *cells in rows:
        pair = "cityscapes" if target == "Cityscapes" else f"cityscapes2camvid_{target}"
        record = rows_of(f"norm_shares_{own.get(model) or f'{pair}_{FOREIGN[model]}'}")
        mious = [row["miou"] for row in record if "consistency" in row]
        found = record[-1]  # on as many images as a run compares
        assert found["found_on"] == (4 if target == "Cityscapes" else 16)
        lost = max(mious) - found["miou"]
        expected = [f"{miou:.1f}" for miou in mious]
        assert cells == [*expected, f"{found['share']:.2f}", f"{found['miou']:.1f}", f"{lost:.1f}"]


@pytest.mark.parametrize("page", ["streets", "camvid-day2dusk"])
def test_tables_of_our_own_pairs_are_those_of_the_ablations(page):
    recorded = {
        (row["row"], row["regions"]): row for row in rows_of(f"ablation_{page.replace('-', '_')}")
    }
    rows = table(f"{page}.md", "Results")
    assert len(rows) == len(recorded) >= 19
    for method, regions, seeds, last, *_ in rows:
        row = recorded[method, regions]
        assert seeds == str(len(row["seeds"])) == "3"
        assert last == mean_and_spread([seed["student_last"] for seed in row["seeds"]])


def test_statistics_on_the_drives_of_the_target_are_those_of_the_records():
    rows = table("foreign-models.md", "Which BatchNorm statistics?", 1)
    assert [row[0] for row in rows] == list(FOREIGN)
    for model, *cells in rows:
        record = rows_of(f"norm_shares_cityscapes2camvid_day_{FOREIGN[model]}")
        mious = [row["target_miou"] for row in record if "consistency" in row]
        found = record[-1]
        lost = max(mious) - found["target_miou"]
        expected = [*mious, found["target_miou"], lost]
        assert [cell for cell in cells if cell != f"{found['share']:.2f}"] == [
            f"{value:.1f}" for value in expected
        ]


def test_the_conclusion_on_foreign_models_is_that_of_its_tables():
    text = " ".join((PAGES / "foreign-models.md").read_text().split("\n## ")[0].split())
    results, plain = (table("foreign-models.md", part) for part in ("Results", "Plain runs"))
    least, most = (
        min(results, key=lambda row: float(row[4])),
        max(results, key=lambda row: float(row[4])),
    )
    assert f"by {least[4][1:]} to {most[4][1:]} points" in text
    gains = [float(gain) for row in results for gain in row[5].split(", ")]
    assert f"{min(gains):.1f} or more in every seed" in text
    of_camvid = [row for row in plain if row[1] != "Cityscapes"]
    gains = [float(gain) for row in of_camvid for gain in row[5].split(", ")]
    assert f"{len(gains)} runs as a user starts them gain {min(gains):.1f} or more" in text
    of_statistics = [
        (found_share(model, light)["miou"] - float(source)) / float(gain)
        for model, light, source, _, gain, *_ in results
    ]
    low, high = (round(100 * part) for part in (min(of_statistics), max(of_statistics)))
    assert f"BatchNorm statistics alone bring {low} to {high} % of the gain" in text
    costs = [
        statistics.fmean(alone(model, light)) - float(adapted.split(" ")[0])
        for model, light, _, adapted, *_ in results
    ]
    assert f"costs at most {max(costs):.1f} points".replace("0.", ".") in text


def found_share(model: str, light: str) -> dict:
    """Return the row of the BatchNorm statistics that a run finds."""
    return rows_of(f"norm_shares_cityscapes2camvid_{light}_{FOREIGN[model]}")[-1]


def alone(model: str, light: str) -> list[float]:
    """Return the mIoU of the students of all seeds without a share of the source model."""
    return [row["miou"] for row in shares_record(model, light) if row.get("share") == 0]


FEW = {
    ("Cityscapes", "4 (1)"): f"plain_cityscapes_{FOREIGN['ESPNetv2, width 2.0']}",
    ("its own domain", "4 (1)"): "plain_streets_itself_every_20",
    ("its own domain", "8 (1)"): "plain_streets_itself_every_10",
    ("its own domain", "80 (12)"): "plain_streets_itself",
    ("dusk, every eighth", "8 (1)"): (
        f"plain_cityscapes2camvid_dusk_{FOREIGN['ESPNetv2, width 1.0']}_every_8"
    ),
}
"""Target and images on the page about few images -> record."""
FEW_SECTION = "Few images, and a target that equals the source"


def few_changes(record: str, network: str) -> list[float]:
    """Return the change of mIoU in each seed of a record of plain runs."""
    rows = rows_of(record)
    source = {row["seed"]: row["miou"] for row in rows if row["network"] == "source-only"}
    return [row["miou"] - source[row["seed"]] for row in rows if row["network"] == network]


def test_students_of_few_images_are_those_of_the_records(experiment):
    rows = table("foreign-models.md", FEW_SECTION, 1)
    assert [(row[1], row[2]) for row in rows] == list(FEW)
    for (_, target, images, share, before, changes, with_less, lost), name in zip(
        rows, FEW.values(), strict=True
    ):
        record = rows_of(name)
        students = [row for row in record if row["network"] == "student"]
        source = record[0]
        assert images == f"{students[0]['images']} ({students[0]['held_out']})"
        number = students[0]["images"] - students[0]["held_out"]
        assert share == f"{TrainConfig().share_of_source(number):.2f}"
        assert before == f"{source['miou']:.1f}"
        assert changes == ", ".join(f"{c:+.1f}" for c in few_changes(name, "student"))
        is_usual = share == "0.25"
        less = few_changes(name, "student" if is_usual else "student, source_share 0.25")
        assert len(less) == 3
        assert with_less == ", ".join(f"{c:+.1f}" for c in less)
        classes = CAMVID_11 if target.startswith("dusk") else CITYSCAPES_19
        assert lost == experiment("class_losses").worst_class(students, source, classes.classes)


def test_no_student_of_few_images_loses_a_point_on_the_source_s_own_domain():
    text = (PAGES / "foreign-models.md").read_text()
    assert "none on the source's own domain loses a point" in " ".join(text.split())
    same = [name for (target, _), name in FEW.items() if not target.startswith("dusk")]
    changes = [change for name in same for change in few_changes(name, "student")]
    assert len(changes) == 12
    assert min(changes) > -1


def test_the_smaller_learning_rate_gains_less_by_dusk():
    model = FOREIGN["ESPNetv2, width 1.0"]
    slow = (
        f"trial_cityscapes2camvid_dusk_{model}_100_steps_seeds_0_to_0"
        "_train_optim_learning_rate_0_00005"
    )
    (gain,) = few_changes(slow, "student")
    usual, *_ = few_changes(f"plain_cityscapes2camvid_dusk_{model}", "student")
    text = (PAGES / "foreign-models.md").read_text()
    assert f"it gains {gain:.1f} points instead of {usual:.1f} (width 1.0, seed 0" in text


def test_remedies_for_few_images_are_those_of_the_records():
    model = FOREIGN["ESPNetv2, width 2.0"]
    seed = f"trial_cityscapes_{model}_100_steps_seeds_1_to_1"
    records = {
        "as by default": f"plain_cityscapes_{model}",
        "30 steps": f"trial_cityscapes_{model}_30_steps_seeds_1_to_1",
        "`train.batch_norm frozen`": f"{seed}_train_batch_norm_frozen",
        "`train.loss.source_vote .5`": f"{seed}_train_loss_source_vote_0_5",
        "`train.optim.learning_rate 5e-5`": f"{seed}_train_optim_learning_rate_0_00005",
    }
    rows = table("foreign-models.md", FEW_SECTION)
    assert [row[0] for row in rows] == list(records)
    rider = CITYSCAPES_19.classes.index("rider")
    for (name, *cells), record in zip(rows, records.values(), strict=True):
        of_seed = {row["network"]: row for row in rows_of(record) if row["seed"] == 1}
        # The trials were made when .25 was the share of any student.
        trial = name != "as by default"
        networks = (
            "student" if trial else "student, source_share 0.25",
            "student, source_share 0.5",
            "student, source_share 0.75" if trial else "student",
        )
        students = [of_seed[network] for network in networks]
        changes = [s["miou"] - of_seed["source-only"]["miou"] for s in students]
        assert cells[:3] == [f"{change:+.1f}" for change in changes]
        assert cells[3] == f"{students[0]['per_class'][rider]:.1f}"


NEWS = ("streets", *(f"cityscapes2camvid_dusk_{FOREIGN[m]}" for m in list(FOREIGN)[::2]))
"""Pairs of the page about masks, in the order of its columns."""
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


def label_mious(pair: str) -> dict[tuple[str, float | None], float]:
    rows = [row for row in rows_of(f"pair_news_{pair}_small_sam") if "labels" in row]
    return {(row["labels"], row.get("weight")): row["miou"] for row in rows}


def test_labels_of_masks_are_those_of_the_records():
    rows = table("mask-news.md", "Labels of masks")
    assert [row[0] for row in rows] == list(SPACES)
    for number, pair in enumerate(NEWS, start=1):
        mious = label_mious(pair)
        vote = mious["vote", None]
        assert rows[0][number] == f"{vote:.1f}"
        for row in rows[1:]:
            miou = mious[SPACES[row[0]]]
            assert row[number] == f"{miou:.1f} ({miou - vote:+.1f})"


def test_the_conclusion_on_masks_is_that_of_its_tables():
    text = " ".join((PAGES / "mask-news.md").read_text().split("\n## ")[0].split())
    gains = {
        name: [label_mious(pair)[name, 1.0] - label_mious(pair)["vote", None] for pair in NEWS]
        for name in ("sam", "features", "geometry")
    }
    assert f"gain {min(gains['sam']):.1f} to {max(gains['sam']):.1f} points" in text
    lost = f"{-min(gains['features']):.1f}".lstrip("0")
    assert f"features lose {lost} on one, and geometry gains {min(gains['geometry']):.1f}." in text
    # What the conclusion says of all spaces; those that hold SAM's embedding are no others.
    for name, weight in SPACES.values():
        if name not in ("vote", "true majority") and "sam" not in name:
            gains_of = [label_mious(p)[name, weight] - label_mious(p)["vote", None] for p in NEWS]
            assert min(gains_of) < min(gains["sam"])
    twice = [f"{label_mious(p)['sam', 2.0] - label_mious(p)['vote', None]:.1f}" for p in NEWS]
    page = (PAGES / "mask-news.md").read_text()
    assert f"At weight 2 the gains are {twice[0]}, {twice[1]} and {twice[2]} points" in page


KEPT = ("mIoU of all", "kept", "right", "changed", "changed and kept", "right of these", "classes")


def test_labels_that_a_training_keeps_are_those_of_the_records():
    rows = table("mask-news.md", "From labels to training")
    records = [row for pair in NEWS for row in rows_of(f"kept_labels_{pair}")]
    for (_, name, *cells), row in zip(rows, records, strict=True):
        assert name == row["labels"]
        assert cells == ["" if row[key] is None else f"{row[key]:.1f}" for key in KEPT]
    of = {
        pooling: [row for row in records if row["labels"].endswith(pooling)]
        for pooling in ("mean", "2, sum", "chance (control), weight 2, sum")
    }
    assert max(row["changed and kept"] for row in of["mean"]) < 0.6
    assert (min(r["changed"] for r in of["mean"]), max(r["changed"] for r in of["mean"])) == (
        pytest.approx(4.8, abs=0.05),
        pytest.approx(13.3, abs=0.05),
    )
    by_chance = of["chance (control), weight 2, sum"]
    by_sam = [row for row in of["2, sum"] if row not in by_chance]
    for ours, low, high in ((by_sam, 82, 96), (by_chance, 8, 16)):
        right = [row["right of these"] for row in ours]
        assert (round(min(right)), round(max(right))) == (low, high)


def last_steps(record: list[dict], key: str) -> dict[int, float]:
    """Return the mIoU of the student at the last step by seed."""
    (row,) = [row for row in record if row["key"] == key]
    return {entry["seed"]: entry["student_last"] for entry in row["seeds"]}


def test_trainings_with_neighbours_end_where_the_records_say():
    rows = table("mask-news.md", "From labels to training", 1)
    mean_gains: list[float] = []
    all_gains: list[float] = []
    ends: dict[str, float] = {}
    for (_, source_only, *cells), pair in zip(rows, NEWS, strict=True):
        record = rows_of(f"news_{pair}{'' if pair == 'streets' else '_100_steps'}")
        vote, ours, by_chance = (
            last_steps(record, f"{key}_small_sam")
            for key in ("vote", "sum_by_sam_twice", "sum_by_chance_twice")
        )
        assert list(vote) == list(ours) == [0, 1, 2]
        assert source_only == f"{last_steps(record, 'source_only')[0]:.1f}"
        gains = {seed: ours[seed] - vote[seed] for seed in vote}
        chance = [f"{value - vote[seed]:+.1f}" for seed, value in by_chance.items()]
        assert cells == [
            mean_and_spread(list(vote.values())),
            mean_and_spread(list(ours.values())),
            ", ".join(f"{gain:+.1f}" for gain in gains.values()),
            ", ".join(chance),
        ]
        assert min(gains.values()) > 0
        ends[pair] = vote[0]
        mean_gains.append(statistics.fmean(gains.values()))
        all_gains += gains.values()
    text = " ".join((PAGES / "mask-news.md").read_text().split())
    with_mean = [
        last_steps(rows_of(f"news_mean_{name}"), "neighbours_by_sam_small_sam")[0]
        for name in (NEWS[0], f"{NEWS[1]}_100_steps")
    ]
    assert f"loses: {with_mean[0]:.1f} on drawn streets and {with_mean[1]:.1f} on" in text
    assert f"the vote alone has {ends[NEWS[0]]:.1f} and {ends[NEWS[1]]:.1f}." in text
    others = {f"{gain:.1f}".lstrip("0") for gain in mean_gains[:2]}
    assert f"gain {mean_gains[2]:.1f} points on ESPNet and {', '.join(others)} on the other" in text
    low, high = (f"{gain:.1f}".lstrip("0") for gain in (min(all_gains), max(all_gains)))
    assert f"add {low} to {high} points" in (ROOT / "README.md").read_text()


def test_gradients_of_extra_losses_are_those_of_the_record():
    record = [row for row in rows_of("pair_news_streets_small_sam") if "loss" in row]
    for cells, row in zip(table("mask-news.md", "Gradients"), record, strict=True):
        numbers = (row["cosine"], row["cosine_deviation"], row["norm"])
        assert cells == [row["loss"], *(f"{number:.2f}" for number in numbers)]
