"""The main job: adapt a GTA5 (or any) source model to Cityscapes (or any) images without the source.

    python experiments/tune_gta2cs.py
    python experiments/tune_gta2cs.py --source-model FILE --target-images DIR --sam-checkpoint FILE

makes SAM masks of the target images, searches temperature, contrast weight and EMA momentum, trains
with the best values, and writes the adapted model and a report. With no arguments it runs on the
embedded default: drawn street scenes with a source model and a small SAM that ship with sfss_ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from sfss_ray.cli import describe, run_guarded
from sfss_ray.config import Config, load_config, override


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("your data (none: the embedded default)")
    data.add_argument("--source-model", type=Path, help="model file of the source model")
    data.add_argument("--target-images", type=Path, help="folder of unlabelled target images")
    data.add_argument(
        "--sam-checkpoint", type=Path, help="SAM weights; without: Felzenszwalb regions, not SAM"
    )
    data.add_argument(
        "--sam-type",
        default="auto",
        choices=("auto", "vit_b", "vit_l", "vit_h", "small"),
        help="the SAM the checkpoint must hold (default: told from the weights)",
    )
    data.add_argument("--val-images", type=Path, help="folder of labelled images to report mIoU on")
    data.add_argument("--val-labels", type=Path, help="folder of their label maps (train ids)")
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--output", type=Path, default=Path("runs/gta2cs"), help="default: %(default)s"
    )
    run.add_argument("--num-trials", type=int, help="students trained by the search")
    run.add_argument("--num-steps", type=int, help="steps of each student")
    run.add_argument("--num-workers", type=int, help="data-parallel workers of each training")
    run.add_argument("--seed", type=int, help="default: 0")
    run.add_argument("--address", help="Ray cluster: auto, local or HOST:PORT (default: auto)")
    run.add_argument("--config", type=Path, help="JSON of dotted config names, laid over the rest")
    return parser.parse_args(words)


def build_config(arguments: argparse.Namespace, base: Config) -> Config:
    """The base config with what was given on the command line."""
    given = {
        "tune.num_trials": arguments.num_trials,
        "train.num_steps": arguments.num_steps,
        "compute.num_workers": arguments.num_workers,
        "compute.address": arguments.address,
        "seed": arguments.seed,
    }
    config = override(base, {name: value for name, value in given.items() if value is not None})
    return load_config(arguments.config, config) if arguments.config else config


def run(arguments: argparse.Namespace) -> None:
    """Check what was given, run the search, print the table."""
    import sfss_ray
    from sfss_ray.errors import DataError

    folders: dict[str, Any] = dataclasses.asdict(_Folders.of(arguments))
    if arguments.source_model is None and arguments.target_images is None:
        if any((arguments.sam_checkpoint, arguments.val_images, arguments.val_labels)):
            raise DataError(
                "--source-model and --target-images are missing: give both for your own data, or no"
                " data at all for the embedded default"
            )
        folders, base = _embedded(arguments.output)
    elif arguments.source_model is None or arguments.target_images is None:
        missing = "--source-model" if arguments.source_model is None else "--target-images"
        raise DataError(f"{missing} is missing: give both a source model and target images")
    else:
        base = Config()
    result = sfss_ray.tune_hyperparameters(
        **folders,
        output_dir=arguments.output / "run" if arguments.source_model is None else arguments.output,
        sam_checkpoint=arguments.sam_checkpoint,
        sam_type=arguments.sam_type,
        config=build_config(arguments, base),
    )
    print("\n".join(["", *describe(result)]))


@dataclasses.dataclass(frozen=True)
class _Folders:
    source_model: Path
    target_images: Path
    val_images: Path | None
    val_labels: Path | None

    @staticmethod
    def of(arguments: argparse.Namespace) -> _Folders:
        names = [f.name for f in dataclasses.fields(_Folders)]
        return _Folders(**{name: getattr(arguments, name) for name in names})


def _embedded(output: Path) -> tuple[dict[str, Any], Config]:
    from sfss_ray.streets.default import embedded_config, write_embedded_data

    print(
        "No GTA5 model or Cityscapes images were given: this run uses the embedded default, drawn\n"
        "street scenes with the source model and the small SAM that ship with sfss_ray. For your own\n"
        "data give --source-model and --target-images; see --help.",
        flush=True,
    )
    data = write_embedded_data(output / "data")
    return dataclasses.asdict(data), embedded_config()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(run_guarded(lambda: run(arguments)))
