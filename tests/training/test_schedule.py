"""Warm-up and cosine, by their values."""

from __future__ import annotations

import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.optim import lr_scheduler

from speechzoo.names.trust import check_parts
from speechzoo.training import WarmupCosine
from speechzoo.training.schedule import schedule_factory, with_schedule


def rates(total: int, steps: int, **options: float) -> list[float]:
    """Learning rate of each step over a peak of 2."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = WarmupCosine(optimizer, total, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    return found


def test_values():
    found = rates(110, 130, warmup_ratio=0.0909, final_ratio=0.1)
    assert found[:10] == pytest.approx([0.1 * step for step in range(1, 11)])  # the first step already learns
    assert found[10] == pytest.approx(1.0)
    assert found[60] == pytest.approx(0.55)  # half way: the middle of peak and end
    assert found[35] == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)
    assert found[110:] == pytest.approx([0.1] * 20)  # and never rises again
    assert found[10:] == sorted(found[10:], reverse=True)


def test_defaults_are_three_percent_and_an_end_at_zero():
    found = rates(100, 101)
    assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1.0]) and found[100] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("total", [0, 1, 2])
def test_runs_of_no_length_divide_by_nothing(total):
    assert all(0 <= rate <= 1 for rate in rates(total, 4, warmup_ratio=0.0))


def test_each_group_keeps_its_own_peak():
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.1}])
    WarmupCosine(optimizer, 100, warmup_ratio=0.04)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.25, 0.025])


@pytest.mark.parametrize(
    ("kind", "argument"),
    [("ExponentialLR", "gamma"), ("OneCycleLR", "max_lr"), ("StepLR", "step_size"), ("LinearLR", "start_factor")],
)
def test_the_number_of_steps_is_taken_for_nothing_else(kind, argument):
    with pytest.raises(ValueError, match=f"{kind} would take the number of steps for its {argument}: name"):
        schedule_factory({"class_path": f"torch.optim.lr_scheduler.{kind}", "init_args": {}})


@pytest.mark.parametrize("kind", [lr_scheduler.CosineAnnealingLR, partial(lr_scheduler.PolynomialLR, power=2.0)])
def test_schedules_of_torch_that_count_steps(kind):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    made = with_schedule(optimizer, schedule_factory(kind), SimpleNamespace(estimated_stepping_batches=4))
    assert made["lr_scheduler"]["interval"] == "step" and made["optimizer"] is optimizer
    for _ in range(4):
        optimizer.step()
        made["lr_scheduler"]["scheduler"].step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("get_constant_schedule", [1, 1, 1, 1]),
        ("get_constant_schedule_with_warmup", [0, 0.5, 1, 1]),
        ("get_linear_schedule_with_warmup", [0, 0.5, 1, 0.5]),
    ],
)
def test_schedules_of_transformers_take_the_number_of_steps_by_its_name(kind, found):
    settings = {"num_warmup_steps": 2} if kind.endswith("warmup") else {}
    spec = {"class_path": f"transformers.{kind}", "init_args": settings}
    check_parts({"lr_scheduler": spec}, "a run")  # which is to be loaded again
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = pickle.loads(pickle.dumps(schedule_factory(spec)))(optimizer, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == found
    if settings:
        with pytest.raises(ValueError, match=f"{kind} needs num_warmup_steps in its init_args"):
            schedule_factory({**spec, "init_args": {}})


def test_a_run_without_an_end_has_no_schedule():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    endless = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(ValueError, match="has to know the length of the run: set trainer.max_steps or"):
        with_schedule(optimizer, WarmupCosine, endless)
    assert with_schedule(optimizer, schedule_factory(None), endless) is optimizer
