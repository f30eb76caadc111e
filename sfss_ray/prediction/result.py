"""The result of predicting a folder of images, as values and as lines for people."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfss_ray.prediction.outputs import LABEL_IDS
from sfss_ray.storage.places import Place


@dataclass(frozen=True)
class PredictionResult:
    """Counts and errors of the predictions of a folder."""

    output_dir: Place
    images: int
    """Images that have predictions now."""
    made: int
    """Images that this call predicted; the rest were predicted before."""
    kinds: tuple[str, ...]
    """Folders below `output_dir`, each with a PNG per image."""
    seconds: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    """image_id -> why it could not be predicted."""
    changed: int = 0
    """Images that were predicted again because their files had changed."""
    annotations: tuple[Place, ...] = ()
    """Annotation files with all images."""

    def lines(self) -> list[str]:
        """Return the result for people."""
        earlier = self.images - self.made
        lines = [
            f"predictions: {self.output_dir}",
            f"images: {self.images}"
            + (f" ({earlier} were predicted before)" if earlier else "")
            + (f" ({self.changed} changed since and predicted again)" if self.changed else ""),
            f"each as: {', '.join(f'{kind}/ID.png' for kind in self.kinds)}",
        ]
        if self.annotations:
            lines.append(f"annotations: {', '.join(map(str, self.annotations))}")
        if LABEL_IDS not in self.kinds:
            lines.append("no label_ids: the model has classes that Cityscapes has no labelId for")
        if self.errors:
            lines.append(f"{len(self.errors)} images could not be predicted:")
            lines += [f"  {image_id}: {reason}" for image_id, reason in self.errors.items()]
        return lines
