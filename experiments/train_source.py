"""Train the source model that ships with sfss_ray, and measure the gap it leaves.

    python experiments/train_source.py
    python experiments/train_source.py --domain camera --keep-only-facts

This recipe draws labelled scenes of a domain, trains the compact network on them with `pretrain_source`
and scores it on other scenes of both domains. It writes source.pt with its facts beside it. With
`--domain camera` it measures the ceiling: the same network trained with labels of the target domain.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sfss_ray.cli import run_guarded
from sfss_ray.config import Config, override

TRAIN_SEED, VAL_SEED, VAL_IMAGES = 1, 102, 40


def source_config(steps: int, seed: int) -> Config:
    """Return the config of the training. Mild colour jitter helps the model on the other domain."""
    return override(
        Config(),
        {
            "seed": seed,
            "pretrain.num_steps": steps,
            "pretrain.batch_size": 8,
            "pretrain.optim.learning_rate": 2e-3,
            "pretrain.augment.crop_size": [128, 256],
            "pretrain.augment.scale_range": [1.0, 2.0],
            "pretrain.augment.jitter": 0.3,
            "pretrain.augment.hue": 0.05,
            "pretrain.augment.grey_probability": 0.05,
            "pretrain.augment.blur_probability": 0.2,
        },
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw scenes, train the model, score it, and write the model with its facts."""
    from sfss_ray import evaluate_model, pretrain_source
    from sfss_ray.models.model_file import load_model, save_model
    from sfss_ray.models.reading import file_sha256
    from sfss_ray.runtime.run_folder import write_json
    from sfss_ray.streets.default import SOURCE_MODEL
    from sfss_ray.streets.scenes import DOMAINS, write_streets

    # The scenes of training and scoring have different seeds, so no scene is in both.
    data = arguments.output_dir / "data"
    train = data / f"train-{arguments.domain}"
    write_streets(train, arguments.domain, TRAIN_SEED, arguments.scenes)
    vals = {domain: data / f"val-{domain}" for domain in DOMAINS}
    for domain, folder in vals.items():
        write_streets(folder, domain, VAL_SEED, VAL_IMAGES)
    started = time.monotonic()
    result = pretrain_source(
        train / "images",
        train / "labels",
        arguments.output_dir / f"{arguments.domain}-{arguments.steps}",
        val_images=vals["camera"] / "images",
        val_labels=vals["camera"] / "labels",
        config=source_config(arguments.steps, arguments.seed),
    )
    model = load_model(result.model)
    scores = {d: evaluate_model(result.model, f / "images", f / "labels") for d, f in vals.items()}
    model.facts |= {
        "trained_on": f"{arguments.scenes} drawn scenes, domain {arguments.domain}, seed {TRAIN_SEED}",
        "steps": arguments.steps,
        "batch_size": 8,
        "seed": arguments.seed,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "miou": {domain: round(score.miou, 2) for domain, score in scores.items()},
        "miou_on": f"{VAL_IMAGES} scenes of each domain, seed {VAL_SEED}, last step",
    }
    # The shipped weights are stored in half precision, to keep the package small.
    facts = dict(model.facts)
    if not arguments.keep_only_facts:
        save_model(SOURCE_MODEL, model, half=True)
        facts |= {"bytes": SOURCE_MODEL.stat().st_size, "sha256": file_sha256(SOURCE_MODEL)}
        write_json(SOURCE_MODEL.with_suffix(".json"), facts)
    for name, value in facts.items():
        print(f"{name}: {value}")
    for domain, score in scores.items():
        per_class = {c: round(v, 1) for c, v in score.per_class.items() if v == v}
        print(f"{domain}: mIoU {score.miou:.2f}, {per_class}")


def main(words: Sequence[str] | None = None) -> int:
    """Run this recipe with the words of a command line and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", choices=("game", "camera"), default="game")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/source"))
    parser.add_argument(
        "--keep-only-facts", action="store_true", help="print the scores, ship nothing"
    )
    arguments = parser.parse_args(words)
    return run_guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
