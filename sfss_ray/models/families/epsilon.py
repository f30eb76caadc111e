"""BatchNorm of another epsilon than PyTorch's, as scales of ordinary BatchNorm.

weight / sqrt(var + e) = new / sqrt(var + 1e-5) where new = weight * sqrt((var + 1e-5) / (var + e)).
So the modules stay ordinary ones in training, in model files, on every worker and in ONNX. Where
adaptation estimates var anew, the scale is that of the other epsilon as long as the new variance is of
the size of the old, and never larger than the makers' own where it is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

EPSILON = 1e-5
"""Of torch.nn.BatchNorm2d."""


def with_epsilon(state: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """The weights with every BatchNorm's scale changed, so that it computes with `epsilon`.

    Channels without any variance are left alone: no epsilon but PyTorch's gives them a finite scale.
    """
    changed = dict(state)
    if epsilon == EPSILON:
        return changed
    for key, variance in state.items():
        start, _, last = key.rpartition(".")
        scale = state.get(f"{start}.weight")
        if last != "running_var" or scale is None or scale.shape != variance.shape:
            continue
        var = variance.double()
        ratio = ((var + EPSILON) / (var + epsilon)).sqrt()
        ratio[~ratio.isfinite()] = 1.0
        changed[f"{start}.weight"] = (scale.double() * ratio).to(scale.dtype)
    return changed
