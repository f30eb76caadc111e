"""Tests of converting the parameter names of Mix Transformers, without building a network."""

from __future__ import annotations

import mit_states as mit
import pytest
import torch

from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.mit_names import (
    from_mmseg,
    from_original,
    from_transformers,
    size_of,
)

ENCODER = "body.encoder.stages"


def names_of_one_block() -> set[str]:
    """The layers of the first block of MiT, under transformers' names of version 5."""
    block = f"{ENCODER}.0.blocks.0."
    reduction = "attention.sequence_reduction."
    layers = ["layernorm_before", "layernorm_after", f"{reduction}sequence_reduction"]
    layers += [f"{reduction}layer_norm", "mlp.fc1", "mlp.fc2", "mlp.dwconv.dwconv"]
    layers += [f"attention.{p}_proj" for p in "qkvo"]
    return {f"{block}{layer}.{parameter}" for layer in layers for parameter in ("weight", "bias")}


@pytest.mark.parametrize("author", ["original", "mmseg", "transformers 4"])
def test_all_authors_names_become_the_same(author):
    plain = mit.plain_encoder()
    if author == "original":
        converted = from_original(mit.original_backbone(plain))
    elif author == "mmseg":
        converted = from_mmseg(mit.mmseg_backbone(plain))
    else:
        state = mit.transformers_4(plain, {})
        converted = from_transformers({k.removeprefix("segformer."): v for k, v in state.items()})
    assert len(converted) == len(plain)
    assert {k for k in converted if k.startswith(f"{ENCODER}.0.blocks.0.")} == names_of_one_block()
    pairs = {
        "0.embed": "0.patch_embeddings.proj",
        "1.embed_norm": "1.patch_embeddings.layer_norm",
        "3.norm": "3.layer_norm",
        "0.1.q": "0.blocks.1.attention.q_proj",
        "0.1.k": "0.blocks.1.attention.k_proj",
        "0.1.v": "0.blocks.1.attention.v_proj",
        "2.0.out": "2.blocks.0.attention.o_proj",
        "2.0.sr_norm": "2.blocks.0.attention.sequence_reduction.layer_norm",
        "3.1.fc1": "3.blocks.1.mlp.fc1",
        "3.1.dw": "3.blocks.1.mlp.dwconv.dwconv",
        "3.1.fc2": "3.blocks.1.mlp.fc2",
    }
    for plain_name, name in pairs.items():
        for parameter in ("weight", "bias"):
            expected = plain[f"{plain_name}.{parameter}"]
            assert torch.equal(converted[f"{ENCODER}.{name}.{parameter}"], expected), name
    assert size_of(converted) == "b0"


def test_names_of_transformers_5_stay():
    name = "stages.0.blocks.0.attention.q_proj.weight"
    assert list(from_transformers({name: torch.zeros(1)})) == [f"body.encoder.{name}"]


@pytest.mark.parametrize(
    ("size", "width", "depths"),
    [("b0", 32, (2, 2, 2, 2)), ("b1", 64, (2, 2, 2, 2)), ("b5", 64, (3, 6, 40, 3))],
)
def test_sizes_are_told_apart_by_width_and_depths(size, width, depths):
    state = {f"{ENCODER}.0.patch_embeddings.proj.weight": torch.zeros(width, 3, 7, 7)}
    for stage, depth in enumerate(depths):
        state |= {f"{ENCODER}.{stage}.blocks.{i}.x": torch.zeros(1) for i in range(depth)}
    assert size_of(state) == size


def test_unknown_sizes_are_refused_with_the_known_ones():
    embedding = {f"{ENCODER}.0.patch_embeddings.proj.weight": torch.zeros(48, 3, 7, 7)}
    with pytest.raises(CheckpointError, match=r"depths \(0, 0, 0, 0\) and first width 48.*b0 \("):
        size_of(embedding)
    with pytest.raises(CheckpointError, match="first patch embedding is missing"):
        size_of({})
