"""Loops that are run through turn by turn are loops of the kernel, and give torch's numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad_and_value, vmap

from elbowroom.problem.isolation import isolated
from elbowroom.recording.kernel import kernel as kernels
from elbowroom.recording.kernel.kernel import Kernel, compiled
from elbowroom.recording.kernel.rolling import ROLLING, rolled
from elbowroom.recording.record import record
from elbowroom.recording.replay import Replay


@dataclass(frozen=True)
class Sizes:
    numbers: int = 40
    points: int = 11
    near: float = 1e-11


SIZES = Sizes()
Scalar = Callable[[Tensor], Tensor]


def points_of(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZES.numbers, generator=generator, dtype=torch.float64)


def recorded(density: Scalar) -> Replay:
    with isolated(0):
        return record(vmap(grad_and_value(density)), points_of(5, 0))


def kernel_of(replay: Replay) -> Kernel:
    return compiled(replay, points_of(2, 0))


def check(density: Scalar) -> Kernel:
    replay = recorded(density)
    kernel, points = kernel_of(replay), points_of(SIZES.points, 1)
    for found, expected in zip(kernel(points), replay(points), strict=True):
        size = SIZES.near * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=SIZES.near, atol=size)
    return kernel


def autoregression(u: Tensor) -> Tensor:
    state, total = torch.zeros(()), torch.zeros(())
    for x in u[1:]:
        state = u[0].tanh() * state + x
        total = total + state.exp() - state * 0.5
    return total


def loops_of(kernel: Kernel) -> int:
    return len({step.loop for step in kernel.program.steps} - {None})


def test_a_chain_is_a_few_loops() -> None:
    kernel = check(autoregression)
    assert loops_of(kernel) > 0
    singles = [step for step in kernel.program.steps if step.count == 1]
    assert len(singles) < 40  # there are 39 turns, of several steps, in either direction


def test_without_rolling_the_numbers_are_the_same() -> None:
    replay = recorded(autoregression)
    with mock.patch.object(kernels, "rolled", lambda program: program):
        plain = kernel_of(replay)
    assert loops_of(plain) == 0
    points = points_of(SIZES.points, 1)
    for one, two in zip(kernel_of(replay)(points), plain(points), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


def test_a_value_of_the_first_turn_may_be_taken_in_all() -> None:
    def density(u: Tensor) -> Tensor:
        waves: list[Tensor] = []
        states = [u[0]]
        for x in u[1:]:
            waves.append(x.sin())
            states.append((states[-1] * waves[0] + 0.3 * waves[-1]).tanh())
        return torch.stack(states[::3]).sum() + states[-1]

    assert loops_of(check(density)) > 0


def test_what_only_the_next_turn_takes() -> None:
    def last(u: Tensor) -> list[Tensor]:
        x = u[:, 0]
        for k in range(1, SIZES.numbers):
            x = (x * u[:, k]).tanh() + 0.1
        return [x]

    replay, points = record(last, points_of(5, 0)), points_of(SIZES.points, 1)
    kernel = kernel_of(replay)
    assert loops_of(kernel) == 1
    torch.testing.assert_close(kernel(points)[0], replay(points)[0], rtol=1e-11, atol=1e-13)


def test_what_follows_a_loop_takes_what_its_turns_gave() -> None:
    def density(u: Tensor) -> Tensor:
        states = [u[0]]
        for x in u[1:]:
            states.append((states[-1] + x).tanh())
        whole = torch.stack(states)
        return (whole * u.flip(0)).sum() + (whole[1:] - whole[:-1]).square().sum().sqrt()

    assert loops_of(check(density)) > 0


def test_steps_in_no_order_stay_as_they_are() -> None:
    choices = np.random.default_rng(0).integers(0, 2, 200)

    def density(u: Tensor) -> Tensor:
        x = u[0]
        for k, choice in enumerate(choices):
            x = (x * u[k % SIZES.numbers]).tanh() if choice else (x + 0.1).sin()
        return x

    kernel = check(density)
    turns = [step.size for step in kernel.program.steps if step.loop is not None]
    assert sum(turns) < 100  # a few repeat by chance


FUNCTIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add,
    lambda a, b: (a * b).tanh(),
    lambda a, b: a - 0.3 * b,
    lambda a, b: torch.where(a > b, a.sin(), b),
    lambda a, b: (0.1 * a).exp() * b,
]
LINES = st.lists(
    st.tuples(st.integers(0, len(FUNCTIONS) - 1), st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15)
@given(LINES, st.integers(1, 3), st.booleans())
def test_any_recursion_is_that_of_torch(
    lines: list[tuple[int, int, int]], lag: int, backwards: bool
) -> None:
    """Each line of a turn takes a number, or lines of this turn or of one before."""

    def density(u: Tensor) -> Tensor:
        turns = [[u[0] * (k + 1) for k in range(len(lines))] for _ in range(lag)]
        inputs = u[:14].flip(0) if backwards else u[:14]
        for x in inputs[1:]:
            before, turn = turns[-lag], [x]
            for function, one, two in lines:
                known = [*turn, *before]
                turn.append(FUNCTIONS[function](known[one % len(known)], known[two % len(known)]))
            turns.append([each / (1 + each.abs()) for each in turn[1:]])
        return torch.stack([each.sum() for each in map(torch.stack, turns)]).sum()

    check(density)


@pytest.mark.parametrize("turns", [ROLLING.turns - 1, ROLLING.turns])
def test_few_turns_are_written_out(turns: int) -> None:
    def density(u: Tensor) -> Tensor:
        x = u[0]
        for k in range(turns):
            for _ in range(3):
                x = ((x + u[k]).sin() * u[k + 1]).exp().log1p().cos().tanh().sigmoid()
            x = x.atan()
        return x

    check(density)


def test_a_program_without_repetition_is_the_same() -> None:
    kernel = check(lambda u: (u.exp() - u).sum())
    assert rolled(kernel.program) is kernel.program
