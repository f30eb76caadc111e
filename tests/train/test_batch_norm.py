"""BatchNorm during training: its mode, its statistics, and batches that are too small for it."""

import copy

import pytest
import torch
from torch import nn

from sfss_ray.errors import TrainingError
from sfss_ray.models.architectures import catalogue
from sfss_ray.storage.files import write_torch
from sfss_ray.train.batch_norm import (
    BatchNorm,
    estimate_statistics,
    explain_single_values,
    read_statistics,
    set_batch_norm,
    with_statistics,
)


def test_the_rest_of_the_share_stays_the_source_statistics():
    batches = [torch.rand(2, 3, 32, 32) for _ in range(2)]
    torch.manual_seed(0)
    start = catalogue.build_network("compact", 3).train()
    half, whole = copy.deepcopy(start), copy.deepcopy(start)
    estimate_statistics(half, batches, 0.5)
    estimate_statistics(whole, batches)
    for name, value in half.state_dict().items():
        if "running_" in name:
            old, new = start.state_dict()[name], whole.state_dict()[name]
            assert not torch.equal(old, new)
            assert torch.allclose(value, (old + new) / 2, atol=1e-6), name


def test_statistics_are_the_mean_over_the_batches():
    network = catalogue.build_network("compact", 3).train()
    batches = [torch.rand(2, 3, 32, 32) * scale for scale in (0.2, 0.5, 1.0)]
    estimate_statistics(network, batches)
    first = network.body.stem
    with torch.no_grad():
        features = [first[0]((b - network.mean) / network.std) for b in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in features]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in features]).mean(0)
    torch.testing.assert_close(first[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1].running_var, variance, rtol=1e-4, atol=1e-5)
    assert first[1].momentum == 0.1


def test_without_batches_or_batch_norm_nothing_changes():
    network = catalogue.build_network("compact", 3).train()
    before = copy.deepcopy(network.state_dict())
    estimate_statistics(network, [])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    plain = nn.Conv2d(3, 2, 1)
    estimate_statistics(plain, [torch.rand(1, 3, 4, 4)])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", ["adapt", "target", "frozen"])
def test_batch_norm_updates_its_statistics_in_mode_adapt_alone(mode):
    network = catalogue.build_network("compact", 3).eval()
    set_batch_norm(network, mode)
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    assert network.training
    assert {layer.training for layer in layers} == {mode == "adapt"}


def test_other_errors_than_that_of_batch_norm_pass():
    with pytest.raises(ValueError, match=r"^another$"), explain_single_values():
        raise ValueError("another")


def test_one_crop_of_a_pooled_vector_is_explained():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).train()
    message = (
        r"single value per channel: give every worker at least two crops .*batch_norm to frozen"
    )
    with pytest.raises(TrainingError, match=message):
        estimate_statistics(pooled, [torch.rand(1, 3, 4, 4)])  # pyright: ignore[reportArgumentType]


def test_stored_statistics_are_put_into_a_copy(tmp_path):
    torch.manual_seed(0)
    source = catalogue.build_network("compact", 3).eval()
    adapted = copy.deepcopy(source).train()
    estimate_statistics(adapted, [torch.rand(2, 3, 32, 32)])
    with torch.no_grad():
        adapted.classifier.weight.zero_()  # weights are not statistics
    path = write_torch(tmp_path / "statistics.pt", read_statistics(adapted))
    changed = with_statistics(source, path)
    for name, tensor in changed.state_dict().items():
        expected = adapted if "running_" in name or "num_batches" in name else source
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert not torch.equal(
        source.state_dict()["body.stem.1.running_mean"],
        changed.state_dict()["body.stem.1.running_mean"],
    )


def test_a_network_with_the_stored_statistics_is_not_copied(tmp_path):
    source = catalogue.build_network("compact", 3)
    path = write_torch(tmp_path / "statistics.pt", read_statistics(source))
    assert with_statistics(source, path) is source
    plain = nn.Conv2d(3, 2, 1)
    assert read_statistics(plain) == {}
