"""The main job: adapt a GTA5 (or any) source model to Cityscapes (or any) images without the source.

    python experiments/tune_gta2cs.py
    python experiments/tune_gta2cs.py --source-model FILE --target-images DIR --sam-checkpoint FILE

This recipe makes SAM masks of the target images, searches temperature, contrast weight and EMA momentum,
trains with the best values, and writes the adapted model and a report. With no arguments it runs on the
embedded default: drawn street scenes with a source model and a small SAM that ship with sfss_ray.
`--dry-run` prints what the run needs, how long it takes here, and what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import recipe

RECIPE = recipe.Recipe(
    script="tune_gta2cs.py",
    text=__doc__ or "",
    verb="tune",
    output_dir=Path("runs/gta2cs"),
    class_set="cityscapes-19",
)


def main(words: Sequence[str] | None = None) -> int:
    """Plan or run this recipe and return the exit code."""
    return recipe.main(RECIPE, words)


if __name__ == "__main__":
    sys.exit(main())
