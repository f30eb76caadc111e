"""The source model of a run: from whatever was given to a file that every worker reads.

Foreign checkpoints, changed cards and users' own modules become a model file in the run's folder; the
stages after that know one kind of file alone. Importing this module costs no torch.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

from sfss_ray.config import SourceWeights
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card, CardLike, card_values

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sfss_ray.models.model_file import SourceModel
    from sfss_ray.models.segmenter import Segmenter
    from sfss_ray.models.user_code.carried_module import CarriedModule

SourceLike = Union[Path, str, "SourceModel", "Segmenter"]
"""The path of a checkpoint of any known family or of a model file, or a model in memory: a source model
or its network, as `AdaptResult.student` is."""

SOURCE_FILE = "source_model.pt"


@dataclass(frozen=True)
class Source:
    """A checked source model. It travels to workers once `placed` has written its file."""

    path: Path
    """The model file workers read; the given file until then."""
    origin: str
    """What was given, for reports."""
    sha256: str
    """Of the given file, or of the weights of a model in memory."""
    network: str
    classes: ClassSet
    card: Card
    carried: CarriedModule | None = None
    """A user's own module without its weights, which the file holds."""
    unplaced: SourceModel | None = None
    """The model, where no file of this package holds it yet."""
    white_level: float | None = None
    """What was white in the images of more than 8 bits that the model was adapted to."""

    @property
    def architecture(self) -> nn.Module | None:
        """The user's own module without its weights."""
        return self.carried.module if self.carried else None

    def placed(self, folder: Path) -> Source:
        """The source with a model file that workers can read, in the run's folder if need be."""
        if self.unplaced is None:
            return self
        from sfss_ray.models.model_file import save_model

        path = folder / SOURCE_FILE
        if not path.exists():
            save_model(path, self.unplaced)
        return dataclasses.replace(self, path=path, unplaced=None)

    def load(self, device: torch.device | str = "cpu") -> SourceModel:
        """The model on a device, in eval mode."""
        from sfss_ray.models.model_file import load_model

        if self.unplaced is not None:
            return self.unplaced.to(device).eval()
        return load_model(self.path, device, module=self.architecture)


def open_source(
    source_model: SourceLike, card: CardLike | None = None, weights: SourceWeights = "auto"
) -> Source:
    """Read and check a source model whole, before a cluster starts.

    `weights` chooses between a student and its EMA copy in a checkpoint that holds both.

    Raises:
        CheckpointError: see `load_source_model`. ConfigError: what was given is no model.
    """
    from sfss_ray.models.checkpoints import load_source_model, with_card
    from sfss_ray.models.load_report import OWN_FAMILY
    from sfss_ray.models.model_file import source_model_of
    from sfss_ray.models.reading import checkpoint_sha256

    values = card_values(card)
    if isinstance(source_model, (str, os.PathLike)):
        model = load_source_model(source_model, card=card, weights=weights)
        path = Path(source_model).absolute()
        own = model.load_report is not None and model.load_report.family == OWN_FAMILY
        foreign = bool(values) or not own
        return _source(model, path, str(path), checkpoint_sha256(path), foreign)
    given = _copied(source_model_of(source_model))
    model = with_card(given, values, given.name).cpu().eval()
    origin = type(model.network.body).__name__ if model.architecture is not None else model.name
    return _source(model, Path(SOURCE_FILE), f"a {origin} in memory", _weights_sha256(model), True)


def _copied(model: SourceModel) -> SourceModel:
    """A copy, for stages move and change a model, and the caller's stays as it is."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # copying calls methods of the user's classes
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(
            f"the model cannot be copied ({type(error).__name__}: {reason[:200]}): remove the attribute"
            " that cannot, such as a lock, an open file, or a tensor kept from a training step"
        ) from error


def _source(model: SourceModel, path: Path, origin: str, sha256: str, foreign: bool) -> Source:
    from sfss_ray.models.user_code.carried_module import CarriedModule

    architecture = model.architecture
    return Source(
        path,
        origin,
        sha256,
        model.name,
        model.classes,
        model.card,
        None if architecture is None else CarriedModule(architecture),
        model if foreign else None,
        model.facts.get("white_level"),
    )


def _weights_sha256(model: SourceModel) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
