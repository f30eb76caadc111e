"""The record of a run as JSON: round trips, older and newer files, bad files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_samples import ADAPT, TUNE, adapt_report, change_row, record_of, tune_report

from sfss_ray.errors import DataError
from sfss_ray.report.report_record import (
    IMPROVED,
    NO_EVIDENCE,
    SCHEMA_VERSION,
    WORSE,
    ClassLoss,
    Curve,
    ExternalFacts,
    RunRecord,
    ScoreRow,
    TrialRow,
    Verdict,
    answer_name,
    read_record,
)


def write(path: Path, values) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("record", [RunRecord(), adapt_report(curves=()), tune_report(curves=())])
def test_a_record_survives_its_file(record, tmp_path):
    path = write(tmp_path / "report.json", record.to_json())
    assert read_record(path) == record


def test_the_file_states_its_schema_version_first():
    values = adapt_report().to_json()
    assert next(iter(values)) == "schema_version"
    assert values["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("former", [ADAPT, TUNE])
def test_a_file_without_a_version_is_read(former, tmp_path):
    """Every key of the former layout keeps its name and value."""
    assert "schema_version" not in former
    record = read_record(write(tmp_path / "report.json", former))
    assert record.schema_version == SCHEMA_VERSION
    values = record.to_json()
    for key in former.keys() - {"rows", "trials", "curves"}:
        assert values[key] == former[key]
    for key in ("rows", "trials"):
        for row, before in zip(values[key], former.get(key, []), strict=True):
            assert before.items() <= row.items()
    assert values["curves"][0]["points"][0] == {
        "step": 1,
        "loss": 2.0,
        "learning_rate": 1e-4,
        "loss_ins": None,
    }


def test_a_verdict_survives_its_file_and_former_files_have_none(tmp_path):
    losses = (ClassLoss("fence", 26.5, 1.9),)
    verdict = Verdict(WORSE, "With labels, mIoU falls.", losses, "mIoU", True)
    path = write(tmp_path / "report.json", adapt_report(verdict=verdict).to_json())
    assert read_record(path).verdict == verdict
    former = adapt_report().to_json() | {"schema_version": 1}
    assert "verdict" not in former
    record = read_record(write(tmp_path / "report.json", former))
    assert (record.verdict, record.schema_version) == (None, SCHEMA_VERSION)


def test_a_verdict_is_a_line_for_people():
    assert Verdict(IMPROVED, "It rises.").line() == "verdict: improved. It rises."
    words = [word for word in (IMPROVED, NO_EVIDENCE, WORSE) if Verdict(word, "").is_worse]
    assert words == [WORSE]


def test_a_file_of_a_newer_schema_is_refused_in_one_line(tmp_path):
    newer = {**ADAPT, "schema_version": SCHEMA_VERSION + 1, "rows": "laid out differently"}
    path = write(tmp_path / "report.json", newer)
    with pytest.raises(DataError, match=rf"schema version {SCHEMA_VERSION + 1}.*newer") as refused:
        read_record(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_keys_of_additions_are_ignored():
    assert RunRecord.from_json({"title": "a", "remark": "b"}) == RunRecord(title="a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "the content is '\\[\\]', expected is an object"),
        ({"rows": [{"miou": 3}]}, r"rows\[0\]\.name is missing"),
        (
            {"rows": [{"name": "a", "miou": "high"}]},
            r"rows\[0\]\.miou is 'high', expected is float",
        ),
        ({"rows": 3}, "rows is '3', expected is a list"),
        ({"seed": 1.5}, "seed is '1.5', expected is int"),
        ({"oracle": 1}, "oracle is '1', expected is bool"),
        ({"class_set": {"classes": [1]}}, r"class_set\.classes\[0\] is '1', expected is str"),
        ({"seconds": {"train": None}}, r"seconds\.train is 'None', expected is float"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(values, message):
    with pytest.raises(DataError, match=f"^report.json is not the report of a run: {message}"):
        RunRecord.from_json(values)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_record(tmp_path / "report.json")
    (tmp_path / "cut.json").write_text('{"title": "a"')
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_record(tmp_path / "cut.json")


def test_json_is_strict_and_in_order():
    record = adapt_report(seed=np.int64(3), seeds=(1, 2), config={"b": Path("x"), "a": (1, 2)})
    record = change_row(record, 0, miou=float("nan"))
    record = change_row(record, 1, per_class=np.array([1.0, np.inf, np.nan], np.float32))
    values = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert values["rows"][0]["miou"] is None
    assert values["rows"][1]["per_class"] == [1.0, None, None]
    assert (values["seed"], values["seeds"]) == (3, [1, 2])
    assert list(values["config"].items()) == [("a", [1, 2]), ("b", "x")]
    assert list(values)[:3] == ["schema_version", "title", "kind"]
    assert list(values)[-4:] == ["curves", "errors", "seconds", "config"]


def test_missing_scores_are_null_and_missing_parts_are_left_out():
    values = RunRecord(rows=(ScoreRow("a"),), trials=(TrialRow("b"),)).to_json()
    assert values["rows"][0]["miou"] is None
    assert values["trials"][0]["score"] is None
    assert not {"regions", "source_model", "target", "best_trial", "seeds"} & values.keys()


def test_the_answer_is_adapted_or_else_the_last_row():
    assert answer_name(["source-only", "adapted", "self-training"]) == "adapted"
    assert answer_name(["source-only", "self-training"]) == "self-training"
    assert answer_name(["adapted"]) is None
    record = adapt_report()
    assert (record.baseline, record.answer) == record.rows
    assert (RunRecord().baseline, RunRecord().answer) == (None, None)


def test_the_best_trial_is_the_one_that_the_index_names():
    assert tune_report().best == tune_report().trials[2]
    for index in (None, -1, 5):
        assert tune_report(best_trial=index).best is None


def test_an_oracle_is_known_from_the_search_or_from_the_labels():
    used_for_choosing = replace(adapt_report().labels, used_for="choosing (oracle)")
    assert adapt_report(labels=used_for_choosing).used_oracle
    assert RunRecord(oracle=True).used_oracle
    assert not adapt_report().used_oracle


def test_external_knowledge_is_a_part_of_the_file_only_where_there_is_some():
    assert "external_knowledge" not in adapt_report().to_json()
    facts = ExternalFacts(
        "SAM 3 prompted with class names", "sam3", "ab" * 32,
        {"pole": ["pole", "street lamp"], "void": []}, 0.5, 0.5, 96, 310,
    )  # fmt: skip
    record = adapt_report(external_knowledge=facts)
    plain = record.to_json()["external_knowledge"]
    assert plain["prompts"]["pole"] == ["pole", "street lamp"]
    assert RunRecord.from_json(record.to_json()).external_knowledge == facts


def test_curves_keep_quantities_that_are_not_known_here():
    curve = {"name": "adapted", "points": [{"step": 1, "margin": 0.5}]}
    assert record_of({"curves": [curve]}).curves == (
        Curve("adapted", ({"step": 1, "margin": 0.5},)),
    )


def test_settings_of_trials_in_former_files_are_read():
    former = {"name": "trial 1", "temperature": 0.1, "contrast_weight": 0.03, "ema_momentum": None}
    (trial,) = RunRecord.from_json({"trials": [former]}).trials
    assert trial.values == {"train.loss.temperature": 0.1, "train.loss.contrast_weight": 0.03}
    (again,) = RunRecord.from_json(RunRecord(trials=(trial,)).to_json()).trials
    assert again == trial
