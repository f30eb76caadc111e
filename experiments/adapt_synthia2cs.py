"""Adapt a SYNTHIA source model to Cityscapes images without the source, with the config's own knobs.

    python experiments/adapt_synthia2cs.py
    python experiments/adapt_synthia2cs.py --source-model FILE --target-images DIR --sam-checkpoint FILE

makes SAM masks of the target images, trains one student, and writes it and a report over the 16 classes
that SYNTHIA shares with Cityscapes.
With no arguments it runs on the embedded default: drawn street scenes with a source model and a small
SAM that ship with sfss_ray. `--dry-run` first says what the run needs, how long it takes here, and what
is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import recipe

RECIPE = recipe.Recipe(
    text=__doc__ or "",
    output=Path("runs/adapt_synthia2cs"),
    class_set="synthia-16",
    search=False,
)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """This recipe's command line."""
    return recipe.parse_arguments(RECIPE, words)


def run(arguments: argparse.Namespace) -> int:
    """Plan or run this recipe; returns the exit code."""
    return recipe.run(RECIPE, arguments)


if __name__ == "__main__":
    sys.exit(recipe.main(RECIPE))
