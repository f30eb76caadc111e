"""A small report of each kind, as JSON values and as records."""

import copy
import dataclasses

from sfss_ray.report.report_record import LabelFacts, RunRecord, ScoreRow

CLASSES = ["road", "car", "train"]

ADAPT = {
    "title": "Adaptation of X to Y",
    "kind": "adapt",
    "created": "2026-01-02T03:04:05",
    "version": "0.1.0",
    "class_set": {"name": "three", "classes": CLASSES},
    "network_scored": "student",
    "step_scored": "last (400 of 400)",
    "seed": 0,
    "source_model": {"path": "source.pt", "sha256": "ab" * 32, "network": "compact"},
    "regions": {
        "source": "small_sam",
        "note": "the small SAM shipped with the package",
        "images": 96,
        "masks": 2931,
        "masks_per_image": 30.5,
    },
    "target": {"folder": "images", "images": 96, "held_out": 14},
    "errors": [{"image": "foo.png", "reason": "0 bytes"}],
    "labels": {"given": True, "images": 60, "used_for": "reporting only"},
    "rows": [
        {
            "name": "source-only",
            "miou": 38.1,
            "pixel_accuracy": 80.2,
            "per_class": [50.0, 26.2, None],
            "mask_information": 1.03,
        },
        {
            "name": "adapted",
            "miou": 51.2,
            "pixel_accuracy": 86.0,
            "per_class": [80.4, 22.0, None],
            "mask_information": 1.21,
        },
    ],
    "curves": [
        {
            "name": "adapted",
            "points": [
                {"step": step, "loss": 2.0 / step, "learning_rate": 1e-4, "loss_ins": float("nan")}
                for step in range(1, 11)
            ],
        }
    ],
    "seconds": {"masks": 61.2, "train": 100.3},
    "config": {"train.num_steps": 400, "train.loss.temperature": 0.1, "masks.regions": "auto"},
}

_TRIALS = [
    {
        "name": f"trial {index}",
        "values": {
            "train.loss.temperature": temperature,
            "train.loss.contrast_weight": 0.1,
            "train.ema_momentum": 0.999,
        },
        "steps": 400,
        "status": status,
        "miou": miou,
        "mask_information": information,
        "score": information,
    }
    for index, temperature, status, miou, information in (
        (1, 0.1, "finished", 44.0, 1.10),
        (2, 0.05, "stopped early", 40.0, 1.01),
        (3, 0.5, "finished", 46.0, 1.30),
        (4, 0.7, "finished", 43.0, 1.05),
    )
] + [
    {
        "name": "trial 5",
        "values": {
            "train.loss.temperature": 0.03,
            "train.loss.contrast_weight": 2.0,
            "train.ema_momentum": 0.99,
        },
        "steps": 37,
        "status": "failed",
        "miou": None,
        "mask_information": None,
        "score": None,
        "error": "the loss became NaN",
    }
]

_TUNE = {"kind": "tune", "trials": _TRIALS, "best_trial": 2, "score_name": "mask_information"}


TUNE = {**ADAPT, **_TUNE}


def record_of(values, **changed):
    """A record of JSON values, with parts replaced; JSON has no NaN, so that parts may."""
    record = RunRecord.from_json(copy.deepcopy(values))
    return dataclasses.replace(record, **changed)


def adapt_report(**changed):
    """A report of one adaptation, with parts replaced."""
    return record_of(ADAPT, **changed)


def tune_report(**changed):
    """A report of a search over five trials, the last of which failed."""
    return record_of(TUNE, **changed)


def unlabelled_report():
    """A report without any labels."""
    rows = [ScoreRow(row["name"], mask_information=1.0 + k) for k, row in enumerate(ADAPT["rows"])]
    return adapt_report(rows=tuple(rows), labels=LabelFacts(given=False))


def change_row(record, index, **changed):
    """A record in which parts of one row are replaced."""
    rows = list(record.rows)
    rows[index] = dataclasses.replace(rows[index], **changed)
    return dataclasses.replace(record, rows=tuple(rows))


def change_trial(record, index, **changed):
    """A record in which parts of one trial are replaced."""
    trials = list(record.trials)
    trials[index] = dataclasses.replace(trials[index], **changed)
    return dataclasses.replace(record, trials=tuple(trials))
