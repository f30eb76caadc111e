"""Conversion of BatchNorm with another epsilon to ordinary BatchNorm, by changing its scales.

weight / sqrt(var + e) = new / sqrt(var + 1e-5)   with   new = weight * sqrt((var + 1e-5) / (var + e))

The modules stay ordinary ones in training, in model files, on every worker and in ONNX. If adaptation
estimates the variances anew, the conversion stays accurate while they keep their magnitude. Where a
variance shrinks, the effective scale never exceeds that of an original epsilon below 1e-5.
"""

from __future__ import annotations

from torch import Tensor

from sfss_ray.models.families.keys import State

EPSILON = 1e-5
"""The epsilon of torch.nn.BatchNorm2d."""


def with_epsilon(state: State, epsilon: float) -> dict[str, Tensor]:
    """Return the weights with BatchNorm scales that give the results of another epsilon.

    With an epsilon of 0, a channel without variance has no finite scale. Its scale stays as it is.

    Args:
        state: Weights by key. Every `running_var` with a `weight` of its shape is a BatchNorm.
        epsilon: The epsilon the network was trained with, from 0.
    """
    converted = dict(state)
    if epsilon == EPSILON:
        return converted
    for key, variance in state.items():
        layer, _, parameter = key.rpartition(".")
        scale = state.get(f"{layer}.weight")
        if parameter != "running_var" or scale is None or scale.shape != variance.shape:
            continue
        var = variance.double()
        ratio = ((var + EPSILON) / (var + epsilon)).sqrt()
        ratio[~ratio.isfinite()] = 1.0
        converted[f"{layer}.weight"] = (scale.double() * ratio).to(scale.dtype)
    return converted
