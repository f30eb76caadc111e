"""Source-free adaptation of segmentation models with SAM masks, on Ray.

`import sfss_ray` costs nothing: each public name loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sfss_ray.version import __version__ as __version__

if TYPE_CHECKING:
    from sfss_ray.config import Config, load_config, override
    from sfss_ray.errors import SfssError
    from sfss_ray.evaluation.scoring import evaluate_model
    from sfss_ray.inspection.run_plan import plan
    from sfss_ray.inspection.source_model import verify_source
    from sfss_ray.masks.bank.store import MaskStore
    from sfss_ray.masks.generate import generate_masks
    from sfss_ray.masks.importing.export_folder import export_masks
    from sfss_ray.masks.importing.import_folder import import_masks
    from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
    from sfss_ray.models.card import Card
    from sfss_ray.models.checkpoints import load_source_model
    from sfss_ray.models.model_file import SourceModel, load_model, save_model
    from sfss_ray.models.user_code.wrapping import wrap_model
    from sfss_ray.pipeline import AdaptResult, TuneResult, adapt, tune_hyperparameters
    from sfss_ray.prediction.folder import predict
    from sfss_ray.prediction.onnx_export import export_onnx
    from sfss_ray.tracking.tracker import Tracker
    from sfss_ray.train.launch import pretrain_source, train_student

__all__ = [
    "AdaptResult",
    "AutomaticMaskGenerator",
    "Card",
    "Config",
    "MaskStore",
    "SfssError",
    "SourceModel",
    "Tracker",
    "TuneResult",
    "adapt",
    "evaluate_model",
    "export_masks",
    "export_onnx",
    "generate_masks",
    "import_masks",
    "load_config",
    "load_model",
    "load_source_model",
    "override",
    "plan",
    "predict",
    "pretrain_source",
    "save_model",
    "train_student",
    "tune_hyperparameters",
    "verify_source",
    "wrap_model",
]

_HOMES = {
    "AdaptResult": "pipeline",
    "AutomaticMaskGenerator": "masks.sam.generator",
    "Card": "models.card",
    "Config": "config",
    "MaskStore": "masks.bank.store",
    "SfssError": "errors",
    "SourceModel": "models.model_file",
    "Tracker": "tracking.tracker",
    "TuneResult": "pipeline",
    "adapt": "pipeline",
    "evaluate_model": "evaluation.scoring",
    "export_masks": "masks.importing.export_folder",
    "export_onnx": "prediction.onnx_export",
    "generate_masks": "masks.generate",
    "import_masks": "masks.importing.import_folder",
    "load_config": "config",
    "load_model": "models.model_file",
    "load_source_model": "models.checkpoints",
    "override": "config",
    "plan": "inspection.run_plan",
    "predict": "prediction.folder",
    "pretrain_source": "train.launch",
    "save_model": "models.model_file",
    "train_student": "train.launch",
    "tune_hyperparameters": "pipeline",
    "verify_source": "inspection.source_model",
    "wrap_model": "models.user_code.wrapping",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'sfss_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sfss_ray.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
