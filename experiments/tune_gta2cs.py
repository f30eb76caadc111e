"""The main job: adapt a GTA5 (or any) source model to Cityscapes (or any) images without the source.

    python experiments/tune_gta2cs.py
    python experiments/tune_gta2cs.py --source-model FILE --target-images DIR --sam-checkpoint FILE

makes SAM masks of the target images, searches temperature, contrast weight and EMA momentum, trains
with the best values, and writes the adapted model and a report. With no arguments it runs on the
embedded default: drawn street scenes with a source model and a small SAM that ship with sfss_ray.
`--dry-run` first says what the run needs, how long it takes here, and what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import recipe

RECIPE = recipe.Recipe(
    text=__doc__ or "",
    output=Path("runs/gta2cs"),
    class_set="cityscapes-19",
    search=True,
)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """This recipe's command line."""
    return recipe.parse_arguments(RECIPE, words)


def run(arguments: argparse.Namespace) -> int:
    """Plan or run this recipe; returns the exit code."""
    return recipe.run(RECIPE, arguments)


if __name__ == "__main__":
    sys.exit(recipe.main(RECIPE))
