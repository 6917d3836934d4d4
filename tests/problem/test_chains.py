"""The sum over paths of a chain, against all paths written out."""

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from elbowroom.problem.chains import _filtered, _stepwise, log_total
from elbowroom.problem.isolation import isolated
from elbowroom.recording.operations import name_of
from elbowroom.recording.record import record

EXACT: Any = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def all_paths(single: Tensor, pairs: Tensor) -> Tensor:
    """Log of the sum over every path; the batch is broadcast."""
    totals = []
    for path in product(range(single.shape[-1]), repeat=len(single)):
        total = sum(single[t, ..., z] for t, z in enumerate(path))
        totals.append(total + sum(pairs[t, ..., a, b] for t, (a, b) in enumerate(pairwise(path))))
    return torch.stack(torch.broadcast_tensors(*totals)).logsumexp(0)


def potentials(*batch: int, of_pairs: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)

    return some(5, *batch, 3), some(4, *of_pairs, 3, 3)


SHAPES = [((), ()), ((4,), (1,)), ((2, 4), (2, 1)), ((1,), (4,))]


@pytest.mark.parametrize(("batch", "of_pairs"), SHAPES)
def test_the_total_its_gradient_and_that_ones_are_those_of_all_paths(
    batch: tuple[int, ...], of_pairs: tuple[int, ...]
) -> None:
    single, pairs = (x.requires_grad_() for x in potentials(*batch, of_pairs=of_pairs))
    found = {}
    for name, function in {"found": log_total, "expected": all_paths}.items():
        value = function(single, pairs)
        weights = torch.arange(1.0, value.numel() + 1).reshape(value.shape)
        loss = (weights * value).sum()
        first = torch.autograd.grad(loss, [single, pairs], create_graph=True)
        second = torch.autograd.grad(
            torch.stack([x.square().sum() for x in first]).sum(), [single, pairs]
        )
        found[name] = [value, *first, *second]
    for one, other in zip(found["found"], found["expected"], strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_many_points_at_once_are_each_by_itself() -> None:
    single, pairs = potentials(6, of_pairs=(6,))
    single, pairs = single.transpose(0, 1), pairs.transpose(0, 1)
    for function in (log_total, all_paths):
        gradients, values = vmap(grad_and_value(function, argnums=(0, 1)))(single, pairs)
        if function is log_total:
            expected = values, *gradients
    for one, other in zip((values, *gradients), expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_steps_that_cannot_be_taken_and_states_far_below_the_others() -> None:
    single, pairs = potentials(of_pairs=())
    pairs = pairs.clone()
    pairs[:, 1:, 0] = -torch.inf  # the first state is left for good
    single = single + torch.tensor([0.0, 900.0, 0.0])
    torch.testing.assert_close(log_total(single, pairs), all_paths(single, pairs), **EXACT)


def test_a_total_that_rests_on_what_has_no_digits_is_not_a_number() -> None:
    """All but the first state has nearly all of the weight, from which no step leads back."""
    single, pairs = torch.zeros(4, 2, dtype=torch.float64), torch.zeros(3, 2, 2).double()
    pairs[:, 1, 0] = -torch.inf
    pairs[:, 0, 1] = -torch.inf
    single[0, 1], single[-1, 0] = 800.0, 1600.0
    assert float(all_paths(single, pairs)) == pytest.approx(1600.0)
    assert torch.isnan(log_total(single, pairs))
    single[-1, 0] = 600.0
    torch.testing.assert_close(log_total(single, pairs), all_paths(single, pairs), **EXACT)


def test_numbers_of_both_types_meet() -> None:
    single, pairs = potentials(4, of_pairs=(1,))
    found = log_total(single, pairs.float())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, all_paths(single, pairs), rtol=1e-5, atol=1e-5)
    assert log_total(single.float(), pairs.float()).dtype == torch.float32


def test_the_filter_is_one_operation_of_a_recording_and_stays_so_over_batches() -> None:
    """It would be ten operations a step."""
    single, pairs = potentials(3, of_pairs=(1,))

    def density(u: Tensor) -> Tensor:
        return log_total(single * u[0], pairs * u[1]).sum()

    points = torch.tensor([[1.0, 0.5], [0.3, 1.0], [2.0, 1.0], [1.0, 1.0], [0.1, 3.0]]).double()
    replay = record(vmap(grad_and_value(density)), points)
    names = [name_of(operation) for operation in replay.operations]
    assert names.count("elbowroom.filtered.default") == 1
    assert len(names) < 80
    for batch in (points[:1], points):
        gradients, values = replay(batch)
        expected = torch.stack([all_paths(single * u[0], pairs * u[1]).sum() for u in batch])
        torch.testing.assert_close(values, expected, **EXACT)
        steps = torch.eye(2, dtype=torch.float64) * 1e-5
        slopes = torch.stack([replay(batch + e)[1] - replay(batch - e)[1] for e in steps], 1) / 2e-5
        torch.testing.assert_close(gradients, slopes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("batch", "of_pairs"), SHAPES)
def test_the_filter_is_that_of_torch_step_by_step(
    batch: tuple[int, ...], of_pairs: tuple[int, ...]
) -> None:
    single, pairs = (each.exp() for each in potentials(*batch, of_pairs=of_pairs))
    single = single.expand(-1, *torch.broadcast_shapes(batch, of_pairs), -1)
    torch.testing.assert_close(_filtered(single, pairs), _stepwise(single, pairs), **EXACT)
