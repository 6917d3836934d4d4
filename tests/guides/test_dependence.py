"""Which discrete sites a density depends on, whatever the model's loops."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from elbowroom.guides.dependence import MOST, shared_places
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated

MOVES = torch.tensor([[0.6, 0.4], [0.2, 0.8]])


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def chain(steps: Any, y: Tensor) -> None:
    state = torch.tensor(0)
    for t in steps:
        state = pyro.sample(f"state_{t}", dist.Categorical(MOVES[state]))
        pyro.sample(f"y_{t}", dist.Normal(1.0 * state, 1.0), obs=y[t])


def dependence(model: Callable[..., Any], y: Tensor) -> Any:
    return LatentSpace.of(model, {"y": y}).dependence


@pytest.mark.parametrize("loop", [range, lambda n: pyro.markov(range(n))])
def test_a_state_depends_on_the_one_before_it_alone(loop: Any) -> None:
    found = dependence(lambda y: chain(loop(6), y), torch.zeros(6))
    assert found["state_0"] == {"state_0"}
    for t in range(1, 6):
        assert found[f"state_{t}"] == {f"state_{t - 1}", f"state_{t}"}
        assert found[f"y_{t}"] == {f"state_{t}"}


def test_rows_of_a_sequential_plate_are_apart_and_what_leaks_out_of_one_is_seen() -> None:
    def model(y: Tensor) -> None:
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        before = torch.zeros(())
        for i in map(int, pyro.plate("rows", 3)):
            own = pyro.sample(f"own_{i}", dist.Bernoulli(0.2 + 0.5 * kind))
            mean = Vindex(torch.tensor([0.0, 2.0]))[own.long()]
            pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=y[i])
            if i == 2:
                pyro.sample("leak", dist.Normal(before, 1.0), obs=y[i])
            before = before + own

    found = dependence(model, torch.zeros(3))
    assert [found[f"own_{i}"] for i in range(3)] == [{"kind", f"own_{i}"} for i in range(3)]
    assert [found[f"y_{i}"] for i in range(3)] == [{f"own_{i}"} for i in range(3)]
    assert found["leak"] == {"own_0", "own_1"}


def test_a_continuous_site_hides_what_its_own_density_depends_on() -> None:
    def model(y: Tensor) -> None:
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        mean = pyro.sample("mean", dist.Normal(kind, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    assert dependence(model, torch.zeros(())) == {"kind": {"kind"}, "mean": {"kind"}, "y": set()}


def test_a_tensor_that_is_filled_holds_all_that_went_in() -> None:
    def model(y: Tensor) -> None:
        means = torch.zeros(2)
        for i in range(2):
            means[i] = pyro.sample(f"kind_{i}", dist.Bernoulli(0.3)).squeeze()
        pyro.sample("y", dist.Normal(means[0], 1.0), obs=y)

    assert dependence(model, torch.zeros(()))["y"] == {"kind_0", "kind_1"}


def test_a_value_that_is_read_or_on_which_too_much_depends_is_not_followed() -> None:
    def read(y: Tensor) -> None:
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(kind.item(), 1.0), obs=y)

    def total(y: Tensor) -> None:
        kinds = [pyro.sample(f"kind_{i}", dist.Bernoulli(0.3)) for i in range(MOST + 1)]
        pyro.sample("y", dist.Normal(sum(kinds), 1.0), obs=y)

    assert dependence(read, torch.zeros(())) is None
    assert dependence(total, torch.zeros(())) is None


def test_sites_that_share_a_density_have_places_of_their_own() -> None:
    edges = [{"a", "b", "c"}, {"c", "d"}, {"d", "a"}, {"e"}]
    sets = {name: frozenset(edge) for name, edge in zip("abcde", edges, strict=False)}
    sets |= {f"other_{i}": frozenset(edge) for i, edge in zip(count(), edges, strict=False)}
    places = shared_places({**{n: frozenset(n) for n in "abcde"}, **sets})
    assert all(len({places[site] for site in edge}) == len(edge) for edge in edges)
    assert len(set(places.values())) == 3
