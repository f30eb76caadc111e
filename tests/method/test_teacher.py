"""The teacher is a moving average of the student, statistics included."""

import pytest
import torch
from torch import nn

from sfss_ray.method.teacher import frozen_copy, update_teacher, warm_up_momentum


def constant_network(value: float) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


@pytest.mark.parametrize(("momentum", "steps"), [(0.999, 1000), (0.99, 50), (0.5, 3), (1.0, 5)])
def test_a_constant_student_leaves_the_source_its_weight(momentum, steps):
    source, student = constant_network(1.0), constant_network(0.0)
    teacher = frozen_copy(source)
    for _ in range(steps):
        update_teacher(teacher, student, momentum)
    for parameter in teacher.parameters():
        expected = torch.full_like(parameter, momentum**steps)
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=0)


def test_momentum_zero_copies_the_student():
    teacher = frozen_copy(constant_network(1.0))
    student = constant_network(0.3)
    nn.init.normal_(student[0].weight)
    update_teacher(teacher, student, 0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True)
    )


def test_statistics_follow_as_weights_do():
    student = constant_network(1.0)
    teacher = frozen_copy(student)
    student.train()(torch.randn(4, 1, 8, 8) * 3 + 2)
    mean, variance = student[1].running_mean, student[1].running_var
    assert not torch.equal(teacher[1].running_mean, mean)
    update_teacher(teacher, student, 0.75)
    torch.testing.assert_close(teacher[1].running_mean, 0.25 * mean)
    torch.testing.assert_close(teacher[1].running_var, 0.75 + 0.25 * variance)
    assert teacher[1].num_batches_tracked == 1
    update_teacher(teacher, student, 0.0)
    assert torch.equal(teacher[1].running_mean, mean)
    assert torch.equal(teacher[1].running_var, variance)


def test_statistics_that_do_not_change_stay_bit_identical():
    student = constant_network(1.0)
    student.train()(torch.randn(4, 1, 8, 8) * 3 + 2)
    teacher = frozen_copy(student)
    for _ in range(10):
        update_teacher(teacher, student, 0.999)
    assert torch.equal(teacher[1].running_var, student[1].running_var)


def test_a_slow_teacher_keeps_its_predictions_while_its_student_runs_away():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    images = torch.randn(8, 1, 16, 16)
    for _ in range(50):
        student(images)
    teacher = frozen_copy(student)
    before = teacher(images)
    with torch.no_grad():
        student[0].weight.mul_(3)
    for _ in range(50):
        student(images)
        update_teacher(teacher, student, 0.9999)
    # With the student's statistics its outputs would be a third.
    assert (teacher(images) - before).abs().mean() < 0.3 * before.abs().mean()


def test_a_teacher_is_a_copy_in_eval_mode_without_gradient():
    student = constant_network(1.0).train()
    teacher = frozen_copy(student)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.training
    nn.init.zeros_(student[0].weight)
    assert (teacher[0].weight == 1).all()


def test_updates_leave_the_student_and_its_gradients_alone():
    student = constant_network(0.5)
    teacher = frozen_copy(constant_network(1.0))
    student(torch.randn(2, 1, 8, 8)).square().sum().backward()
    before = [p.detach().clone() for p in student.parameters()]
    update_teacher(teacher, student, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_warm_up_follows_a_random_head_and_then_stays():
    assert warm_up_momentum(1, 0.999) == pytest.approx(0.5)
    assert warm_up_momentum(9, 0.999) == pytest.approx(0.9)
    assert warm_up_momentum(10_000, 0.999) == 0.999


def test_a_teacher_of_other_layers_is_refused():
    with pytest.raises(ValueError, match=r"teacher has 2 tensors and the student 7: .*frozen_copy"):
        update_teacher(nn.Conv2d(1, 2, 3), constant_network(1.0), 0.9)
