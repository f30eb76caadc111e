"""The source model of a run, prepared so that every worker can load it.

Foreign checkpoints, checkpoints with a changed card and modules in memory are saved as a model file in
the run folder, so later stages read a single format. Importing this module does not import torch.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

from sfss_ray.config import SourceWeights
from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card, CardLike, card_values
from sfss_ray.storage.places import ObjectPath, Place, parsed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sfss_ray.models.model_file import SourceModel
    from sfss_ray.models.segmenter import Segmenter
    from sfss_ray.models.user_code.carried_module import CarriedModule

SourceLike = Union[Path, str, ObjectPath, "SourceModel", "Segmenter"]
"""Path or address of a checkpoint of any known family or of a model file, or a model in memory: a
`SourceModel` or its network, such as `AdaptResult.student`."""

SOURCE_FILE = "source_model.pt"


@dataclass(frozen=True)
class Source:
    """A checked source model. Call `placed` before sending it to workers."""

    path: Place
    """The model file that workers read; before `placed`, the path the user gave."""
    origin: str
    """Where the model came from, for reports: the user's path, also that of weights that were loaded
    into a module, or "a NAME in memory"."""
    sha256: str
    """Hash of the user's checkpoint, or of the weights of a model in memory."""
    network: str
    """The network's name for people."""
    classes: ClassSet
    card: Card
    carried: CarriedModule | None = None
    """The user's own module without its weights, which are in the model file."""
    unsaved: SourceModel | None = None
    """The model itself, as long as no model file holds it."""
    notes: tuple[str, ...] = ()
    """Lines for people about the user's own module: its features, and the sizes that it takes."""
    size_multiple: int = 1
    """Sides of the network's input images must be multiples of this number of pixels."""
    white_level: float | None = None
    """White level of the high bit depth images that the model was adapted to, if any."""
    mark: str = ""
    """A line about a student that its run judged worse than its own source model; empty for others."""
    class_groups: ClassGroups | None = None
    """The groups of outputs that `classes` are, if any."""

    @property
    def label(self) -> str:
        """The model's name in titles: that of its file without suffix, or of a model in memory."""
        # Paths of users are absolute.
        is_path = Path(self.origin).is_absolute() or isinstance(self.path, ObjectPath)
        return Path(self.origin).stem if is_path else self.network

    @property
    def architecture(self) -> nn.Module | None:
        """The user's own module without its weights."""
        return self.carried.module if self.carried else None

    def opening_lines(self) -> list[str]:
        """Return the lines that a verb prints first: the mark as a warning, and the class groups."""
        lines = [f"WARNING: {self.mark}"] if self.mark else []
        if self.class_groups is not None:
            lines.append(f"{self.class_groups}: {self.class_groups.line()}")
        return lines

    def placed(self, folder: Place) -> Source:
        """Return the source with a model file that workers can read, saving it to `folder` if needed."""
        if self.unsaved is None:
            return self
        from sfss_ray.models.model_file import save_model

        path = folder / SOURCE_FILE
        if not path.exists():
            save_model(path, self.unsaved)
        return dataclasses.replace(self, path=path, unsaved=None)

    def load(self, device: torch.device | str = "cpu") -> SourceModel:
        """Return the model on a device, in eval mode."""
        from sfss_ray.models.model_file import load_model

        if self.unsaved is not None:
            return self.unsaved.to(device).eval()
        return load_model(self.path, device, module=self.architecture)


def open_source(
    source_model: SourceLike,
    card: CardLike | None = None,
    weights: SourceWeights = "auto",
    class_groups: ClassGroupsLike | None = None,
) -> Source:
    """Read and check a source model completely, before a cluster starts.

    Args:
        source_model: A path or a model in memory, see `SourceLike`. A model in memory is copied.
        card: Entries that replace those of the model's card.
        weights: Which weights to read from a checkpoint that holds a student and its EMA copy.
        class_groups: Groups of the model's outputs, in place of those that it has.

    Raises:
        CheckpointError: the checkpoint is refused, see `load_source_model`.
        DataError: the class groups do not fit the model's outputs.
        ConfigError: `source_model` is not a model, or cannot be copied.
    """
    from sfss_ray.models.checkpoint_copy import checkpoint_on_disk
    from sfss_ray.models.checkpoints import load_source_model, with_card
    from sfss_ray.models.hub_cache import resolve_source
    from sfss_ray.models.load_report import MODEL_FILE_FAMILY
    from sfss_ray.models.model_file import as_source_model
    from sfss_ray.models.read_file import weights_sha256
    from sfss_ray.models.reading import checkpoint_sha256

    card_entries = card_values(card)
    source_model = parsed(source_model)
    if isinstance(source_model, (str, os.PathLike, ObjectPath)):
        with checkpoint_on_disk(source_model) as file:
            path = resolve_source(file).absolute()
            model = load_source_model(path, card=card, weights=weights, class_groups=class_groups)
            sha256 = checkpoint_sha256(path)
        report = model.load_report
        is_model_file = report is not None and report.family == MODEL_FILE_FAMILY
        location, origin = _origin(source_model, path)
        source = _make_source(model, location, origin, sha256)
        # Workers can read the user's file directly only if it already is what they need.
        if is_model_file and not card_entries and class_groups is None:
            return dataclasses.replace(source, unsaved=None)
        return source

    # A model in memory is copied, because the caller may go on using it.
    copied = _deep_copy(as_source_model(source_model))
    model = with_card(copied, card_entries, copied.name, class_groups).cpu().eval()
    origin, sha256 = f"a {model.title} in memory", weights_sha256(model.network)
    read_from = model.network.read_from
    if read_from is not None and read_from.weights_sha256 == sha256:  # nothing changed them since
        origin, sha256 = read_from.origin, read_from.sha256
    return _make_source(model, Path(SOURCE_FILE), origin, sha256)


def _origin(source_model: str | os.PathLike[str] | ObjectPath, path: Path) -> tuple[Place, str]:
    """Return the place of a checkpoint and its name in reports."""
    if isinstance(source_model, ObjectPath):
        return source_model, str(source_model)
    # A name on the Hugging Face Hub says more than its folder in the cache.
    is_hub_name = not Path(source_model).exists()
    return path, str(source_model) if is_hub_name else str(path)


def _deep_copy(model: SourceModel) -> SourceModel:
    """Return a copy: stages move and change a model, and the caller's must stay untouched."""
    from sfss_ray.models.user_code.carried_module import first_line

    try:
        return copy.deepcopy(model)
    except Exception as error:  # deepcopy calls methods of the user's classes
        raise ConfigError(
            f"the model cannot be copied ({type(error).__name__}: {first_line(error)}): remove the"
            " attribute that cannot be copied, such as a lock, an open file, or a tensor kept from a"
            " training step"
        ) from error


def _make_source(model: SourceModel, path: Place, origin: str, sha256: str) -> Source:
    from sfss_ray.models.model_mark import describe_mark
    from sfss_ray.models.user_code.carried_module import CarriedModule
    from sfss_ray.models.user_code.custom import WrappedSegmenter

    architecture, network = model.architecture, model.network
    return Source(
        path,
        origin,
        sha256,
        model.title,
        model.classes,
        model.card,
        carried=None if architecture is None else CarriedModule(architecture),
        unsaved=model,
        notes=tuple(network.describe()) if isinstance(network, WrappedSegmenter) else (),
        size_multiple=network.size_multiple,
        white_level=model.facts.get("white_level"),
        mark=describe_mark(model.facts),
        class_groups=model.network.class_groups,
    )
