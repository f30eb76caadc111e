"""CamVid, day -> dusk: real driving video, source-only against self-training against the full method.

    python experiments/camvid_day2dusk.py --camvid DIR

DIR holds images/train/*.jpg and labels/train/*.png (ids 0-10, 11 = void) of CamVid's 480x360 frames.
The source model is trained from random weights on the labelled day frames (drives 0006R0 and 0016E5).
It is adapted to the dusk frames (drive 0001TP) without their labels, which serve reporting only.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfss_ray.cli import run_guarded
from sfss_ray.config import Config, flatten, override
from sfss_ray.storage.places import Place
from sfss_ray.train.baseline import SELF_TRAINING

if TYPE_CHECKING:
    from sfss_ray.report.report_record import Curve, RunRecord, ScoreRow

DAY, DUSK = ("0006R0", "0016E5"), ("0001TP",)
VOID = 11


def make_config(arguments: argparse.Namespace) -> Config:
    """Return a config for 480x360 frames on a CPU, with Felzenszwalb regions unless SAM is given."""
    return override(
        Config(),
        {
            "seed": arguments.seed,
            "pretrain.num_steps": arguments.source_steps,
            "pretrain.batch_size": 8,
            "pretrain.optim.learning_rate": 2e-3,
            "pretrain.augment.crop_size": [224, 320],
            "pretrain.augment.scale_range": [0.65, 1.3],
            "pretrain.augment.jitter": 0.3,
            "pretrain.augment.hue": 0.03,
            "pretrain.augment.grey_probability": 0.05,
            "pretrain.augment.blur_probability": 0.2,
            "evaluation.held_out_share": 0.0,
            "train.num_steps": arguments.steps,
            "train.evaluate_every": max(1, arguments.steps // 3),
            "train.batch_size": 4,
            "train.ema_momentum": 0.99,
            "train.loss.contrast_weight": 0.03,
            "train.augment.crop_size": [256, 352],
            "train.augment.scale_range": [0.75, 1.25],
            "train.pairs.anchors_per_image": 128,
            "train.pairs.negatives": 128,
            "train.pairs.bank_size": 64,
        },
    )


def arrange(
    camvid: Path, target: Path, drives: tuple[str, ...], split: str = "train"
) -> tuple[Path, Path]:
    """Write the folders of one domain: links to its frames, and its labels with void as 255."""
    from PIL import Image

    from sfss_ray.data.folders import list_images, read_labels

    images, labels = target / "images", target / "labels"
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for file in list_images(camvid / "images" / split, "CamVid images"):
        if not file.image_id.startswith(drives):
            continue
        link = images / file.path.name
        if not link.exists():
            link.symlink_to(str(file.path.absolute()))
        label = labels / f"{file.image_id}.png"
        if not label.exists():
            ids = read_labels(camvid / "labels" / split / f"{file.image_id}.png")
            Image.fromarray(np.where(ids == VOID, 255, ids).astype(np.uint8)).save(label)
    return images, labels


def run(arguments: argparse.Namespace) -> None:
    """Train the source model, adapt it twice, and compare the three models."""
    from sfss_ray import evaluate_model, generate_masks, pretrain_source, train_student
    from sfss_ray.report.report_record import Curve, ScoreRow
    from sfss_ray.report.tables import per_class_table, results_table

    started = time.monotonic()
    output_dir, config = arguments.output_dir, make_config(arguments)
    day = arrange(arguments.camvid, output_dir / "data" / "day", DAY)
    dusk = arrange(arguments.camvid, output_dir / "data" / "dusk", DUSK)
    source = arguments.source_model
    if source is None:
        source = pretrain_source(
            *day, output_dir / "source", classes="camvid-11", config=config
        ).model
    masks = generate_masks(
        dusk[0], output_dir / "masks", sam_checkpoint=arguments.sam_checkpoint, config=config
    )
    # Both methods start from the same source model and use the same masks.
    methods = {
        "self-training": override(config, SELF_TRAINING),
        "full method": config,
    }
    models: dict[str, Place] = {"source-only": source}
    curves = []
    for name, knobs in methods.items():
        print(f"{name}: adapting", flush=True)
        folder = output_dir / name.replace(" ", "_")
        result = train_student(
            source,
            dusk[0],
            masks.folder,
            folder,
            val_images=dusk[0],
            val_labels=dusk[1],
            config=knobs,
        )
        models[name] = result.model
        curves.append(Curve(name, tuple(result.curve)))
    rows = []
    for name, model in models.items():
        score = evaluate_model(model, *dusk, config=config)
        per_class = tuple(score.per_class.values())
        rows.append(ScoreRow(name, score.miou, score.pixel_accuracy, per_class))
    report = describe(rows, curves, models, masks, config, time.monotonic() - started)
    page = write_page(report, models, dusk, masks, output_dir)
    print(
        "\n".join(["", results_table(report), "", per_class_table(report), "", f"report: {page}"])
    )


def describe(
    rows: list[ScoreRow],
    curves: list[Curve],
    models: Mapping[str, Place],
    masks: Any,
    config: Config,
    seconds: float,
) -> RunRecord:
    """Return the comparison as the record of a report."""
    import sfss_ray
    from sfss_ray.models.source import open_source
    from sfss_ray.report.report_record import (
        ClassSetFacts,
        LabelFacts,
        MaskFacts,
        RunRecord,
        SourceModelFacts,
        TargetFacts,
    )

    source = open_source(models["source-only"])
    classes, network, digest = source.classes, source.network, source.sha256
    steps = config.train.num_steps
    per_image = round(masks.masks / masks.images, 1)
    return RunRecord(
        title="CamVid, day to dusk",
        kind="comparison",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=sfss_ray.__version__,
        class_set=ClassSetFacts(classes.name, classes.classes),
        network_scored="student",
        step_scored=f"last ({steps} of {steps})",
        seed=config.seed,
        source_model=SourceModelFacts("source.pt", digest, network),
        regions=MaskFacts(masks.source, masks.note, masks.images, masks.masks, per_image),
        target=TargetFacts(images=masks.images, held_out=0),
        labels=LabelFacts(given=True, images=masks.images, used_for="reporting only"),
        rows=tuple(rows),
        curves=tuple(curves),
        seconds={"all": round(seconds, 1)},
        config=flatten(config),
    )


def write_page(
    report: RunRecord,
    models: Mapping[str, Place],
    dusk: tuple[Path, Path],
    masks: Any,
    output_dir: Path,
) -> Path:
    """Draw some frames with every model's prediction, and write the report page."""
    from sfss_ray import MaskStore, load_model
    from sfss_ray.config import EvaluationConfig
    from sfss_ray.data.decoding import read_image
    from sfss_ray.data.folders import read_labels
    from sfss_ray.data.pairing import pair_labels
    from sfss_ray.evaluation.inference import predict_probabilities
    from sfss_ray.report.page import write_report
    from sfss_ray.report.pictures import Strip

    networks = {name: load_model(path).network for name, path in models.items()}
    store, strips = MaskStore(masks.folder), []
    for pair in pair_labels(*dusk)[5::12]:
        image = read_image(pair.path)
        predictions = {
            name: predict_probabilities(net, image, EvaluationConfig()).argmax(0).astype(np.uint8)
            for name, net in networks.items()
        }
        ids = store.id_map(pair.image_id)
        strips.append(Strip(pair.image_id, image, ids, predictions, read_labels(pair.label_path)))
    write_report(output_dir, report, strips)
    return output_dir / "report.html"


def main(words: Sequence[str] | None = None) -> int:
    """Run this recipe with the words of a command line and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--camvid", type=Path, required=True, help="folder of images/ and labels/")
    parser.add_argument("--sam-checkpoint", type=Path, help="SAM weights (default: Felzenszwalb)")
    parser.add_argument(
        "--source-model", type=Path, help="a model of an earlier run (default: train one)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/camvid_day2dusk"))
    parser.add_argument("--source-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    return run_guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
