"""The choice of BatchNorm statistics: the rule on given scores, and networks on drawn images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from sfss_ray.config import Config, EvaluationConfig, override
from sfss_ray.data.folders import list_images
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import load_model
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.train.norm_choice import (
    SHARES,
    StatisticsImages,
    choose_share,
    set_initial_statistics,
    whole_image_batches,
)


@dataclasses.dataclass
class GivenScore:
    """A consistency with a given value."""

    mean: float
    num_images: int

    def value(self) -> float:
        return self.mean


def choose(means: Sequence[float], num_images: int = 16) -> float:
    """The share chosen for the scores of SHARES."""
    scores = {s: GivenScore(mean, num_images) for s, mean in zip(SHARES, means, strict=True)}
    return choose_share(lambda share: scores[share]).share  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("peak", [0.0, 0.3, 0.5, 1.0])
def test_the_peak_of_a_parabola_is_chosen(peak):
    assert choose([0.6 - 0.1 * (share - peak) ** 2 for share in SHARES]) == pytest.approx(peak)


def test_monotonic_scores_choose_an_end():
    assert choose([0.3, 0.4, 0.5, 0.6, 0.7]) == 1.0
    assert choose([0.5, 0.4, 0.3, 0.3, 0.2]) == 0.0


def test_equal_scores_keep_the_statistics_of_the_source():
    assert choose([0.5] * len(SHARES)) == 0.0


def test_noise_of_one_share_moves_the_choice_less_than_it_moves_the_best_score():
    means = [0.6 - 0.1 * (share - 0.25) ** 2 for share in SHARES]
    means[3] += 0.03  # the best score now, at .75
    assert max(means) == means[3]
    assert 0.2 <= choose(means) <= 0.6


def test_two_images_prove_nothing():
    assert choose([0.3, 0.4, 0.5, 0.6, 0.7], num_images=2) == 0.0
    assert choose([0.3, 0.4, 0.5, 0.6, 0.7], num_images=3) == 1.0


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> StatisticsImages:
    from sfss_ray.streets.scenes import write_streets

    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, "camera", 5, 14, with_labels=False)
    files = list_images(folder / "images")
    return StatisticsImages(files[:4], files[4:])


def config(**changes) -> Config:
    return override(Config(), {f"train.{name}": value for name, value in changes.items()})


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items() if "running_" in k}


def source() -> nn.Module:
    return load_model(SOURCE_MODEL).network


def test_auto_uses_one_of_the_mixtures(images):
    network = source()
    before = statistics(network)
    choice = set_initial_statistics(network, images, config())
    assert choice is not None
    assert 0 <= choice.share <= 1
    assert set(choice.consistency) == set(SHARES)
    assert all(0 < score < 1 for score in choice.consistency.values())
    whole = source()
    assert set_initial_statistics(whole, images, config(batch_norm="target")) is None
    target = statistics(whole)
    for name, tensor in statistics(network).items():
        torch.testing.assert_close(tensor, before[name].lerp(target[name], choice.share))


def test_the_same_images_give_the_same_choice(images):
    first, second = (set_initial_statistics(source(), images, config()) for _ in range(2))
    assert first == second


def test_frozen_keeps_the_source_and_other_networks_need_no_choice(images):
    network = source()
    before = statistics(network)
    assert set_initial_statistics(network, images, config(batch_norm="frozen")) is None
    assert set_initial_statistics(network, images, config(statistics_images=0)) is None
    after = statistics(network)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    without_norm = build_network("compact", 3)
    for name, layer in list(without_norm.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            parent = without_norm.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    assert set_initial_statistics(without_norm, images, config()) is None


def test_a_network_with_statistics_of_another_domain_gets_those_of_the_target(images):
    """Its first layer expects pixels of four times the spread."""
    network = source()
    network.get_buffer("body.stem.1.running_var").mul_(16)
    choice = set_initial_statistics(network, images, config())
    assert choice is not None
    assert choice.share > 0
    assert max(choice.consistency.values()) > choice.consistency[0.0]


def test_batches_are_whole_images_of_one_size(images):
    network = build_network("espnet", 5, {"p": 1, "q": 1})
    files = [*images.training, images.held_out[0]]
    batches = list(whole_image_batches(network, files, EvaluationConfig(max_size=100)))
    assert [batch.shape for batch in batches] == [(2, 3, 56, 104), (3, 3, 56, 104)]
    pixels = torch.from_numpy(files[0].read()).permute(2, 0, 1).float() / 255
    whole = next(whole_image_batches(network, files[:1], EvaluationConfig()))
    assert torch.equal(whole[0], pixels)


def test_training_images_are_compared_where_few_are_held_out(images):
    few = dataclasses.replace(images, held_out=images.held_out[:2])
    assert few.compared == list(few.training)
    assert images.compared == list(images.held_out)
