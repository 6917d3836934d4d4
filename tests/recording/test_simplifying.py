"""Recordings with what gives nothing new left out: the same numbers from fewer operations."""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from elbowroom.recording import simplifying
from elbowroom.recording.record import record_step

Function = Callable[[Tensor, Tensor], Tensor]

X = torch.tensor([[0.3, -1.2, 2.0], [1.1, 0.4, -0.7]], dtype=torch.float64)
ROW = torch.tensor([0.5, -0.25, 1.5], dtype=torch.float64)


def simplified(function: Function) -> tuple[Sequence[Tensor], list[str]]:
    """Its output and gradients recorded, and the operations that are left."""

    def step(x: Tensor, row: Tensor) -> list[Tensor]:
        x, row = x.requires_grad_(), row.requires_grad_()
        with torch.enable_grad():
            loss = function(x, row)
            return [loss, *torch.autograd.grad(loss.sum(), [x, row], materialize_grads=True)]

    replay = record_step(step, [X.clone(), ROW.clone()], [2 * X, 0.1 + ROW])
    found, wanted = replay(X.clone(), ROW.clone()), step(X.clone(), ROW.clone())
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=1e-12, atol=1e-12)
    return found, [str(each.function).removeprefix("aten.") for each in replay.operations]


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": lambda v: -v,
    "double": lambda v: 2 * v,
    "quarter": lambda v: v / 4,
    "triple": lambda v: v * 3.0,
    "plus": lambda v: v + 0.9,
    "from": lambda v: 1.5 - v,
    "square": lambda v: v.square() if v.dim() else v**2,
    "power": lambda v: v**1,
    "exp": lambda v: (0.1 * v).exp(),
    "log": lambda v: (v.square() + 1).log(),
    "zero": lambda v: v + 0.0,
    "one": lambda v: v * torch.ones((), dtype=torch.float64),
    "expand": lambda v: v.expand(2, 3) if v.shape[-1:] in ((3,), (1,), ()) else v,
    "detach": lambda v: v.detach() + v,
    "sum": lambda v: v.sum(-1, keepdim=True) if v.dim() else v.sum(),
    "total": lambda v: v.sum(0) if v.dim() else v.sum(),
    "all": lambda v: v.sum(),
    "lift": lambda v: v.unsqueeze(0) if v.dim() < 3 else v,
    "turn": lambda v: v.transpose(-1, -2) if v.dim() > 1 and v.shape[-1] == v.shape[-2] else v,
    "clamp": lambda v: v.clamp(-0.6, 0.8),
    "where": lambda v: torch.where(v > 0.4, v, 2 * v),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b.square() + 0.5),
    "outer": lambda a, b: torch.bmm(a.reshape(1, -1, 1), b.reshape(1, 1, -1)),
    "inner": lambda a, b: a.reshape(-1)[:2] @ b.reshape(-1)[:1].expand(2),
}


@settings(max_examples=200)
@given(
    st.sampled_from([1, simplifying.LARGE]),
    st.lists(
        st.tuples(st.sampled_from([*UNARY, *BINARY]), st.integers(0, 7), st.integers(0, 7)),
        min_size=1,
        max_size=9,
    ),
)
def test_any_chain_of_operations_gives_the_same_numbers(
    large: int, program: list[tuple[str, int, int]]
) -> None:
    def function(x: Tensor, row: Tensor) -> Tensor:
        values = [x, row]
        for name, first, second in program:
            one, two = values[first % len(values)], values[second % len(values)]
            try:
                values.append(UNARY[name](one) if name in UNARY else BINARY[name](one, two))
            except RuntimeError:  # shapes that do not go together
                continue
        return (values[-1] / 8).sum() + 0.01 * (x.sum() + row.sum())

    with mock.patch.object(simplifying, "LARGE", large):
        simplified(function)


@pytest.mark.parametrize(
    ("function", "most"),
    [
        (lambda x, row: (-(x.neg()) * 2 / 2 + 0.0).sum(), 1),  # a sum, and gradients of ones
        (lambda x, row: (x.exp() * x.exp()).sum(), 4),  # once exp, its square, the sum, twice it
        (lambda x, row: (x * 1.0 - 0.0).expand(2, 3).sum() * 1.0, 1),
    ],
)
def test_what_gives_nothing_new_is_left_out(function: Function, most: int) -> None:
    _, left = simplified(function)
    assert len(left) <= most, left


def test_constants_that_are_made_anew_are_the_same() -> None:
    def twice(x: Tensor, row: Tensor) -> Tensor:
        one, two = (x + torch.tensor([0.3, 0.1, 0.2], dtype=x.dtype) for _ in range(2))
        return (one.exp() + two.exp()).sum() + (x + torch.tensor([0.3, 0.1, 0.3])).exp().sum()

    _, left = simplified(twice)
    assert left.count("exp.default") == 2, left


def test_what_is_the_same_for_many_rows_is_computed_for_one() -> None:
    wide = 1000

    def step(row: Tensor) -> list[Tensor]:
        return [row.expand(wide, 3).exp().log1p() * torch.ones(wide, 3).cumsum(0)]

    replay = record_step(step, [torch.rand(3)], [torch.rand(3)])
    (expected,) = step(ROW.float())
    torch.testing.assert_close(replay(ROW.float())[0], expected)
    assert [str(each.function) for each in replay.operations] == [
        "aten.exp.default",
        "aten.log1p.default",
        "aten.mul.Tensor",
    ]


def test_sums_over_rows_take_out_what_is_the_same_for_all() -> None:
    """The gradient of a Normal log likelihood needs no other tensor of the data's size."""
    x = torch.randn(1000, 5, dtype=torch.float64)

    def step(mean: Tensor, scale: Tensor) -> list[Tensor]:
        mean, scale = mean.requires_grad_(), scale.requires_grad_()
        with torch.enable_grad():
            loss = torch.distributions.Normal(mean, scale.exp()).log_prob(x).sum()
            return [loss, *torch.autograd.grad(loss, [mean, scale])]

    def given() -> list[Tensor]:
        return [torch.rand(5, dtype=torch.float64) for _ in range(2)]

    replay = record_step(step, given(), given())
    points = given()
    with Sizes() as sizes:
        found = replay(*points)
    for one, two in zip(found, step(*points), strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=1e-12, atol=1e-9)
    assert sizes.large == 2  # the deviations and their squares


class Sizes(TorchDispatchMode):
    """Counts the tensors of more than 1,000 numbers that are made."""

    large = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        taken = {each.data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(found, Tensor) and found.data_ptr() not in taken:  # no view
            self.large += found.numel() > 1000
        return found


def test_what_is_held_for_one_row_can_be_viewed_in_another_shape() -> None:
    def step(row: Tensor) -> list[Tensor]:
        return [row.expand(1000, 3).exp().reshape(-1), row.expand(0, 3).sum(0)]

    replay = record_step(step, [torch.rand(3)], [torch.rand(3)])
    for found, wanted in zip(replay(ROW.float()), step(ROW.float()), strict=True):
        torch.testing.assert_close(found, wanted)


def test_numbers_that_round_are_not_moved() -> None:
    """Tenths are no powers of two: bit for bit the same as the function."""

    def step(x: Tensor) -> list[Tensor]:
        return [-(x * 0.1) * 3.0 / 7.0 * 4.0 - x]

    replay = record_step(step, [torch.rand(100)], [torch.rand(100)])
    x = torch.rand(100)
    assert torch.equal(replay(x)[0], step(x)[0])


def test_writing_in_place_is_kept() -> None:
    def step(x: Tensor) -> list[Tensor]:
        filled = torch.zeros(3)
        filled[1:] = -x[1:]
        before = filled * 1.0
        filled.add_(1.0)
        return [before, filled * 1.0]

    replay = record_step(step, [torch.rand(3)], [torch.rand(3)])
    x = torch.tensor([1.0, 2.0, 3.0])
    for _ in range(2):
        for found, wanted in zip(replay(x), step(x), strict=True):
            assert torch.equal(found, wanted)
