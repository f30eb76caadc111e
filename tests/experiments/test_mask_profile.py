"""The profile of mask generation: its clock counted by hand, and its variants on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture
def bench(experiment):
    return experiment("mask_profile")


def profile(bench, device, variant, kind="small", who="fp32"):
    from mask_images import Options

    options = Options(Path("."), device, 1, 1, 1, Path("."))
    return bench.profile(options, kind, who, 64, variant)


def test_a_part_leaves_out_the_parts_that_it_calls(bench, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "process_time", lambda: now[0])
    clock = bench.PartClock("cpu")

    def spend(seconds):
        now[0] += seconds

    inner = clock.timed("inner", lambda: spend(2))

    def outer():
        spend(1)
        inner()
        inner()
        spend(4)

    clock.timed("outer", outer)()
    clock.timed("inner", lambda: spend(8))()
    assert clock.seconds() == {"inner": 12.0, "outer": 5.0}


def test_a_part_that_raises_is_counted_too(bench, monkeypatch):
    now = iter([0.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr(bench.time, "process_time", lambda: next(now))
    clock = bench.PartClock("cpu")

    def broken():
        raise ValueError("empty")

    def outer():
        with pytest.raises(ValueError, match="empty"):
            clock.timed("inner", broken)()

    clock.timed("outer", outer)()
    assert clock.seconds() == {"inner": 3.0, "outer": 3.0}


def test_every_part_of_a_cpu_is_measured(bench):
    row = profile(bench, "cpu", "eager")
    expected = {
        "encoder", "prompts", "tokens to image", "image to tokens", "row normalisation", "upscaling",
        "pixel order", "enlarging and thresholds", "second decoding", "run lengths", "remainder",
    }  # fmt: skip
    assert set(row["parts"]) == expected
    assert all(milliseconds >= 0 for milliseconds in row["parts"].values())
    assert "| encoder |" in "\n".join(bench.table({"small": row}))


def test_the_code_for_a_gpu_and_two_threads_find_the_same_number_of_masks(bench):
    rows = {variant: profile(bench, "cpu", variant) for variant in ("gpu_code", "in_flight")}
    assert rows["gpu_code"]["masks"] == rows["in_flight"]["masks"]
    assert {"enlarging", "pixel counts", "boxes", "edges and copies"} <= set(
        rows["gpu_code"]["parts"]
    )
    assert rows["in_flight"]["images_per_second"] > 0


def test_cuda_graphs_need_a_gpu(bench):
    with pytest.raises(SystemExit, match="need --device cuda"):
        profile(bench, "cpu", "graphs")


@pytest.mark.slow
def test_a_compiled_decoder_finds_the_same_number_of_masks(bench):
    compiled, eager = (profile(bench, "cpu", variant) for variant in ("compile", "eager"))
    assert compiled["masks"] == eager["masks"]
    assert "tokens to image" not in compiled["parts"]  # one graph


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["eager", "compile", "graphs", "in_flight"])
def test_every_variant_runs_on_a_gpu(bench, variant):
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    row = profile(bench, "cuda", variant, who="bf16")
    assert row["masks"] == profile(bench, "cuda", "eager", who="bf16")["masks"]
    assert {"encoder", "enlarging", "pixel counts"} <= set(row["parts"])
