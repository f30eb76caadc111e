"""Adapt as a user would, by `sfss_ray.adapt` with its defaults, once for each seed.

    python experiments/studies/plain_runs.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnet_p_2_q_8.pth --steps 100
    python experiments/studies/plain_runs.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnetv2_s_1.0_city_1024x512.pth --steps 100 --every 8
    python experiments/studies/plain_runs.py --pair cityscapes --data DIR \
        --source-model espnetv2_s_2.0_city_1024x512.pth --steps 100

The other studies train with all target images, in this process. Here a run holds images out, chooses its
crop and BatchNorm statistics, trains on Ray, and judges its student without labels. Only the number of
steps, the seed, the regions (Felzenszwalb's, which need no SAM weights) and, for Cityscapes,
`evaluation.max_size 1024` are given. The student is scored afterwards. `--every 8` adapts to every
eighth target image. `--shares 0.25 0.5` also scores each student with other shares of the source model
in its weights. `--set train.batch_norm=frozen` changes a setting, for a table of remedies. The script
writes plain_PAIR.json and .md, or plain_PAIR_every_8.*. With other seeds or settings they are named
trial_PAIR_* after these.
"""

from __future__ import annotations

import argparse
import copy
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ablation import add_pair_options, make_pair
from class_losses import worst_class
from domain_pairs import DomainPair
from study_record import write_record

from sfss_ray.cli import run_guarded
from sfss_ray.config.config_file import parse_yaml
from sfss_ray.errors import ConfigError

if TYPE_CHECKING:
    from sfss_ray.config import Config
    from sfss_ray.models.segmenter import Segmenter


def make_config(pair: DomainPair, arguments: argparse.Namespace, seed: int) -> Config:
    """Return the configuration of a run: the defaults and what this study changes."""
    from sfss_ray.config import Config, override

    changes = {
        "seed": seed,
        "masks.regions": "felzenszwalb",
        "train.num_steps": arguments.steps,
        "evaluation.max_size": pair.config.evaluation.max_size,
    }
    return override(Config(), changes | read_settings(arguments.set))


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings of `--set NAME=VALUE`; a value is written as in YAML."""
    if not all("=" in text for text in texts):
        raise ConfigError("--set takes NAME=VALUE, for example train.batch_norm=frozen")
    pairs = (text.split("=", 1) for text in texts)
    return {name: parse_yaml(value) for name, value in pairs}


def write_target(pair: DomainPair, folder: Path, every: int) -> Path:
    """Write links to every n-th target image."""
    for file in pair.images[::every]:
        link = folder / f"{file.image_id}{file.path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(str(file.path.absolute()))
    return folder


def adapt_once(pair: DomainPair, arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Adapt with one seed, and return a row for the source model and one for the student."""
    import sfss_ray
    from sfss_ray.evaluation.examination import Examination
    from sfss_ray.models.model_file import load_model

    config, steps = make_config(pair, arguments, seed), arguments.steps
    images = write_target(pair, pair.folder / "plain" / f"every_{arguments.every}", arguments.every)
    folder = f"every_{arguments.every}_steps_{steps}{name_settings(arguments.set)}"
    result = sfss_ray.adapt(
        pair.source_model, images, pair.folder / "plain" / folder / f"seed{seed}", config=config
    )
    verdict, target = result.report.verdict, result.report.target
    assert verdict is not None
    assert target is not None
    exam = Examination(pair.classes, pair.val, config=pair.config.evaluation)
    source, student = load_model(pair.source_model).network, load_model(result.student_path).network
    present = result.report.config["train.source_share"]
    networks = {"source-only": source, "student": student}
    networks |= {
        f"student, source_share {share:g}": with_share(student, source, share, present)
        for share in arguments.shares
    }
    rows = []
    for name, network in networks.items():
        score = exam.score(network.eval())
        facts = {"network": name, "seed": seed, "steps": steps}
        facts |= {"miou": score.miou, "per_class": score.as_dict()["per_class"]}
        run = {"verdict": verdict.word, "images": target.images, "held_out": target.held_out}
        rows.append(facts | run)
    return rows


def name_settings(texts: Sequence[str]) -> str:
    """Return a part of a file name for the settings of `--set`, empty without any."""
    return "".join(f"_{re.sub(r'[^0-9A-Za-z]+', '_', text).strip('_')}" for text in texts)


def with_share(student: Segmenter, source: Segmenter, share: float, present: float) -> Segmenter:
    """Return a copy of a student with another share of the source model than the present one.

    A smaller share lies beyond the student, on the line from the source model.
    """
    from sfss_ray.train.weight_average import average_weights

    added = 1 - (1 - share) / (1 - present)
    changed = copy.deepcopy(student)
    changed.load_state_dict(average_weights(student.state_dict(), source.state_dict(), added))
    return changed


def as_markdown(
    pair: DomainPair, rows: Sequence[Mapping[str, Any]], command: str, classes: Sequence[str]
) -> str:
    """Return a line for each network, with the mean over the seeds, and the verdict of each seed."""
    seeds = sorted({row["seed"] for row in rows})
    first = rows[0]
    lines = [
        f"# {pair.name}: {first['images']} target images ({first['held_out']} held out),"
        f" {len(pair.val)} scored",
        "",
        f"`{command}`",
        "",
        f"`sfss_ray.adapt` with its defaults and the settings of the command, {first['steps']} steps,"
        f" Felzenszwalb's regions, last step, seeds {', '.join(map(str, seeds))}.",
        "",
        "| network | mIoU % | gain | gain in each seed | class that loses most |",
        "|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(row["network"] for row in rows))
    source = [row for row in rows if row["network"] == names[0]]
    for name in names:
        chosen = [row for row in rows if row["network"] == name]
        gains = [row["miou"] - before["miou"] for row, before in zip(chosen, source, strict=True)]
        mious = [row["miou"] for row in chosen]
        spread = f" ± {np.std(mious, ddof=1):.1f}" if len(mious) > 1 else ""
        each = ", ".join(f"{gain:+.1f}" for gain in gains)
        lines.append(
            f"| {name} | {np.mean(mious):.1f}{spread} | {np.mean(gains):+.1f} | {each}"
            f" | {worst_class(chosen, source[0], classes)} |"
        )
    verdicts = ", ".join(f"{row['verdict']} (seed {row['seed']})" for row in source)
    return "\n".join([*lines, "", f"Verdicts: {verdicts}.", ""])


def describe(pair: DomainPair, arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the options of the command, and the name of its files.

    Other seeds than the usual three and changed settings are trials of their own.
    """
    options, name = f"{pair.options} --steps {arguments.steps}", f"plain_{pair.name}"
    if arguments.shares:
        options += f" --shares {' '.join(f'{share:g}' for share in arguments.shares)}"
    if arguments.every > 1:
        options, name = f"{options} --every {arguments.every}", f"{name}_every_{arguments.every}"
    first, seeds = arguments.first_seed, arguments.seeds
    if (first, seeds) == (0, 3) and not arguments.set:
        return options, name
    options += f" --first-seed {first} --seeds {seeds}"
    if arguments.set:
        options += f" --set {shlex.join(arguments.set)}"
    name = name.replace("plain", "trial", 1)
    name += f"_{arguments.steps}_steps_seeds_{first}_to_{first + seeds - 1}"
    return options, name + name_settings(arguments.set)


def run(arguments: argparse.Namespace) -> None:
    """Adapt with each seed, and write the table after each."""
    if min(arguments.steps, arguments.every, arguments.seeds) < 1:
        raise ConfigError("--steps, --every and --seeds are 1 or more")
    if not all(0 <= share <= 1 for share in arguments.shares):
        raise ConfigError("--shares are 0 to 1")
    pair = make_pair(arguments)
    if arguments.shares and make_config(pair, arguments, 0).train.source_share == 1:
        raise ConfigError("--shares need a student: leave them out, or lower train.source_share")
    options, name = describe(pair, arguments)
    command = f"python experiments/studies/plain_runs.py {options}"
    stem = arguments.results / name
    arguments.results.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        rows += adapt_once(pair, arguments, seed)
        write_record(stem.with_suffix(".json"), command, "cpu", rows)
        table = as_markdown(pair, rows, command, pair.classes.classes)
        stem.with_suffix(".md").write_text(table)
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the lowest seed")
    parser.add_argument("--steps", type=int, default=200, help="steps of every run")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=[], help="other shares of the source model"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that every run changes"
    )
    parser.add_argument("--every", type=int, default=1, help="adapt to every n-th target image")
    sys.exit(run_guarded(lambda: run(parser.parse_args())))
