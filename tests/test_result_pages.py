"""The figures on the pages of results are those of the records beside the studies."""

from __future__ import annotations

import collections
import statistics

import pytest
from result_pages import FOREIGN, PAGES, RECORDS, mean_and_spread, rows_of, table

from sfss_ray.config import TrainConfig
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19

DELIVERED_SHARE = 0.25


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


def test_what_the_contrast_adds_to_the_vote_is_what_the_records_say():
    changes = []
    for record in sorted(RECORDS.glob("ablation_*.json")):
        ends = {
            row["key"]: {entry["seed"]: entry["student_last"] for entry in row["seeds"]}
            for row in rows_of(record.stem)
        }
        full, vote = ends["full_felzenszwalb"], ends["pooled_vote"]
        assert list(full) == list(vote) == [0, 1, 2]
        changes += [full[seed] - vote[seed] for seed in vote]
    assert len(changes) == 18
    text = " ".join((PAGES.parent / "method.md").read_text().split())
    low, high, mean = (
        f"{abs(change):.1f}".removeprefix("0")
        for change in (min(changes), max(changes), statistics.fmean(changes))
    )
    assert min(changes) < 0 < max(changes)
    assert f"ends between {low} below and {high} above the vote alone, {mean} below" in text
