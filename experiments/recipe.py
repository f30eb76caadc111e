"""What the recipes share: their command line, the field's protocols, the plan, and the run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.cli import describe, run_guarded
from sfss_ray.config import PRESETS, PROTOCOLS, Config, load_config, override
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.storage.files import require_lasting

_NETWORK_INPUT = 1024
"""Pixels on the longest side of the image that both protocols show the network."""
_SCALES = (0.75, 1.25)
"""Random zoom of both protocols, relative to an image of that size."""
NOT_READY = 1
"""Exit code of a dry run that found something missing."""


@dataclass(frozen=True)
class Recipe:
    """One job on one pair of domains."""

    text: str
    """The help page."""
    output: Path
    class_set: str
    """Of the pair's benchmark."""
    search: bool
    """Search the knobs first; else adapt with the config's own."""


def parse_arguments(recipe: Recipe, words: list[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=recipe.text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_data(parser.add_argument_group("your data (none: the embedded default)"))
    _add_run(parser.add_argument_group("the run"), recipe)
    return parser.parse_args(words)


def _add_data(group: Any) -> None:
    group.add_argument("--source-model", type=Path, help="source checkpoint or model file")
    group.add_argument(
        "--card", type=Path, help="JSON of entries that replace what its family says of its images"
    )
    group.add_argument("--target-images", type=Path, help="folder of unlabelled target images")
    group.add_argument(
        "--sam-checkpoint", type=Path, help="SAM weights; without: Felzenszwalb regions, not SAM"
    )
    group.add_argument(
        "--sam-type",
        default="auto",
        choices=("auto", "vit_b", "vit_l", "vit_h", "small"),
        help="the SAM the checkpoint must hold (default: told from the weights)",
    )
    group.add_argument(
        "--masks",
        type=Path,
        help="folder of masks of the target images, used instead of making some",
    )
    group.add_argument("--val-images", type=Path, help="labelled images to report mIoU on")
    group.add_argument("--val-labels", type=Path, help="folder of their label maps (train ids)")


def _add_run(group: Any, recipe: Recipe) -> None:
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="look at all inputs, measure for seconds, print the plan, start nothing; exit code 1 when"
        " something is missing",
    )
    group.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="the field's values for a CNN or a transformer (with your data; default: the package's)",
    )
    group.add_argument("--output", type=Path, default=recipe.output, help="default: %(default)s")
    if recipe.search:
        group.add_argument("--num-trials", type=int, help="students trained by the search")
    group.add_argument("--num-steps", type=int, help="steps of each student")
    group.add_argument("--num-workers", type=int, help="data-parallel workers of each training")
    group.add_argument("--seed", type=int, help="default: 0")
    group.add_argument("--address", help="Ray cluster: auto, local or HOST:PORT (default: auto)")
    group.add_argument("--config", type=Path, help="JSON of dotted config names, over the rest")


def build_config(arguments: argparse.Namespace, base: Config) -> Config:
    """The base config, the protocol over it, and over both what was given on the command line."""
    given = {
        "tune.num_trials": getattr(arguments, "num_trials", None),
        "train.num_steps": arguments.num_steps,
        "compute.num_workers": arguments.num_workers,
        "compute.address": arguments.address,
        "seed": arguments.seed,
    }
    if arguments.protocol:
        base = override(base, protocol_values(arguments.protocol, arguments.target_images))
    config = override(base, {name: value for name, value in given.items() if value is not None})
    return load_config(arguments.config, config) if arguments.config else config


def protocol_values(protocol: str, target_images: Path | None) -> dict[str, Any]:
    """The protocol's config values for images of the size of the first.

    Published scales are relative to images of 1024 pixels; ours are to the images as they lie there.
    """
    shrink = min(1.0, _NETWORK_INPUT / _longest_side(target_images))
    low, high = _SCALES
    return PRESETS[protocol] | {
        "train.augment.scale_range": [low * shrink, high * shrink],
        "evaluation.max_size": _NETWORK_INPUT,
    }


def _longest_side(images: Path | None) -> int:
    from sfss_ray.data.decoding import image_size
    from sfss_ray.data.folders import list_images

    try:
        return max(image_size(list_images(images or Path())[0].path))
    except DataError:
        return _NETWORK_INPUT  # the run, or the plan, says what is wrong with the folder


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Check what was given; plan, or run and print the table. Returns the exit code."""
    require_lasting(arguments.output)
    embedded = arguments.source_model is None and arguments.target_images is None
    if not embedded and not arguments.dry_run:
        _require_both(arguments)
    inputs, base = _embedded(arguments) if embedded else (_given(arguments), Config())
    config = build_config(arguments, base)
    output = arguments.output / "run" if embedded else arguments.output
    if arguments.dry_run:
        return _print_plan(recipe, inputs, output, config, embedded)
    import sfss_ray

    job = sfss_ray.tune_hyperparameters if recipe.search else sfss_ray.adapt
    result = job(**inputs, output_dir=output, config=config)
    print("\n".join(["", *describe(result)]))
    return 0


def _require_both(arguments: argparse.Namespace) -> None:
    for name in ("source_model", "target_images"):
        if getattr(arguments, name) is None:
            raise DataError(
                f"--{name.replace('_', '-')} is missing: give both a source model and target images"
            )


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("source_model", "card", "target_images", "sam_checkpoint", "sam_type", "masks")
    return {name: getattr(arguments, name) for name in (*names, "val_images", "val_labels")}


def _embedded(arguments: argparse.Namespace) -> tuple[dict[str, Any], Config]:
    names = ("sam_checkpoint", "masks", "val_images", "val_labels", "card")
    if any(getattr(arguments, name) for name in names):
        raise DataError(
            "--source-model and --target-images are missing: give both for your own data, or no"
            " data at all for the embedded default"
        )
    if arguments.protocol:
        raise ConfigError(
            "--protocol is for networks and images of the field's size: give --source-model and"
            " --target-images with it, or leave it out for the embedded default"
        )
    from sfss_ray.streets.default import embedded_config, write_embedded_data

    print(
        "No GTA5 model or Cityscapes images were given: this run uses the embedded default, drawn\n"
        "street scenes with the source model and the small SAM that ship with sfss_ray. For your own\n"
        "data give --source-model and --target-images; see --help.",
        flush=True,
    )
    data = write_embedded_data(arguments.output / "data")
    return dict(vars(data)), embedded_config()


def _print_plan(
    recipe: Recipe, inputs: dict[str, Any], output: Path, config: Config, embedded: bool
) -> int:
    """The plan; exit code 0 where a run could start, 1 where something is missing."""
    import sfss_ray

    plan = sfss_ray.plan(**inputs, output_dir=output, config=config, search=recipe.search)
    print("\n".join(["", *plan.lines()]))
    if not embedded and plan.class_set not in ("", recipe.class_set):
        print(f"note: this pair is scored over {recipe.class_set}, the model has {plan.class_set}")
    return 0 if plan.ready else NOT_READY


def main(recipe: Recipe) -> int:
    """The recipe as a program; returns the exit code."""
    arguments = parse_arguments(recipe)
    return run_guarded(lambda: run(recipe, arguments))
