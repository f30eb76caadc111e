"""Adapt a GTA5 source model to Cityscapes images without the source, with the config's own values.

    python experiments/adapt_gta2cs.py
    python experiments/adapt_gta2cs.py --source-model FILE --target-images DIR --sam-checkpoint FILE

This recipe makes SAM masks of the target images, trains one student, and writes it with a report over
Cityscapes' 19 classes. With no arguments it runs on the embedded default: drawn street scenes with a
source model and a small SAM that ship with sfss_ray. `--dry-run` prints what the run needs, how long it
takes here, and what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import recipe

RECIPE = recipe.Recipe(
    script="adapt_gta2cs.py",
    text=__doc__ or "",
    verb="adapt",
    output_dir=Path("runs/adapt_gta2cs"),
    class_set="cityscapes-19",
)


def main(words: Sequence[str] | None = None) -> int:
    """Plan or run this recipe and return the exit code."""
    return recipe.main(RECIPE, words)


if __name__ == "__main__":
    sys.exit(main())
