"""Write the results of the ablation as a JSON record, a table and a figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation_rows import BASELINE, CEILING, SELF_TRAINING, VOTE, WITHOUT_TEACHER, Row
from chosen_statistics import stored_share
from domain_pairs import DomainPair
from study_record import read_rows, write_record

from sfss_ray.models.reading import file_sha256

FIELDS = ("seed", "student_last", "student_best", "teacher_last", "per_class", "steps")


def write_results(
    pair: DomainPair,
    rows: Sequence[Row],
    results: Mapping[str, Mapping[int, dict[str, Any]]],
    stem: Path,
    device: str,
) -> None:
    """Write STEM.json, .md and .png of the rows that have results (row -> seed -> result)."""
    table = [
        summary(row, pair, list(results[row.key].values())) for row in rows if results[row.key]
    ]
    stem.parent.mkdir(parents=True, exist_ok=True)
    name = stem.name.partition(f"_{pair.name}")[0]
    share = stored_share(pair, pair.config)
    facts = {} if share is None else {"statistics_share": share}
    write_record(stem.with_suffix(".json"), command(pair, name), device, table, facts)
    stem.with_suffix(".md").write_text(as_markdown(pair, table, name, share))
    draw(pair, table, stem.with_suffix(".png"))


def recorded_seeds(stem: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Return row -> seed -> values of the record STEM.json, empty where there is none.

    The values hold the `identity` of their row. Rows without one are left out.
    """
    file = stem.with_suffix(".json")
    rows = read_rows(file) if file.exists() else []
    return {
        row["key"]: {s["seed"]: s | {"identity": row["identity"]} for s in row["seeds"]}
        for row in rows
        if "identity" in row
    }


def identity_in_record(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return what decides the results of a row for any seed, as text, because records round floats."""
    return {name: json.dumps(value) for name, value in identity.items() if name != "seed"}


def command(pair: DomainPair, name: str) -> str:
    """Return the command line that repeats a table."""
    return f"python experiments/studies/ablation.py --table {name} {pair.options}"


def knobs_of(row: Row, pair: DomainPair) -> dict[str, Any]:
    """Return the knobs of a row. The pooled vote has values of its own for each pair and regions."""
    votes = row.knobs.items() >= VOTE.items()
    return {**row.knobs, **(pair.votes.get(row.regions, {}) if votes else {})}


def summary(row: Row, pair: DomainPair, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row of the record: mean and sample standard deviation of the last step."""
    seeds = sorted(seeds, key=lambda result: result["seed"])
    values = [result["student_last"] for result in seeds]
    if row in WITHOUT_TEACHER:
        seeds = [result | {"teacher_last": None} for result in seeds]
    return {
        "row": row.name,
        "key": row.key,
        "regions": row.regions or "none",
        "seeds": [{name: result[name] for name in FIELDS if name in result} for result in seeds],
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "knobs": knobs_of(row, pair),
        "identity": identity_in_record(seeds[0]["identity"]),
        **({"external": True} if row.external else {}),
    }


def as_markdown(
    pair: DomainPair, table: list[dict[str, Any]], name: str, share: float | None = None
) -> str:
    """Return the table of mIoU, gain and gap closed, and the IoU per class. Source-only comes first.

    Args:
        pair: The source model and its target.
        table: A summary for each row.
        name: Of the table.
        share: Of the target's BatchNorm statistics, where `train.batch_norm auto` chose it.
    """
    mean = {entry["key"]: entry["mean"] for entry in table}
    base, top = mean.get(BASELINE.key), mean.get(CEILING.key)
    plain = next((entry for entry in table if entry["key"] == SELF_TRAINING.key), None)
    lines = [
        f"# {pair.name}: {len(pair.images)} unlabelled target images, {len(pair.val)} scored",
        "",
        "mIoU in percent of the student at its last step, mean and standard deviation over seeds.",
        "Labels of the target were used to report, and by the rows named ground truth and ceiling.",
        "Best step: the higher of two evaluations, half-way and at the end.",
        "Against A1: the difference from self-training (A1) of the same seed, for each seed.",
        *([] if share is None else [f"BatchNorm: {share:.0%} of the target's statistics (auto)."]),
        *external_line(any(entry.get("external") for entry in table)),
        f"`{command(pair, name)}`. Source model"
        f" {pair.source_model.name}, sha256 {file_sha256(pair.source_model)[:16]}.",
        "",
        "| method | regions | seeds | last step | gain | gap closed | against A1 | best step"
        " | teacher, last |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in table:
        seeds = entry["seeds"]
        gain = "" if base is None else f"{entry['mean'] - base:+.1f}"
        closed = ""
        if base is not None and top is not None and top > base:
            closed = f"{100 * (entry['mean'] - base) / (top - base):.0f} %"
        best = statistics.fmean(result["student_best"] for result in seeds)
        teacher_mious = [s["teacher_last"] for s in seeds if s["teacher_last"] is not None]
        teacher = f"{statistics.fmean(teacher_mious):.1f}" if teacher_mious else ""
        last = f"{entry['mean']:.1f}" + (f" ± {entry['std']:.1f}" if len(seeds) > 1 else "")
        lines.append(
            f"| {entry['row']} | {entry['regions']} | {len(seeds)} | {last} | {gain} | {closed}"
            f" | {paired_differences(entry, plain)} | {best:.1f} | {teacher} |"
        )
    return "\n".join([*lines, "", *_per_class(pair, table), ""])


def paired_differences(entry: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """Return by how much each seed of a row ends above the same seed of another row, as text.

    Seeds differ by more than methods do, so differences of the same seed show what means hide.
    """
    if reference is None or entry["key"] == reference["key"]:
        return ""
    before = {result["seed"]: result["student_last"] for result in reference["seeds"]}
    return ", ".join(
        f"{result['student_last'] - before[result['seed']]:+.1f}"
        for result in entry["seeds"]
        if result["seed"] in before
    )


def external_line(is_external: bool) -> list[str]:
    """Return the line of a table that names external knowledge, none without such a row."""
    if not is_external:
        return []
    return [
        "Rows named external knowledge also use SAM 3, which learned class names elsewhere. They do not"
        " compare with the others as source-free adaptation."
    ]


def _per_class(pair: DomainPair, table: list[dict[str, Any]]) -> list[str]:
    class_ids = [k for k, v in enumerate(table[0]["seeds"][0]["per_class"]) if v is not None]
    names = [pair.classes.classes[k] for k in class_ids]
    lines = ["| IoU, last step | regions | " + " | ".join(names) + " |"]
    lines.append("|---" * (2 + len(names)) + "|")
    for entry in table:
        means = [statistics.fmean(s["per_class"][k] for s in entry["seeds"]) for k in class_ids]
        cells = " | ".join(f"{value:.0f}" for value in means)
        lines.append(f"| {entry['row']} | {entry['regions']} | {cells} |")
    return lines


def draw(pair: DomainPair, table: list[dict[str, Any]], path: Path) -> None:
    """Draw a bar per row with its standard deviation and seeds. Lines mark source-only and ceiling."""
    from matplotlib.figure import Figure

    names = [
        entry["row"] + ("" if entry["regions"] == "none" else f", {entry['regions']}")
        for entry in table
    ]
    figure = Figure(figsize=(9, 0.42 * len(table) + 1.3), layout="constrained")
    axes = figure.subplots()
    positions = list(range(len(table)))
    means, spread = [e["mean"] for e in table], [e["std"] for e in table]
    axes.barh(positions, means, xerr=spread, color="#9db7d5", error_kw={"elinewidth": 1})
    for position, entry in zip(positions, table, strict=True):
        values = [result["student_last"] for result in entry["seeds"]]
        axes.plot(values, [position] * len(values), ".", color="#1f3d5c", markersize=4)
        axes.text(
            max([*values, entry["mean"] + entry["std"]]) + 0.3,
            position,
            f"{entry['mean']:.1f}",
            va="center",
            fontsize=8,
        )
    for entry in table:
        if entry["key"] in (BASELINE.key, CEILING.key):
            axes.axvline(entry["mean"], color="#777777", linestyle=":", linewidth=1)
    axes.set_yticks(positions, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0.75 * min(means), 1.06 * max(means))
    axes.set_xlabel("mIoU %, student, last step")
    axes.set_title(f"{pair.name}: mean, standard deviation and every seed", fontsize=10)
    figure.savefig(path, dpi=110)
