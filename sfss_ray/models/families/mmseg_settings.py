"""Settings of an mmsegmentation checkpoint that its keys do not reveal.

They are read from the configuration in the file, or assumed. A configuration that names the backbone's
type is complete: settings that it leaves out have mmsegmentation's defaults. From an incomplete one (a
text without its `_base_` files), only the settings in the text are used, and the rest is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.card import Card, ChannelOrder, Triple
from sfss_ray.models.families.epsilon import EPSILON
from sfss_ray.models.families.mmseg_config import Config, config_of, has_config, nested_entry

MMSEG_MEAN: Triple = (123.675, 116.28, 103.53)
MMSEG_STD: Triple = (58.395, 57.12, 57.375)
HEAD_TYPES = {
    "DLV2Head": "deeplabv2",
    "ASPPHead": "deeplabv3",
    "DepthwiseSeparableASPPHead": "deeplabv3plus",
    "SegformerHead": "segformer_mmseg",
    "SegFormerHead": "segformer",
    "DAFormerHead": "daformer",
    "HRDAHead": "hrda",
}
"""The decode heads that this package builds, by their names in mmsegmentation and DAFormer."""


@dataclass
class Settings:
    """The settings of a file, and for the notes where each of them comes from."""

    config: Config | None
    unreadable: bool = False
    """Whether the file has a configuration that is not Python, or that has no model."""
    mean: Triple = MMSEG_MEAN
    std: Triple = MMSEG_STD
    channel_order: ChannelOrder = "rgb"
    align_corners: bool = False
    read: list[str] = field(default_factory=list)
    """Descriptions of the settings that come from the configuration."""
    assumed: list[str] = field(default_factory=list)
    """Descriptions of the settings that are assumed."""
    remarks: list[str] = field(default_factory=list)
    """Further sentences for the notes."""

    @property
    def is_complete(self) -> bool:
        """Whether settings that the configuration leaves out have mmsegmentation's defaults."""
        return isinstance(nested_entry(self.config, "model", "backbone", "type"), str)

    def card(self, classes: tuple[str, ...] = ()) -> Card:
        """Return the card of the file: mmsegmentation feeds pixels of 0 to 255."""
        return Card(self.mean, self.std, self.channel_order, 255.0, self.align_corners, classes)

    def get(self, *path: str) -> Any:
        """Return an entry of the model's configuration, or None."""
        return nested_entry(self.config, "model", *path)

    def record(self, name: str, setting: Any, is_stated: bool) -> None:
        """Record a setting for the notes, as read (stated, or left at its default) or as assumed."""
        descriptions = self.read if is_stated or self.is_complete else self.assumed
        descriptions.append(f"{name} {format_setting(setting)}")

    def integers(
        self, name: str, path: tuple[str, ...], defaults: tuple[Sequence[int], Sequence[int]]
    ) -> list[int]:
        """Return positive integers of the configuration, or a default.

        Args:
            name: The setting's name in the notes.
            path: Its keys in the model's configuration.
            defaults: mmsegmentation's default, and the value to assume without a complete configuration.

        Raises:
            CheckpointError: the entry is not as many positive integers as the default.
        """
        entry = self.get(*path)
        default = defaults[0] if self.is_complete else defaults[1]
        self.record(name, default if entry is None else entry, entry is not None)
        if entry is None:
            return list(default)
        are_integers = isinstance(entry, (list, tuple)) and all(
            type(v) is int and v > 0 for v in entry
        )
        if not are_integers or len(entry) != len(default):
            raise unsupported_setting(".".join(path), entry, f"{len(default)} integers from 1")
        return list(entry)

    def epsilon(self, part: str) -> float:
        """Return the epsilon of the BatchNorms in `backbone` or `decode_head`."""
        entry = self.get(part, "norm_cfg", "eps")
        if entry is None:
            return EPSILON
        if not isinstance(entry, (int, float)) or entry < 0:
            raise unsupported_setting(f"{part}.norm_cfg.eps", entry, "a number from 0")
        if entry != EPSILON:
            self.record(f"{part}'s BatchNorm epsilon", entry, True)
        return float(entry)

    def notes(self) -> tuple[str, ...]:
        """Return the sentences for the load report."""
        sentences = []
        if self.read:
            sentences.append(
                f"read from the file's configuration (meta.cfg): {'; '.join(self.read)}"
            )
        if self.assumed:
            grid_assumed = any(setting.startswith("output stride") for setting in self.assumed)
            examples = (
                ", such as one of 769x769 crops (align_corners true) or d16 (output stride 16),"
            )
            sentences.append(
                f"the configuration (meta.cfg) {self._gap()}, so these settings are assumed:"
                f" {'; '.join(self.assumed)} (a model with other"
                f" settings{examples if grid_assumed else ''} predicts worse here)"
            )
        return (*sentences, *self.remarks)

    def _gap(self) -> str:
        if self.config is not None:
            return "is incomplete"
        return "cannot be read" if self.unreadable else "is not in the file"


def format_setting(setting: Any) -> str:
    """Return a setting as notes and errors write it."""
    if isinstance(setting, (list, tuple)):
        return ", ".join(map(format_setting, setting))
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def unsupported_setting(name: str, setting: Any, supported: str) -> CheckpointError:
    """Return the error for a configuration that no network of this package represents."""
    printed = repr(setting)
    printed = printed if len(printed) <= 80 else f"{printed[:77]}..."
    return CheckpointError(
        f"its configuration (meta.cfg) has {name} {printed}: supported is {supported}; any other"
        " network can be given in Python with sfss_ray.wrap_model"
    )


def read_settings(content: Any, head_type: str, outputs: int) -> Settings:
    """Read preprocessing and corner rule, and check the decode head.

    Args:
        content: The loaded checkpoint.
        head_type: The type of head that its keys show, a value of HEAD_TYPES.
        outputs: The number of outputs of its classifier.

    Raises:
        CheckpointError: the configuration contradicts the keys, or is not supported.
    """
    config = config_of(content)
    settings = Settings(config, unreadable=config is None and has_config(content))
    _read_preprocessing(settings)
    _check_head(settings, head_type, outputs)
    align_corners = settings.get("decode_head", "align_corners")
    if align_corners is not None and not isinstance(align_corners, bool):
        raise unsupported_setting("decode_head.align_corners", align_corners, "True or False")
    settings.align_corners = bool(align_corners)
    settings.record("align_corners", settings.align_corners, align_corners is not None)
    if settings.get("test_cfg", "mode") == "slide":
        size = settings.get("test_cfg", "crop_size")
        settings.remarks.append(
            f"its authors tested it on sliding windows of {format_setting(size)}: here it takes whole"
            " images"
        )
    return settings


def _check_head(settings: Settings, head_type: str, outputs: int) -> None:
    """Raise CheckpointError if the configured head is not the one that the keys show."""
    head = settings.get("decode_head")
    if isinstance(head, (list, tuple)):
        types = [nested_entry(part, "type") for part in head]
        raise unsupported_setting("decode_head", types, "a single head")
    name = nested_entry(head, "type")
    if isinstance(name, str):
        name = name.rpartition(".")[2]
        expected = next(n for n, type_of_name in HEAD_TYPES.items() if type_of_name == head_type)
        if HEAD_TYPES.get(name, head_type) != head_type:
            raise unsupported_setting(
                "decode_head.type", name, f"{expected}, to which the keys of the file belong"
            )
        if name not in HEAD_TYPES:
            settings.remarks.append(
                f"the decode head {name} is unknown: judging by its keys, it is built as {expected}"
            )
    configured = nested_entry(head, "out_channels") or nested_entry(head, "num_classes")
    if isinstance(configured, int) and configured != outputs:
        raise unsupported_setting(
            "decode_head.num_classes",
            configured,
            f"{outputs}, the number of outputs of the file's classifier",
        )
    if nested_entry(head, "out_channels") == 1:
        raise unsupported_setting("decode_head.out_channels", 1, "one output for each class")


def _read_preprocessing(settings: Settings) -> None:
    normalisation = _find_normalisation(settings.config)
    if normalisation is None:
        settings.assumed.append("RGB images of 0 to 255 with mmsegmentation's mean and std")
        return
    settings.mean = _triple("mean", normalisation.get("mean"), (0.0, 0.0, 0.0))
    settings.std = _triple("std", normalisation.get("std"), (1.0, 1.0, 1.0))
    if min(settings.std) <= 0:
        raise unsupported_setting("std", normalisation.get("std"), "three numbers above 0")
    # mmcv reads images as BGR, so any swap of the channels gives RGB.
    swaps = [normalisation.get(name) for name in ("to_rgb", "bgr_to_rgb", "rgb_to_bgr")]
    settings.channel_order = "rgb" if any(swap is True for swap in swaps) else "bgr"
    settings.read.append(
        f"{settings.channel_order.upper()} images, mean {format_setting(settings.mean)},"
        f" std {format_setting(settings.std)}"
    )


def _find_normalisation(config: Config | None) -> Mapping[str, Any] | None:
    """Return the entry with mean and std: the preprocessor of mmseg 1, or a pipeline's Normalize."""
    for path in (("model", "data_preprocessor"), ("data_preprocessor",), ("img_norm_cfg",)):
        entry = nested_entry(config, *path)
        # An entry of the size alone completes one of a base that is not in the text.
        if isinstance(entry, Mapping) and ("mean" in entry or "type" in entry):
            return entry
    for path in (("test_pipeline",), ("data", "test", "pipeline"), ("val_pipeline",)):
        step = _find_normalize_step(nested_entry(config, *path))
        if step is not None:
            return step
    return None


def _find_normalize_step(pipeline: Any) -> Mapping[str, Any] | None:
    """Return the Normalize step in a pipeline, which may be nested in other steps."""
    if isinstance(pipeline, Mapping):
        if pipeline.get("type") == "Normalize":
            return pipeline
        pipeline = list(pipeline.values())
    if isinstance(pipeline, (list, tuple)):
        return next(filter(None, map(_find_normalize_step, pipeline)), None)
    return None


def _triple(name: str, entry: Any, default: Triple) -> Triple:
    if entry is None:
        return default
    numbers = entry if isinstance(entry, (list, tuple)) else ()
    if len(numbers) != 3 or not all(type(v) in (int, float) for v in numbers):
        raise unsupported_setting(name, entry, "three numbers, for images of three channels")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
