"""Draws of discrete sites from their joint posterior, against the sum over all values."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.guides.space import LatentSpace, sample_sites
from elbowroom.problem.enumeration import enumerated
from elbowroom.problem.isolation import isolated
from elbowroom.problem.mapping import map_draws
from elbowroom.problem.score import score

MOVES = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def chains(y: Tensor) -> None:
    """Rows of chains, each with a kind; all share another."""
    shared = pyro.sample("shared", dist.Categorical(torch.tensor([0.4, 0.6])))
    state = torch.tensor(0)
    with pyro.plate("rows", y.shape[1]):
        kind = pyro.sample("kind", dist.Bernoulli(torch.tensor([0.3, 0.7])[shared]))
        for t in range(len(y)):
            state = pyro.sample(f"state_{t}", dist.Categorical(MOVES[state]))
            mean = 1.0 * state + kind + 0.5 * shared
            pyro.sample(f"y_{t}", dist.Normal(mean, 1.0), obs=y[t])


def nested(y: Tensor) -> None:
    with pyro.plate("groups", y.shape[0], dim=-2):
        group = pyro.sample("group", dist.OneHotCategorical(torch.tensor([0.2, 0.8])))
        with pyro.plate("members", y.shape[1], dim=-1):
            member = pyro.sample("member", dist.Bernoulli(0.3 + 0.4 * group[..., 0]))
            pyro.sample("y", dist.Normal(member + group[..., 1], 1.0), obs=y)


def apart(y: Tensor) -> None:
    """Only the observation joins the members' sites to those of their groups."""
    with pyro.plate("groups", y.shape[0], dim=-2):
        group = pyro.sample("group", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        with pyro.plate("members", y.shape[1], dim=-1):
            member = pyro.sample("member", dist.Bernoulli(torch.tensor([0.2, 0.7])))
            pyro.sample("y", dist.Normal(member + group, 1.0), obs=y)


def in_a_loop(y: Tensor) -> None:
    for i in map(int, pyro.plate("rows", y.numel())):
        kind = pyro.sample(f"kind_{i}", dist.Bernoulli(0.3))
        pyro.sample(f"y_{i}", dist.Normal(kind, 1.0), obs=y.reshape(-1)[i])


@pytest.mark.parametrize("model", [chains, nested, apart, in_a_loop])
def test_a_draws_probability_is_its_joint_posterior_one(model: Callable[..., Any]) -> None:
    y = torch.randn(4, 2)
    space = LatentSpace.of(model, {"y": y})
    evidence = score(model, {"y": y}, {}, space).log_joint
    guide = enumerated(model, space)
    for _ in range(5):
        trace: Any = poutine.trace(guide).get_trace(y=y)
        values = {name: node["value"] for name, node in sample_sites(trace)}
        assert values.keys() == space.discrete.keys()
        joint = score(model, {"y": y}, values, space).log_joint
        assert float(trace.log_prob_sum()) == pytest.approx(float(joint - evidence), abs=1e-10)


def test_draws_in_one_batch_are_as_frequent_as_they_are_probable() -> None:
    y, draws = torch.randn(3, 2), 4000
    space = LatentSpace.of(chains, {"y": y})
    guide = enumerated(chains, space)

    def drawn(_: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = poutine.trace(guide).get_trace(y=y)
        return {name: node["value"] for name, node in sample_sites(trace)}

    found = map_draws(drawn, {}, draws, draws)
    for state in range(3):
        given = {"state_2": torch.tensor([state, 0])}
        both = [
            score(chains, {"y": y}, {"state_2": torch.tensor([state, other])}, space).log_joint
            for other in range(3)
        ]
        share = torch.stack(both).logsumexp(0) - score(chains, {"y": y}, {}, space).log_joint
        seen = (found["state_2"][:, 0] == given["state_2"][0]).double().mean()
        p = float(share.exp())
        assert float(seen) == pytest.approx(p, abs=4 * (p * (1 - p) / draws) ** 0.5)
