"""Rows that are alike are taken once where the density is a sum over rows, and only there."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom.density.alike_rows import ALIKE_ROWS, kinds_of_rows
from elbowroom.density.density import Density
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


SEEN = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0] * 40, dtype=torch.float64)
COLUMNS: Any = {"table": {"x": torch.tensor([0.0, 1.0] * 100), "y": SEEN}, "rows": 200}


def hidden(table: dict[str, Tensor], rows: int) -> None:
    """A hidden yes or no between two that are seen."""
    p = pyro.sample("p", dist.Beta(torch.ones(4), 2.0).to_event(1))
    with pyro.plate("rows", rows):
        kind = pyro.sample("kind", dist.Bernoulli(p[table["x"].long()].expand(rows)))
        pyro.sample("y", dist.Bernoulli(p[2 + kind.long()]), obs=table["y"])


def in_order(table: dict[str, Tensor], rows: int) -> None:
    """Each row depends on the one before it."""
    p = pyro.sample("p", dist.Beta(torch.ones(2), 2.0).to_event(1))
    before = torch.cat([table["y"][:1], table["y"][:-1]])
    with pyro.plate("rows", rows):
        pyro.sample("y", dist.Bernoulli(p[before.long()]), obs=table["y"])


def scaled_by_all(table: dict[str, Tensor], rows: int) -> None:
    p = pyro.sample("p", dist.Beta(1.0 + table["y"].sum(), 2.0))
    with pyro.plate("rows", rows):
        pyro.sample("y", dist.Bernoulli(p), obs=table["y"])


def density(model: Callable[..., Any], **arguments: Any) -> Density:
    return Density(model, arguments, LatentSpace.of(model, arguments))


def check(found: Density) -> None:
    """It is the model's own density, which takes all rows."""
    points = np.random.default_rng(0).normal(size=(6, found.dimension))
    values, gradients = found.value_and_gradient(points)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        u = torch.from_numpy(point).requires_grad_()
        own = found(u)
        assert value == pytest.approx(float(own.detach()), rel=1e-12)
        (slope,) = torch.autograd.grad(own, u)
        np.testing.assert_allclose(gradient, slope.numpy(), rtol=1e-9, atol=1e-9)


def test_a_density_of_four_kinds_of_rows_is_that_of_all_rows_at_a_part_of_the_work() -> None:
    found = density(hidden, **COLUMNS)
    check(found)
    assert found.width == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("elbowroom.density.density.kinds_of_rows", lambda *_: None)
        assert density(hidden, **COLUMNS).work > 10 * found.work


@pytest.mark.parametrize("model", [in_order, scaled_by_all])
def test_rows_that_depend_on_others_are_all_taken(model: Callable[..., Any]) -> None:
    found = density(model, **COLUMNS)
    check(found)
    assert found.width == 200


def test_rows_of_many_kinds_or_with_latents_of_their_own_are_left() -> None:
    def own(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def mean_of(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    few = ALIKE_ROWS.least - 1
    for model, y in [(own, SEEN), (mean_of, torch.randn(200)), (mean_of, SEEN[:few])]:
        arguments = {"y": y}
        assert kinds_of_rows(model, arguments, LatentSpace.of(model, arguments)) is None
    arguments = {"y": SEEN}
    assert kinds_of_rows(mean_of, arguments, LatentSpace.of(mean_of, arguments)) is not None
