"""Which sums are parts of a whole density."""

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom.density.branches import MOST
from elbowroom.density.density import Density
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def whole(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    kind = pyro.sample("kind", dist.Categorical(torch.ones(3) / 3))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean + kind, 1.0), obs=y)


def one_by_one(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for i in map(int, pyro.plate("rows", len(y))):
        kind = pyro.sample(f"kind_{i}", dist.Categorical(torch.ones(3) / 3))
        pyro.sample(f"y_{i}", dist.Normal(mean + kind, 1.0), obs=y[i])


def test_a_kind_of_all_rows_is_a_sum_of_the_whole_and_one_of_each_row_is_none() -> None:
    for model, rows, terms in [(whole, 10, 3), (one_by_one, MOST + 1, 0)]:
        arguments = {"y": torch.randn(rows)}
        density = Density(model, arguments, LatentSpace.of(model, arguments))
        assert density.branches() == terms
