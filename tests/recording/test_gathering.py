"""Loops in Python are recorded as operations on all their turns at once, with the same numbers."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from elbowroom.problem.isolation import isolated
from elbowroom.recording.gathering import _repeated
from elbowroom.recording.operations import name_of
from elbowroom.recording.record import record

SAME: Any = {"rtol": 1e-11, "atol": 1e-11}
"""Sums in another order."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def points(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(turns: int) -> Callable[[Tensor], Tensor]:
    """Mixtures of two, one after the other, each with a branch clamped in place."""
    y = torch.linspace(-1.0, 2.0, turns, dtype=torch.float64)

    def density(u: Tensor) -> Tensor:
        total = u.square().sum()
        for i in range(turns):
            parts = torch.stack([-(y[i] - u[:2]).square() / 2, u[2].expand(2)]).sum(0)
            total = total + parts.logsumexp(0) + (u[0] * y[i]).clamp(min=-0.5)
        return total

    return density


def chain(turns: int) -> Callable[[Tensor], Tensor]:
    """Steps that wait for one another, with a part in each that does not."""
    y = torch.linspace(-1.0, 2.0, turns, dtype=torch.float64)

    def density(u: Tensor) -> Tensor:
        state = u
        for i in range(turns):
            own = ((u * y[i]).sin().exp() + 1.0).log().cos().sigmoid()
            state = torch.tanh(state + own)
        return state.sum()

    return density


def recorded(density: Callable[[Tensor], Tensor]) -> Any:
    return record(vmap(grad_and_value(density)), points(5, seed=1))


@pytest.mark.parametrize("model", [rows, chain])
def test_the_numbers_are_those_of_the_function(model: Any) -> None:
    function = vmap(grad_and_value(model(40)))
    replay = record(function, points(5, seed=1))
    assert replay.widest >= 40
    for size in (1, 2, 7):
        found = replay(points(size))
        torch.testing.assert_close(found, function(points(size)), **SAME)


def test_a_loop_of_twice_as_many_turns_is_as_many_operations() -> None:
    found = [len(recorded(rows(turns)).operations) for turns in (40, 80)]
    assert found[0] == found[1]


def test_what_waits_in_no_step_of_a_chain_is_done_for_all_steps_at_once() -> None:
    names = Counter(map(name_of, recorded(chain(60)).operations))
    assert max(names["sin.default"], names["exp.default"]) <= 2  # the first step is unlike others
    assert names["tanh.default"] == 60


def test_what_is_written_to_while_a_view_of_it_is_held_stays_as_it_was_recorded() -> None:
    def density(u: Tensor) -> Tensor:
        total = u.sum()
        for i in range(120):
            held = u * (1.0 + i)
            view = held[:2]
            held += 1.0
            total = total + view.sin().sum() * held.cos().sum()
        return total

    def function(batch: Tensor) -> list[Tensor]:
        return [torch.stack([density(row) for row in batch.unbind(0)])]

    batched = vmap(density)
    replay = record(lambda batch: [batched(batch)], points(5, seed=1))
    torch.testing.assert_close(replay(points(3)), tuple(function(points(3))), **SAME)


def picking(turns: int) -> Callable[[Tensor], Tensor]:
    """Parts of two tensors picked one by one, out of order and from the end, then joined again."""
    y = torch.linspace(-1.0, 2.0, turns, dtype=torch.float64)

    def density(u: Tensor) -> Tensor:
        one, two = torch.outer(y, u).sin(), torch.outer(y, u.square()).cos()
        parts = [each[i] for each in (one, two) for i in range(turns)]
        parts = [part.exp() * parts[(7 * i) % turns] for i, part in enumerate(parts)]
        wide = torch.stack([one[-1 - i] + parts[i] for i in range(turns)], 1)
        long = torch.cat([part.unsqueeze(0) for part in parts[1:]])
        # The transposes see a dim in the wrong place.
        return (wide.t() @ torch.ones(3, dtype=u.dtype) * y).sum() + (long * u).tanh().sum()

    return density


def test_parts_that_are_picked_and_joined_again_are_not_taken_one_by_one() -> None:
    function = vmap(grad_and_value(picking(40)))
    replay = recorded(picking(40))
    for size in (1, 2, 7):
        torch.testing.assert_close(replay(points(size)), function(points(size)), **SAME)
    counts = Counter(name_of(operation) for operation in replay.operations)
    assert counts["select.int"] + counts["cat.default"] + counts["stack.default"] < 16


def test_what_tensors_repeat_is_not_copied_when_they_are_joined() -> None:
    parts = [torch.randn(2, 1, 3).expand(2, 5, 3), torch.randn(4, 1, 3).expand(4, 5, 3)]
    for found, expected in (
        (_repeated(torch.cat, parts, 1), torch.cat(parts)),
        (_repeated(torch.stack, [parts[0]] * 3, 0), torch.stack([parts[0]] * 3)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert found.stride(found.dim() - 2) == 0
    copied = _repeated(torch.cat, [parts[0], parts[1].clone()], 1)
    torch.testing.assert_close(copied[:2], parts[0], rtol=0, atol=0)
