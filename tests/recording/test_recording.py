"""A recording gives what its function gives, at any batch size, or says that it cannot."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad_and_value, vmap

from elbowroom.problem.isolation import isolated
from elbowroom.recording.operations import name_of
from elbowroom.recording.record import NotRecordableError, record, record_agreeing

SIZES = (1, 2, 7, 64)
DIMENSION = 3
EXACT = 1e-12
"""Relative: the same operations in the same order differ by the rounding of larger batches."""

Batched = Callable[[Tensor], Sequence[Tensor]]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def some_points(count: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, DIMENSION, generator=generator, dtype=torch.float64)


def recorded(function: Batched, scale: float = 1.0) -> Any:
    return record(function, some_points(5, scale, seed=1))


def check_replay(function: Batched, scale: float = 1.0) -> None:
    """The replay equals the function at every size, twice, and leaves its input as it was."""
    replay = recorded(function, scale)
    for size in SIZES:
        points = some_points(size, scale, seed=size + 2)
        for _ in range(2):
            given_points = points.clone()
            found = replay(given_points)
            assert torch.equal(given_points, points)
            torch.testing.assert_close(
                tuple(found), tuple(function(points)), rtol=EXACT, atol=EXACT, equal_nan=True
            )


def per_row(density: Callable[[Tensor], Tensor]) -> Batched:
    """Gradient and value of a function of one row, for a batch of them."""
    return vmap(grad_and_value(density))


ROWS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]], dtype=torch.float64)
"""As many as a run of the recorder has: a constant's size is not the batch's."""


@pytest.mark.parametrize(
    "density",
    [
        lambda x: (x * ROWS).sum(),
        lambda x: -0.5 * (ROWS @ x).square().sum() + x.exp().sum(),
        lambda x: torch.logdet(4 * torch.eye(3) + torch.outer(x, x)),
        lambda x: x.cumsum(0).logsumexp(0) + x.reshape(3, 1).expand(3, 2).prod(),
        lambda x: torch.where(x > 0, x, -2 * x).sum() + x.abs().max(),
        lambda x: x.sort().values[0] + x.flip(0)[1] * torch.lgamma(x.square() + 1).sum(),
        lambda x: torch.stack([x[0], x[2]]).repeat(2).reshape(2, 2).det() + x.mean(),
        lambda x: torch.cdist(x[:, None], ROWS[0][:, None]).sum(),
        lambda x: (x + torch.full_like(x, 0.5).expand(4, 3).sum()).square().sum(),
        lambda x: (
            (x.reshape(3, 1) + 1.0).t().exp().sum() + (x - 0.5).unsqueeze(1).sum(1).exp().sum()
        ),
    ],
)
def test_values_and_gradients_at_every_batch_size(density: Callable[[Tensor], Tensor]) -> None:
    check_replay(per_row(density))


@pytest.mark.parametrize(
    "function",
    [
        lambda u: [u.new_zeros(len(u) * 3).view(-1, 3) + u],
        lambda u: [torch.arange(len(u)) * u[:, 0], u.reshape(-1)],
        lambda u: [u[:, None].expand(len(u), 2, 3).reshape(2 * len(u), 3).sum(1)],
        lambda u: [torch.eye(len(u)) @ u, torch.full((len(u) + 2,), 3.0)],
        lambda u: list(u.split([1, 2], dim=1)),
    ],
)
def test_sizes_that_follow_the_batch(function: Batched) -> None:
    check_replay(function)


def filled_rows(u: Tensor) -> list[Tensor]:
    filled = torch.zeros(len(u), 3)
    filled[:, 0] = u[:, 0]
    filled[:, 1].add_(u[:, 1])
    filled[0] = 5.0
    filled.index_put_((torch.tensor([0]), torch.tensor([2])), torch.tensor(7.0))
    return [filled.sum(1), filled * u]


def filled_constant(u: Tensor) -> list[Tensor]:
    before = torch.zeros(3)
    early = before * 2 + 1
    before[0] = 2.0
    before.add_(1.0).mul_(3.0)
    before.index_put_((torch.tensor([1]),), torch.tensor(4.0))
    view = before[1:]
    view[1] = -1.0
    return [(u * before).sum(1), (u * early).sum(1)]


def accumulated(u: Tensor) -> list[Tensor]:
    total = torch.zeros(len(u))
    weights = torch.ones(3)
    for i in range(3):
        weights[i] *= i + 1
        total += weights[i] * u[:, i]
    return [total]


@pytest.mark.parametrize("function", [filled_rows, filled_constant, accumulated])
def test_operations_in_place_replay_afresh(function: Batched) -> None:
    check_replay(function)


def test_a_constant_from_outside_stays_what_it_was_when_recorded() -> None:
    outside = torch.tensor([1.0, 2.0, 3.0])
    replay = recorded(lambda u: [(u * outside.exp()).sum(1)])
    wanted = (some_points(4) * outside.exp()).sum(1)
    torch.testing.assert_close(replay(some_points(4))[0], wanted)


@pytest.mark.parametrize("noise", [lambda u: torch.randn(3), lambda u: torch.rand(()).expand(3)])
def test_random_numbers_are_refused(noise: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotRecordableError):
        recorded(lambda u: [(u + noise(u)).sum(1)])


@pytest.mark.parametrize(
    "noise", [torch.randn_like, lambda u: torch.rand(len(u), 1), torch.bernoulli]
)
def test_random_numbers_for_each_row_are_refused(noise: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotRecordableError):
        recorded(lambda u: [(u + noise(u.sigmoid())).sum(1)])


def test_branches_that_the_two_runs_take_differently_are_refused() -> None:
    between = float(some_points(5, seed=1)[:3, 0].sort().values[1])
    with pytest.raises(NotRecordableError):
        recorded(lambda u: [u.exp() if u[0, 0] < between else u.sin()])


@pytest.mark.parametrize(
    "number",
    [
        lambda u: u.sum().item(),
        lambda u: float(u.max()) + 1,
        lambda u: u[0].tolist()[1],
        lambda u: torch.from_numpy(u.numpy() * 2).sum(),
        lambda u: torch.tensor(u[0, 0].item()),
        lambda u: math.exp(u[1, 1]),
    ],
)
def test_numbers_read_off_the_values_are_refused(number: Callable[[Tensor], Any]) -> None:
    with pytest.raises(NotRecordableError):
        recorded(lambda u: [u.sum(1) * number(u)])


@pytest.mark.parametrize(
    "function",
    [
        lambda u: [u.sum(1) * (2.0 if u[0, 0].item() > 5 else 1.0)],
        lambda u: [u.sin() if u.sum() > 50 else u.cos()],
        lambda u: [u * round(float(u[0, 0]) / 100)],
    ],
)
def test_a_branch_that_neither_run_took_is_refused(function: Batched) -> None:
    """Both runs read the same number off their values, which other values will not give."""
    with pytest.raises(NotRecordableError):
        recorded(function)


def test_another_path_at_another_batch_size_is_refused() -> None:
    with pytest.raises(NotRecordableError):
        recorded(lambda u: [u.sum(1) if len(u) == 2 else u.sum(1).exp()])
    with pytest.raises(NotRecordableError):
        recorded(lambda u: [u.sum(1) * len(u) ** 0.5])


def cholesky_sum(x: Tensor) -> Tensor:
    matrix = torch.eye(2) + torch.stack([torch.stack([x[0], x[1]]), torch.stack([x[1], x[2]])])
    return torch.linalg.cholesky(matrix).sum()


def test_a_failing_factorisation_spoils_its_own_row_alone() -> None:
    function = per_row(cholesky_sum)
    replay = recorded(function, 0.1)
    points = some_points(6, 0.1)
    failing = [1, 4]
    points[failing, 0] = -5.0
    for repeated in (points, points.repeat(9, 1)):
        gradients, values = replay(repeated)
        bad = (repeated[:, 0] < -1).nonzero()[:, 0]
        assert values.isnan().nonzero()[:, 0].tolist() == bad.tolist()
        assert gradients.isnan().all(1).nonzero()[:, 0].tolist() == bad.tolist()
        good = ~values.isnan()
        wanted = function(repeated[good])
        torch.testing.assert_close((gradients[good], values[good]), wanted)
    assert replay(points[failing])[1].isnan().all()
    with pytest.raises(torch.linalg.LinAlgError):
        function(points)


def test_one_row_s_failure_among_several_matrices_of_each_row() -> None:
    def density(x: Tensor) -> Tensor:
        matrices = (1 + x)[:, None, None] * torch.eye(2)  # (3, 2, 2)
        return torch.linalg.cholesky(matrices).sum() + torch.linalg.inv(matrices).sum()

    replay = recorded(per_row(density), 0.1)
    for size in (1, 3, 4):  # 3 matrices a row: the batch may be as many
        points = some_points(size, 0.1)
        points[0, 2] = -4.0
        _, values = replay(points)
        assert values.isnan().tolist() == [True] + [False] * (size - 1)


def test_only_the_wanted_outputs() -> None:
    function = per_row(lambda x: (x.exp() * ROWS).sum())
    replay, points = recorded(function), some_points(4)
    gradients, values = function(points)
    for outputs, wanted in {
        (0,): (gradients,),
        (1,): (values,),
        (1, 0): (values, gradients),
    }.items():
        torch.testing.assert_close(replay(points, outputs=outputs), wanted)


def test_the_value_alone_needs_fewer_operations() -> None:
    replay = recorded(per_row(lambda x: torch.logdet(2 * torch.eye(3) + torch.outer(x, x))))
    every = len(replay.needed(list(replay.results)))
    assert len(replay.needed([replay.results[1]])) < every


def test_what_is_the_same_for_all_observations_is_computed_once_a_row() -> None:
    many = torch.linspace(-1.0, 1.0, 50, dtype=torch.float64)

    def density(x: Tensor) -> Tensor:
        likelihood = torch.distributions.Normal(x[0], x[1].exp().expand(50)).log_prob(many)
        nothing = torch.zeros_like(x).unsqueeze(-1).sum()
        return likelihood.sum() + nothing + (x[2] + 1.0).unsqueeze(-1).sum()

    check_replay(per_row(density))
    replay = recorded(per_row(density))
    names = [name_of(operation) for operation in replay.needed(replay.results[1:])]
    assert names.count("log.default") == 1
    assert not {"zeros_like.default", "expand.default"}.intersection(names)
    assert replay.numbers < 10 * 50  # numbers of a row, its gradient's included


def test_a_failed_row_is_marked_whichever_outputs_are_wanted() -> None:
    replay = recorded(per_row(cholesky_sum), 0.1)
    points = torch.tensor([[0.0, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    for output in (0, 1):
        (found,) = replay(points, outputs=(output,))
        assert found.reshape(2, -1).isnan().any(1).tolist() == [False, True]


UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sin,
    torch.tanh,
    lambda a: a.square().mean().expand(3),
    lambda a: a.flip(0).clamp(max=0.5),
    lambda a: a.reshape(3, 1).expand(3, 2).reshape(-1)[1:4],
    lambda a: torch.nn.functional.softplus(a).cumsum(0),
    lambda a: torch.zeros(3).index_add(0, torch.tensor([2, 0, 2]), a),
    lambda a: a + torch.full_like(a, 0.5).expand(4, 3).sum() * torch.ones_like(a),
    lambda a: (a + 0.25).unsqueeze(-1).sum(-1) - torch.zeros_like(a).view(3, 1).squeeze(-1),
)
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.mul,
    lambda a, b: a / (1 + b.square()),
    lambda a, b: torch.where(a > b, a, 2 * b),
    lambda a, b: torch.outer(a, b)[1] + ROWS[0],
    lambda a, b: torch.cat([a[:1], b[1:]]),
    lambda a, b: (a + 0 * b).mul_(b),
)
STEPS = st.one_of(
    st.tuples(st.sampled_from(UNARY), st.integers(0, 9)),
    st.tuples(st.sampled_from(BINARY), st.integers(0, 9), st.integers(0, 9)),
)


@settings(max_examples=60)
@given(program=st.lists(STEPS, min_size=1, max_size=8))
def test_random_programs_replay(program: list[Any]) -> None:
    def density(x: Tensor) -> Tensor:
        values = [x, torch.tensor([0.5, -1.0, 1.5], dtype=x.dtype)]
        for operation, *operands in program:
            values.append(operation(*(values[i % len(values)] for i in operands)))
        return values[-1].sum() + x[0]

    function = per_row(density)
    replay = recorded(function)
    for size in (1, 4):
        points = some_points(size, seed=size)
        torch.testing.assert_close(replay(points), function(points), rtol=1e-10, atol=1e-12)


def test_a_recording_that_gives_other_numbers_is_none() -> None:
    """Here since the function, when it is compared, is no longer what it was."""
    calls = iter((1.0, 1.0, 2.0))
    inputs = [[torch.full((2,), value)] for value in (1.0, 2.0, 3.0)]
    assert record_agreeing(lambda x: [x * next(calls)], inputs, []) is None
    replay = record_agreeing(lambda x: [x * torch.rand(2)], inputs, [])
    assert replay is not None
    torch.manual_seed(0)
    noise = torch.rand(2)
    torch.manual_seed(0)
    torch.testing.assert_close(replay(torch.ones(2))[0], noise)


COLUMNS = torch.tensor([2, 0, 2, 2, 1, 0])


def columns_read(points: Tensor) -> Sequence[Tensor]:
    """Two reads, whose results lie in memory as they come."""
    one, two = points[:, COLUMNS], (points * 2.0)[:, COLUMNS.flip(0)]
    return ((one * two + torch.arange(6.0)).sum(1), one.clone(), one @ two.t())


def columns_added(points: Tensor) -> Sequence[Tensor]:
    """At repeated places: numbers row by row, column by column, the same for all, in blocks."""
    rows, blank = points[:, COLUMNS].clone(memory_format=torch.contiguous_format), points * 1.0
    put = torch.ops.aten.index_put
    index = [None, COLUMNS]
    blocks = blank[:, :, None].expand(-1, -1, 2).clone()
    return (
        put(blank, index, rows, True),
        put(blank, index, rows.t().contiguous().t(), True),
        put(blank, index, rows[:1], True),
        put(blank, index, rows[0], True),
        put(blank, index, rows[:, :1], True),
        put(blocks, index, torch.stack([rows, rows**2], -1), True),
        blank,
    )


@pytest.mark.parametrize(
    "function",
    [
        columns_read,
        columns_added,
        lambda points: (points[:, torch.tensor([-1, 0, -3])],),
        lambda points: (points[:, torch.tensor([[0, 1], [2, 2]])],),
        lambda points: (torch.ops.aten.index_put(points, [None, COLUMNS[:2]], points[:, :2]),),
        per_row(lambda u: ((u[COLUMNS] - u[COLUMNS.flip(0)] ** 2).exp() * torch.arange(6.0)).sum()),
    ],
)
def test_the_same_columns_of_each_row(function: Batched) -> None:
    check_replay(function, scale=0.5)
