"""The program that the recipes share: adapt or tune on one pair of domains, or the embedded default."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfss_ray.cli import VERBS, describe, run_guarded
from sfss_ray.cli.calls import Call, Program, help_text, parse
from sfss_ray.cli.command_line import execute
from sfss_ray.cli.results import exit_code
from sfss_ray.cli.words import option_names, take_value
from sfss_ray.config import NETWORK_PRESETS, Config
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.storage.files import lasting_place
from sfss_ray.streets.default import embedded_config, write_embedded_data

_DATA = (
    "source_model",
    "target_images",
    "card",
    "class_groups",
    "sam_checkpoint",
    "masks",
    "val_images",
    "val_labels",
)
"""Arguments that name the user's own data."""


@dataclass(frozen=True)
class Recipe:
    """One job on one pair of domains."""

    script: str
    text: str
    """The introduction of the help page."""
    verb: str
    """tune searches hyperparameters first; adapt trains one student with the config's own values."""
    output_dir: Path
    class_set: str
    """Class set of the pair's benchmark."""

    def program(self, config: Config) -> Program:
        """Return the verb with this recipe's defaults; the data may be left out."""
        defaults = {"source_model": None, "target_images": None, "output_dir": self.output_dir}
        name = f"python experiments/{self.script}"
        return Program(VERBS[self.verb], name, self.text, config, defaults)


def main(recipe: Recipe, words: Sequence[str] | None = None) -> int:
    """Run a recipe with the words of a command line (None: this process's); return the exit code."""
    arguments = sys.argv[1:] if words is None else list(words)
    return run_guarded(lambda: _run(recipe, arguments))


def _run(recipe: Recipe, words: Sequence[str]) -> int:
    page = help_text(recipe.program(Config()), words)
    if page is not None:
        print(page)
        return 0
    is_embedded = not {"--source-model", "--target-images"} & set(option_names(words))
    call = parse(recipe.program(embedded_config() if is_embedded else Config()), words)
    if call.print_config:
        return execute(call)
    # A folder that does not last is refused before scenes are drawn into it.
    lasting_place(call.arguments["output_dir"])
    if is_embedded:
        _refuse_half_of_the_data(call, words)
        call = _with_embedded_data(call)
    elif not call.dry_run:
        _require_both(call)
    result = call.result()
    print("\n".join(["", *describe(result)]))
    if call.dry_run and not is_embedded and result.class_set not in ("", recipe.class_set):
        print(
            f"note: this pair is scored over {recipe.class_set}, the model has {result.class_set}"
        )
    return exit_code(result)


def _require_both(call: Call) -> None:
    for name in ("source_model", "target_images"):
        if call.arguments[name] is None:
            raise DataError(
                f"--{name.replace('_', '-')} is missing: give both a source model and target images"
            )


def _refuse_half_of_the_data(call: Call, words: Sequence[str]) -> None:
    """Refuse own data without a model and images, and settings for networks of another size."""
    if any(call.arguments[name] for name in _DATA):
        raise DataError(
            "--source-model and --target-images are missing: give both for your own data, or no"
            " data at all for the embedded default"
        )
    preset, _ = take_value(words, "--preset")
    if preset in NETWORK_PRESETS:
        raise ConfigError(
            f"--preset {preset} is for networks and images of published sizes: give --source-model"
            " and --target-images with it, or leave it out for the embedded default"
        )


def _with_embedded_data(call: Call) -> Call:
    """Draw the embedded default's scenes beside the run, and return the call on them."""
    print(
        "No GTA5 model or Cityscapes images were given: this run uses the embedded default, drawn\n"
        "street scenes with the source model and the small SAM that ship with sfss_ray. For your own\n"
        "data give --source-model and --target-images; see --help.",
        flush=True,
    )
    folder = lasting_place(call.arguments["output_dir"])
    data = write_embedded_data(folder / "data")
    return dataclasses.replace(
        call, arguments=call.arguments | vars(data) | {"output_dir": folder / "run"}
    )
