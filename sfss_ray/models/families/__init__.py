"""The families of source checkpoints, recognised by their keys, in the order they are asked."""

from __future__ import annotations

from sfss_ray.models.families.recognised import Recognised, Recogniser

FAMILIES: tuple[tuple[str, Recogniser], ...] = ()

__all__ = ["FAMILIES", "Recognised", "Recogniser"]
