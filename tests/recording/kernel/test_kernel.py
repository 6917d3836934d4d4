"""A kernel gives torch's own numbers for any batch, or there is none."""

import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn.functional import logsigmoid, pad, softplus

from elbowroom.problem.isolation import isolated
from elbowroom.recording.kernel import kernel as kernel_module
from elbowroom.recording.kernel.kernel import Kernel, KernelLimits, compiled
from elbowroom.recording.kernel.lowering import NotLowerableError
from elbowroom.recording.record import record

D = 12
BATCHES = (1, 7, 8, 9, 17)
"""Fewer than the lanes of a vector, as many, and more."""
NEAR = 1e-11
"""Relative to the largest number: sums in another order, and elementary functions to 3 ulps."""
GENERATOR = torch.Generator().manual_seed(7)
ROWS, FEW = (torch.randn(n, D, generator=GENERATOR, dtype=torch.float64) for n in (40, 5))
LARGE = torch.eye(210, dtype=torch.float64) + 0.1
GROUPS = torch.randint(0, D, (60,), generator=GENERATOR)
COUNTS = torch.randint(0, 9, (60,), generator=GENERATOR).double()
SIDE = torch.randn(60, generator=GENERATOR, dtype=torch.float64)
CUBES = torch.tensor([3.0, 2.0] * 6, dtype=torch.float64)
MANY = torch.linspace(-1, 1, 90, dtype=torch.float64)
NONE = torch.zeros(D, dtype=torch.float64)
BELOW = torch.tril_indices(4, 4, -1)

Scalar = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def points_of(count: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, D, generator=generator, dtype=torch.float64)


def kernel_of(function: Callable[[Tensor], Any], scale: float = 1.0) -> Kernel:
    points = points_of(5, 1, scale)
    return compiled(record(function, points), points[:2])


def check(density: Scalar, scale: float = 1.0) -> None:
    """Gradient and value are those of torch at points where it was not recorded."""
    function = vmap(grad_and_value(density))
    kernel = kernel_of(function, scale)
    for count in BATCHES:
        points = points_of(count, count + 2, scale)
        given_points = points.clone()
        found, expected = kernel(given_points), function(points)
        assert torch.equal(given_points, points)
        for one, two in zip(found, expected, strict=True):
            assert one.shape == two.shape
            finite = two[torch.isfinite(two)].abs()
            largest = float(finite.max()) if finite.numel() else 0.0
            torch.testing.assert_close(
                one, two, rtol=NEAR, atol=NEAR * (1 + largest), equal_nan=True
            )


def spd(u: Tensor) -> Tensor:
    """A positive definite matrix, 3 by 3."""
    half = u[:9].reshape(3, 3)
    return half @ half.mT + torch.eye(3, dtype=u.dtype)


def triangular(u: Tensor) -> Tensor:
    matrix = torch.diag_embed(u[:4].exp())
    return matrix.index_put((BELOW[0], BELOW[1]), u[4:10])


def solved(matrix: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(matrix, ROWS[:6, :4].mT, upper=upper)


def kernel_matrix(u: Tensor) -> Tensor:
    """A covariance of twelve places, with a scale, a length and noise."""
    apart = (SIDE[:D, None] - SIDE[:D]).square()
    return u[0].exp() * (-apart * u[1].exp()).exp() + (0.1 + u[2].exp()) * torch.eye(D).double()


def gaussian_process(matrix: Tensor, u: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(matrix)
    return torch.linalg.solve_triangular(factor, torch.stack([u, SIDE[:D]], -1), upper=False)


def several(u: Tensor) -> Tensor:
    return torch.stack([kernel_matrix(u), 2 * kernel_matrix(u.flip(0))])


def triangles(u: Tensor) -> Tensor:
    """Six, above whose diagonal are numbers of no point."""
    return SIDE[:12].reshape(6, 2, 1) * torch.stack([u[:2], u[2:4]]).tril()


def factors(roots: Tensor) -> Tensor:
    return torch.linalg.cholesky(roots.mT @ roots + torch.eye(2).double())


def in_place(u: Tensor) -> Tensor:
    made = torch.zeros_like(u).repeat(2)
    made = made.index_put((GROUPS[:5],), u[:5], accumulate=True)
    return (made.square() * torch.arange(2.0 * D)).sum() + u.square().sum()


def walk(u: Tensor) -> Tensor:
    steps = torch.cat([u, u.tanh(), u.sin(), 0.1 * u])
    return (steps.cumsum(0) - SIDE[: 4 * D]).square().sum()


def walks(u: Tensor) -> Tensor:
    steps = torch.stack([u.repeat(2), u.exp().repeat(2)])
    return (steps.cumsum(1) * SIDE[: 2 * D]).sum().tanh()


def hidden(u: Tensor) -> Tensor:
    """A forward filter of three states."""
    transition, state = u[:9].reshape(3, 3).log_softmax(-1), u[9:].log_softmax(-1)
    for t in range(6):
        state = torch.logsumexp(state[:, None] + transition, 0) - (u[9:] - COUNTS[t]).square()
    return torch.logsumexp(state, 0)


DENSITIES: dict[str, Scalar] = {
    "exponentials": lambda u: (u.exp() + torch.expm1(u) + u.exp().log1p()).sum(),
    "logarithms": lambda u: (u.exp().log() + u.square().log1p()).prod(),
    "roots": lambda u: ((u.square() + 1).sqrt() + (u.square() + 2).rsqrt()).sum(),
    "sigmoids": lambda u: (u.sigmoid() * u.tanh()).sum() + logsigmoid(u).sum(),
    "softplus": lambda u: softplus(3 * u, 1, 2.0).square().sum(),
    "softplus of a slope": lambda u: softplus(u, 2.5, 20.0).sum(),
    "circles": lambda u: (u.sin() * u.cos() + u.atan()).sum(),
    "error function": lambda u: u.erf().square().sum(),
    "gamma function": lambda u: ((2 * u).exp().lgamma() + (u + 20).lgamma()).sum(),
    "gamma function below zero": lambda u: (u - 3.3).lgamma().tanh().sum(),
    "powers": lambda u: (u**3 + (u**2 + 1) ** -0.5 + u**4 + u.exp() ** 1.7 + 2.0**u).sum(),
    "a power of two": lambda u: (u[:6].exp() ** u[6:]).sum(),
    "powers of negative numbers": lambda u: (u**CUBES).sum(),
    "quotients": lambda u: (u / (1 + u.square())).sum() / (2 - u[0].tanh()),
    "signs": lambda u: (u.abs() + u * u.sign()).sum(),
    "choices": lambda u: torch.where(u > 0.3, u.square(), -u).sum() + u.clamp(-0.5, 0.5).sum(),
    "choices of choices": lambda u: torch.where((u > 0) & ~(u > 1) | (u < -1), u, u**2).sum(),
    "masks": lambda u: u.masked_fill(SIDE[:D] > 0, 2.0).square().sum() + (u * (u > 0)).sum(),
    "extremes": lambda u: u.amax() * 2 + u.reshape(3, 4).amin(1).square().sum(),
    "one of two": lambda u: torch.maximum(u[:6], u[6:]).sum() + torch.minimum(u, SIDE[:D]).sum(),
    "softmax": lambda u: (u.reshape(3, 4).softmax(-1) * SIDE[:4]).sum().log(),
    "mixture": lambda u: torch.logsumexp(u.reshape(3, 4) - SIDE[:4, None].mT, 0).square().sum(),
    "log softmax": lambda u: (u.reshape(4, 3).log_softmax(0)[1] * SIDE[:3]).sum(),
    "groups": lambda u: ((u[GROUPS] - SIDE).square() * 0.5 + COUNTS * u[GROUPS].tanh()).sum(),
    "groups without sides": lambda u: u[GROUPS].exp().sum() * u[GROUPS[:30]].square().sum(),
    "groups and sides": lambda u: softplus(u[GROUPS] * SIDE + u[0]).sum(),
    "sums of groups": lambda u: NONE.index_add(0, GROUPS, u[0] * SIDE).tanh().sum(),
    "few onto many": lambda u: (MANY.index_add(0, GROUPS[:5] % 2, u[:5].exp()) + u[0]).tanh().sum(),
    "scattered": lambda u: NONE.scatter_add(0, GROUPS, u.repeat(5)).square().sum(),
    "regression": lambda u: (ROWS @ u - SIDE[:40]).square().sum(),
    "logistic regression": lambda u: (softplus(ROWS @ u) - ROWS @ u).sum(),
    "two layers": lambda u: (FEW @ u.reshape(D, 1).expand(D, 3)).tanh().sum().square(),
    "products": lambda u: (u.reshape(3, 4) @ u.reshape(4, 3)).square().sum(),
    "a contraction": lambda u: torch.einsum("ab,b->a", ROWS, u.tanh()).square().sum(),
    "covariance": lambda u: torch.linalg.cholesky(spd(u)).diagonal().log().sum(),
    "multivariate normal": lambda u: solved(triangular(u), False).square().sum(),
    "transposed solve": lambda u: solved(triangular(u).mT, True).sum(),
    "large covariance": lambda u: torch.linalg.cholesky(kernel_matrix(u)).diagonal().log().sum(),
    "Gaussian process": lambda u: gaussian_process(kernel_matrix(u), u).square().sum(),
    "large products": lambda u: (kernel_matrix(u) @ LARGE[:D, :7] @ LARGE[:7, :D]).sin().sum(),
    "many matrices": lambda u: torch.linalg.cholesky(several(u)).diagonal(0, 1, 2).log().sum(),
    "factors of triangles": lambda u: factors(triangles(u)).diagonal(0, 1, 2).log().sum(),
    "stick breaking": lambda u: ((1 - u.sigmoid()).cumprod(0)[:-1] * u.sigmoid()[1:]).log().sum(),
    "random walk": walk,
    "several walks": walks,
    "moved": lambda u: (torch.stack([u.flip(0), u.roll(2)]).tril() * u).square().sum(),
    "padded": lambda u: pad(u[2:5], (1, 2), value=1.5).prod() + u[::3].sum(),
    "written in place": in_place,
    "filtered": hidden,
    "constants": lambda u: (u * 0 + 3.5).sum() - u[0],
    "far out": lambda u: (50 * u).exp().log1p().sum() + (-(30 * u).square()).exp().sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSITIES)
def test_values_and_gradients_are_those_of_torch(name: str) -> None:
    check(DENSITIES[name])


LINKS: dict[str, Scalar] = {
    "exp": lambda x: (0.3 * x).exp(),
    "log": lambda x: (x.square() + 0.5).log(),
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "square": torch.square,
    "turned": lambda x: x.flip(-1),
    "sorted into groups": lambda x: x[GROUPS[:D]],
    "less its sum": lambda x: x - x.sum() / D,
    "running": lambda x: x.cumsum(-1) / D,
    "scaled": lambda x: x / (1 + x.square().sum()),
    "mixed": lambda x: (FEW.mT @ (FEW @ x)) / D,
    "chosen": lambda x: torch.where(x > 0.1, x, -0.5 * x),
    "largest": lambda x: x - x.amax(),
    "as a matrix": lambda x: x.reshape(3, 4).mT.reshape(-1),
    "weighted": lambda x: x.softmax(-1),
}


@settings(max_examples=25)
@given(st.lists(st.sampled_from(sorted(LINKS)), min_size=2, max_size=6))
def test_any_chain_of_operations_is_that_of_torch(names: list[str]) -> None:
    def density(u: Tensor) -> Tensor:
        for name in names:
            u = LINKS[name](u)
        return (u * SIDE[:D]).sum()

    check(density)


REFERENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Any]]] = {
    "exp": (torch.exp, np.exp),
    "expm1": (torch.expm1, np.expm1),
    "log": (torch.log, np.log),
    "log1p": (torch.log1p, np.log1p),
    "tanh": (torch.tanh, np.tanh),
    "sigmoid": (torch.sigmoid, scipy.special.expit),
    "lgamma": (torch.lgamma, scipy.special.gammaln),
    "digamma": (torch.digamma, scipy.special.psi),
}
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e-310, -1e-310, 1e300, -1e300]


@pytest.mark.parametrize("name", REFERENCES)
def test_elementary_functions_are_right_to_the_last_digits(name: str) -> None:
    """Against NumPy and SciPy, from the smallest to the largest numbers, and NaN."""
    function, reference = REFERENCES[name]
    kernel = kernel_of(lambda u: [function(u)], 0.1)
    random = np.random.default_rng(3)
    sizes = 10.0 ** random.uniform(-12, 2.8, (400, D))
    x = sizes * random.choice([-1.0, 1.0], sizes.shape)
    x[:20] = 1 + 0.01 * random.standard_normal((20, D))
    x[20] = [*SPECIAL, 709.9, -745.2]
    if name in ("lgamma", "digamma"):
        x[:20], x[21:] = np.abs(x[:20]), np.abs(x[21:])
        x[x < 1e-300] = 1.0
    with np.errstate(all="ignore"):
        expected = reference(x)
    found = kernel(torch.from_numpy(x))[0].numpy()
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    found, expected = found[finite], expected[finite]
    # Near the zeros of these functions their digits are those of their terms, of size 1.
    floor = 1.0 if name in ("lgamma", "digamma") else 0.0
    ulps = np.abs(found - expected) / np.spacing(np.maximum(np.abs(expected), floor))
    assert ulps.max() <= (32 if floor else 4)


def test_long_sums_lose_no_digits() -> None:
    """Each small term alone is less than the last digit of the large one."""
    terms = torch.full((30_000,), 1e-16, dtype=torch.float64)
    terms[0] = 1.0
    ramp = torch.linspace(0, 1, 30_000, dtype=torch.float64)
    kernel = kernel_of(lambda u: [(terms * (u[:, :1] * ramp).exp()).sum(-1)], 0.1)
    found = kernel(torch.zeros(1, D, dtype=torch.float64))[0]
    assert abs(float(found) - math.fsum(terms.tolist())) < 1e-15


def test_infinite_terms_make_infinite_sums() -> None:
    weights = 1 + SIDE.repeat(2).abs()
    function = vmap(lambda u: (u[GROUPS].repeat(2) * weights.cumsum(0)).log().sum())
    kernel = kernel_of(lambda u: [function(u)])
    points = points_of(3, 9).abs()
    points[1, GROUPS[4]] = 0.0
    points[2, GROUPS[5]] = -1.0
    found = kernel(points)[0]
    assert found.isfinite().tolist() == [True, False, False]
    assert float(found[1]) == -math.inf
    assert math.isnan(float(found[2]))


def test_threads_do_not_share_their_memory() -> None:
    function = vmap(grad_and_value(DENSITIES["groups and sides"]))
    kernel = kernel_of(function)
    batches = [points_of(200, seed) for seed in range(4)]
    expected = [kernel(each) for each in batches]
    same: list[bool] = []

    def work(number: int) -> None:
        for _ in range(50):
            found = kernel(batches[number])
            same.append(all(map(torch.equal, found, expected[number])))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 200


LOOKUP = torch.arange(float(D)).double()


def test_points_that_threads_share_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches end within vectors, and each thread has some of them or none."""
    kernel = kernel_of(vmap(grad_and_value(lambda u: (u.sin() * ROWS.exp()).sum())))
    threads, ran = torch.get_num_threads(), set()
    own = Kernel._run

    def run(self: Kernel, *given: Any) -> None:
        ran.add(threading.get_ident())
        own(self, *given)

    monkeypatch.setattr(Kernel, "_run", run)
    try:
        for count in (1, 8, 9, 40, 129):
            points = points_of(count, count)
            torch.set_num_threads(1)
            monkeypatch.setattr(kernel_module, "KERNELS", KernelLimits())
            wanted = kernel(points)
            torch.set_num_threads(3)
            monkeypatch.setattr(kernel_module, "KERNELS", KernelLimits(of_thread=1))
            assert all(map(torch.equal, kernel(points), wanted))
    finally:
        torch.set_num_threads(threads)
    assert len(ran) > 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")
def test_a_kernel_that_is_gone_leaves_nothing_behind() -> None:
    """LLVM's own list of passes lost a third of a megabyte each time."""

    def megabytes() -> float:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    points = points_of(5, 1)
    replay = record(vmap(grad_and_value(DENSITIES["groups and sides"])), points)
    for turn in range(60):
        if turn == 20:  # by when the libraries have what they keep
            gc.collect()
            before = megabytes()
        compiled(replay, points[:2])(points)
    gc.collect()
    assert megabytes() - before < 3


def test_a_kernel_in_a_cycle_of_garbage_goes_before_its_context() -> None:
    """Python frees what is in a cycle in any order: the process ended where code came second."""
    for _ in range(4):
        for _ in range(3):
            cycle: list[Any] = [kernel_of(vmap(grad_and_value(lambda u: u.exp().sum())))]
            cycle.append(cycle)
            del cycle
        gc.collect()
    kernel = kernel_of(vmap(grad_and_value(lambda u: u.sin().sum())))
    assert all(each.isfinite().all() for each in kernel(points_of(9, 2)))


def test_no_points_have_no_results() -> None:
    kernel = kernel_of(vmap(grad_and_value(DENSITIES["groups"])))
    gradient, value = kernel(points_of(0, 1))
    assert (gradient.shape, value.shape) == ((0, D), (0,))


def one_by_one(u: Tensor) -> list[Tensor]:
    """A recursion whose turns cannot be done at once, and do not repeat."""
    x, choices = u[:, 0], np.random.default_rng(0).integers(0, 2, 4000)
    for k, choice in enumerate(choices):
        x = (x * u[:, k % D]).tanh() + 0.1 if choice else (x - u[:, k % D]).sin()
    return [x]


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "a place that follows the point": lambda u: [LOOKUP[u.argmax(-1)]],
    "a place that is the same at all points so far": lambda u: [
        u.gather(1, (u[:, :1] > -50).long()).sum(-1)
    ],
    "points that are mixed": lambda u: [(u - u.mean(0)).sum(-1)],
    "the next point": lambda u: [(u + u.roll(1, 0)).sum(-1)],
    "other numbers than float64": lambda u: [u.float().exp().sum(-1).double()],
    "whole numbers": lambda u: [(u.long() * 2).sum(-1).double()],
    "an operation that is not known": lambda u: [torch.special.i0(u).sum(-1)],
    "thousands of operations one by one": one_by_one,
    "no results": lambda u: [u.exp()[:, :0], u.sum(-1)],
    "a large matrix": lambda u: [torch.linalg.cholesky(LARGE * u[:, :1, None].exp()).sum((1, 2))],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused(name: str) -> None:
    points = points_of(5, 1)
    replay = record(REFUSED[name], points)
    with pytest.raises(NotLowerableError):
        compiled(replay, points[:2])
