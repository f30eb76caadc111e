"""The verbs of the command line: the function of each, and the parts of the config that it uses."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sfss_ray.config.knobs import Knob, list_knobs
from sfss_ray.config.presets import PRESETS

_VIEWS = tuple(
    f"evaluation.{name}" for name in ("max_size", "mode", "window", "stride", "flip", "scales")
)
"""How a network sees an image."""
_HELD_OUT = ("evaluation.held_out_share", "evaluation.held_out_max")
_LABELS = ("labels_format", "labels_classes")
_CLUSTER = ("compute.address", "compute.device")
_NODES = (
    *_CLUSTER,
    "compute.wait_for_nodes_s",
    "compute.accelerator_type",
    "compute.cache_gb",
    "compute.label_selector",
    "compute.ray_logs",
    "compute.ray_progress",
)
_WORKERS = (
    "compute.num_workers",
    "compute.resize_interval_s",
    "compute.gpus_per_worker",
    "compute.cpus_per_worker",
    "compute.loader_processes",
    "compute.max_failures",
)
_TRAINING = ("seed", *_LABELS, "source_weights", "white_level", "train", *_VIEWS, *_HELD_OUT)
_ADAPTATION = (
    *_TRAINING,
    "masks",
    "evaluation.pictures",
    "report",
    *_NODES,
    *_WORKERS,
    "compute.mask_actors",
    "compute.gpus_per_actor",
)


@dataclass(frozen=True)
class Verb:
    """A function of the package as a command."""

    name: str
    module: str
    function_name: str
    summary: str
    """One line for the list of verbs."""
    uses: tuple[str, ...]
    """The knobs that the function reads; the name of a group stands for all its knobs."""
    is_positional: bool = False
    """Whether required arguments need no name: `sfss-ray predict MODEL IMAGES OUTPUT_DIR`."""
    can_dry_run: bool = False
    """Whether `plan` can estimate its run."""
    documented_by: str = ""
    """The function of the same module whose docstring describes the arguments, if another one does."""

    def function(self) -> Callable[..., Any]:
        """Import and return the function."""
        return getattr(importlib.import_module(self.module), self.function_name)

    def documentation(self) -> str:
        """Return the docstring that describes the arguments."""
        name = self.documented_by or self.function_name
        return inspect.getdoc(getattr(importlib.import_module(self.module), name)) or ""

    def uses_knob(self, name: str) -> bool:
        """Return whether the function reads a knob, given by dotted name."""
        return any(name == part or name.startswith(f"{part}.") for part in self.uses)

    def knobs(self) -> list[Knob]:
        """Return the knobs that the function reads, in the order of the config."""
        return [knob for knob in list_knobs() if self.uses_knob(knob.name)]

    def uses_presets(self) -> bool:
        """Return whether a preset changes anything that the function reads."""
        return any(self.uses_knob(name) for values in PRESETS.values() for name in values)


_ALL_VERBS = (
    Verb(
        "masks",
        "sfss_ray.masks.generate",
        "generate_masks",
        "make SAM masks for a folder of images",
        ("white_level", "masks", *_NODES, "compute.mask_actors", "compute.gpus_per_actor"),
    ),
    Verb(
        "masks import",
        "sfss_ray.masks.importing.import_folder",
        "import_masks",
        "import masks that other tools made",
        ("white_level", "masks.images_per_shard"),
        is_positional=True,
    ),
    Verb(
        "masks export",
        "sfss_ray.masks.importing.export_folder",
        "export_masks",
        "write masks as COCO JSON, or as amg.py does",
        (),
        is_positional=True,
    ),
    Verb(
        "masks inspect",
        "sfss_ray.inspection.mask_folder",
        "inspect_masks",
        "summarise a folder of masks, and draw some of them",
        ("seed",),
        is_positional=True,
    ),
    Verb(
        "pretrain",
        "sfss_ray.train.launch",
        "pretrain_source",
        "train a source model on labelled images",
        ("seed", *_LABELS, "white_level", "pretrain", *_VIEWS, *_NODES, *_WORKERS),
    ),
    Verb(
        "train",
        "sfss_ray.train.launch",
        "train_student",
        "adapt a source model with existing masks, without report or verdict",
        (*_TRAINING, *_NODES, *_WORKERS),
    ),
    Verb(
        "adapt",
        "sfss_ray.pipeline",
        "adapt",
        "adapt a source model to unlabelled images",
        _ADAPTATION,
        can_dry_run=True,
    ),
    Verb(
        "tune",
        "sfss_ray.pipeline",
        "tune_hyperparameters",
        "search temperature, contrast weight and EMA momentum, then adapt",
        (*_ADAPTATION, "tune", "compute.concurrent_trials"),
        can_dry_run=True,
        documented_by="adapt",
    ),
    Verb(
        "verify",
        "sfss_ray.inspection.source_model",
        "verify_source",
        "check a source checkpoint before anything is trained",
        (*_LABELS, "source_weights", "white_level", *_VIEWS, *_CLUSTER),
    ),
    Verb(
        "evaluate",
        "sfss_ray.evaluation.scoring",
        "evaluate_model",
        "score a model on labelled images",
        (*_LABELS, "source_weights", "white_level", *_VIEWS, *_CLUSTER),
    ),
    Verb(
        "data check",
        "sfss_ray.inspection.data_set",
        "check_dataset",
        "identify a labelled data set and list its problems",
        (*_LABELS, "white_level"),
        is_positional=True,
    ),
    Verb(
        "predict",
        "sfss_ray.prediction.folder",
        "predict",
        "predict every image of a folder",
        (
            "source_weights",
            "white_level",
            *_VIEWS,
            *_NODES,
            "compute.predict_actors",
            "compute.gpus_per_actor",
            "compute.predict_on_ray_from",
        ),
        is_positional=True,
    ),
    Verb(
        "export",
        "sfss_ray.prediction.onnx_export",
        "export_onnx",
        "write a model as ONNX, and check it",
        ("seed", "source_weights"),
        is_positional=True,
    ),
)
VERBS: dict[str, Verb] = {verb.name: verb for verb in _ALL_VERBS}
VERB_GROUPS = {name.partition(" ")[0] for name in VERBS if " " in name} - VERBS.keys()
"""First words of verbs that are no verb by themselves."""
