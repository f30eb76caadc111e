"""What the keys of an mmsegmentation checkpoint do not tell: from its configuration, or assumed.

A configuration that names the backbone's type is whole: what it leaves out has mmsegmentation's own
default. Of one that does not (a text with `_base_` files apart), only what stands there is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.card import ChannelOrder, Triple
from sfss_ray.models.families.epsilon import EPSILON
from sfss_ray.models.families.mmseg_config import Config, config_of, entry, has_config

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
"""mmsegmentation's and DAFormer's names of the decode heads that are known here."""


@dataclass
class Settings:
    """What is known of a file beside its tensors, `read` from its configuration or `assumed`."""

    config: Config | None
    unreadable: bool = False
    """Whether the file has a configuration that is no Python, or has no model."""
    mean: Triple = MMSEG_MEAN
    std: Triple = MMSEG_STD
    channel_order: ChannelOrder = "rgb"
    align_corners: bool = False
    read: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether what the configuration leaves out has mmsegmentation's default."""
        return isinstance(entry(self.config, "model", "backbone", "type"), str)

    def of(self, *path: str) -> Any:
        """An entry of the model's configuration, or None."""
        return entry(self.config, "model", *path)

    def tell(self, name: str, value: Any, known: bool) -> None:
        """Record a value for the notes: read, or assumed."""
        (self.read if known or self.whole else self.assumed).append(f"{name} {shown(value)}")

    def numbers(
        self, name: str, path: tuple[str, ...], defaults: tuple[Sequence[int], Sequence[int]]
    ) -> list[int]:
        """Positive integers of the configuration; else mmsegmentation's default, or the assumed.

        `defaults` are these two. CheckpointError for a value of another kind, or of another length than
        the default's.
        """
        value = self.of(*path)
        default = defaults[0] if self.whole else defaults[1]
        self.tell(name, default if value is None else value, value is not None)
        if value is None:
            return list(default)
        good = isinstance(value, (list, tuple)) and all(type(v) is int and v > 0 for v in value)
        if not good or len(value) != len(default):
            raise conflict(".".join(path), value, f"{len(default)} numbers from 1")
        return list(value)

    def epsilon(self, part: str) -> float:
        """That of the BatchNorms of `backbone` or `decode_head`."""
        value = self.of(part, "norm_cfg", "eps")
        if value is None:
            return EPSILON
        if not isinstance(value, (int, float)) or value < 0:
            raise conflict(f"{part}.norm_cfg.eps", value, "a number from 0")
        if value != EPSILON:
            self.tell(f"{part}'s BatchNorm epsilon", value, True)
        return float(value)

    def notes(self) -> tuple[str, ...]:
        """Sentences for the load report."""
        lines = []
        if self.read:
            lines.append(f"read from the file's configuration (meta.cfg): {'; '.join(self.read)}")
        if self.assumed:
            grid = any(value.startswith("output stride") for value in self.assumed)
            others = ", as those of 769x769 crops (align_corners true) or d16 (output stride 16),"
            lines.append(
                f"the configuration (meta.cfg) {self._gap()} these, which are assumed:"
                f" {'; '.join(self.assumed)} (a model made otherwise{others if grid else ''} predicts"
                " worse here)"
            )
        return (*lines, *self.remarks)

    def _gap(self) -> str:
        if self.config is not None:
            return "leaves out"
        return (
            "cannot be read, so nothing tells" if self.unreadable else "is not in the file to tell"
        )


def shown(value: Any) -> str:
    """A value as a note writes it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def conflict(what: str, value: Any, known: str) -> CheckpointError:
    """The refusal of a configuration that no network here represents."""
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return CheckpointError(
        f"its configuration (meta.cfg) has {what} {text}: known is {known}; any other network can be"
        " given in Python with sfss_ray.wrap_model"
    )


def settings_of(content: Any, kind: str, outputs: int) -> Settings:
    """Preprocessing and corner rule; CheckpointError for a head of another kind than the keys say."""
    config = config_of(content)
    settings = Settings(config, unreadable=config is None and has_config(content))
    _read_preprocessing(settings)
    _check_head(settings, kind, outputs)
    corners = settings.of("decode_head", "align_corners")
    if corners is not None and not isinstance(corners, bool):
        raise conflict("decode_head.align_corners", corners, "True or False")
    settings.align_corners = bool(corners)
    settings.tell("align_corners", settings.align_corners, corners is not None)
    if settings.of("test_cfg", "mode") == "slide":
        size = settings.of("test_cfg", "crop_size")
        settings.remarks.append(
            f"its makers tested it on sliding windows of {shown(size)}: here it takes images whole"
        )
    return settings


def _check_head(settings: Settings, kind: str, outputs: int) -> None:
    head = settings.of("decode_head")
    if isinstance(head, (list, tuple)):
        types = [entry(part, "type") for part in head]
        raise conflict("decode_head", types, "a single head")
    name = entry(head, "type")
    if isinstance(name, str):
        name = name.rpartition(".")[2]
        expected = next(known for known, of_kind in HEAD_TYPES.items() if of_kind == kind)
        if HEAD_TYPES.get(name, kind) != kind:
            raise conflict("decode_head.type", name, f"{expected}, whose keys the file has")
        if name not in HEAD_TYPES:
            settings.remarks.append(
                f"the decode head {name} is not known: by its keys it is taken for {expected}"
            )
    number = entry(head, "out_channels") or entry(head, "num_classes")
    if isinstance(number, int) and number != outputs:
        raise conflict(
            "decode_head.num_classes", number, f"{outputs}, the outputs of the file's classifier"
        )
    if entry(head, "out_channels") == 1:
        raise conflict("decode_head.out_channels", 1, "an output for each class")


def _read_preprocessing(settings: Settings) -> None:
    values = _normalisation(settings.config)
    if values is None:
        settings.assumed.append("RGB images of 0 to 255 in mmsegmentation's mean and std")
        return
    settings.mean = _three("mean", values.get("mean"), (0.0, 0.0, 0.0))
    settings.std = _three("std", values.get("std"), (1.0, 1.0, 1.0))
    if min(settings.std) <= 0:
        raise conflict("std", values.get("std"), "three numbers above 0")
    # Images are read as BGR: any swap of the channels makes them RGB.
    swaps = [values.get(name) for name in ("to_rgb", "bgr_to_rgb", "rgb_to_bgr")]
    settings.channel_order = "rgb" if any(swap is True for swap in swaps) else "bgr"
    order = settings.channel_order.upper()
    settings.read.append(f"{order} images, mean {shown(settings.mean)}, std {shown(settings.std)}")


def _normalisation(config: Config | None) -> Mapping[str, Any] | None:
    """Where a configuration says mean and std: mmseg 1's preprocessor, or a pipeline's Normalize."""
    for path in (("model", "data_preprocessor"), ("data_preprocessor",), ("img_norm_cfg",)):
        values = entry(config, *path)
        # One of size alone completes a base that is not in the text.
        if isinstance(values, Mapping) and ("mean" in values or "type" in values):
            return values
    for path in (("test_pipeline",), ("data", "test", "pipeline"), ("val_pipeline",)):
        found = _normalize_step(entry(config, *path))
        if found is not None:
            return found
    return None


def _normalize_step(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        if value.get("type") == "Normalize":
            return value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_normalize_step, value)), None)
    return None


def _three(name: str, value: Any, default: Triple) -> Triple:
    if value is None:
        return default
    numbers = value if isinstance(value, (list, tuple)) else ()
    if len(numbers) != 3 or not all(type(v) in (int, float) for v in numbers):
        raise conflict(name, value, "three numbers, for images of three channels")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
