"""Estimates of the ELBO beside Pyro's, at the same noise."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from elbowroom.objectives import objectives
from elbowroom.problem.isolation import isolated

Y = torch.tensor([2.0, 3.0, 4.0, -1.0], dtype=torch.float64)
PYRO: dict[str, Any] = {
    "trace": Trace_ELBO,
    "trace_graph": TraceGraph_ELBO,
    "trace_enum": TraceEnum_ELBO,
    "trace_mean_field": TraceMeanField_ELBO,
}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def model(y: Tensor) -> None:
    """A scaled plate, a Gamma with a divergence from its like, and a factor."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 2.0))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
    pyro.factor("tilt", -0.1 * mean.square())
    with pyro.plate("rows", 8, subsample_size=4):
        local = pyro.sample("local", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(local, rate), obs=y)


def guide(y: Tensor) -> None:
    location = pyro.param("location", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(location, scale))
    shape = pyro.param("shape", torch.tensor(1.5), constraint=dist.constraints.positive)
    pyro.sample("rate", dist.Gamma(shape, 1.2))
    with pyro.plate("rows", 8, subsample_size=4):
        pyro.sample("local", dist.LogNormal(pyro.param("local_location", torch.zeros(())), 0.5))


def kinds(y: Tensor) -> None:
    """A discrete site with a value for each row."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("rows", 4):
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(mean[kind], 1.0), obs=y)


def of_means(y: Tensor) -> None:
    location = pyro.param("location", torch.tensor([0.3, 1.0]))
    pyro.sample("mean", dist.Normal(location, 0.5).to_event(1))


def of_kinds(y: Tensor) -> None:
    of_means(y)
    logits = pyro.param("logits", torch.zeros(4, 2))
    with pyro.plate("rows", 4):
        pyro.sample("kind", dist.Categorical(logits=logits))


Pair = tuple[Callable[..., Any], Callable[..., Any]]
ENUMERATED = pyro.infer.config_enumerate(kinds, "parallel")


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("trace", (model, guide)),
        ("trace_mean_field", (model, guide)),
        ("trace_graph", (model, guide)),
        ("trace", (kinds, of_kinds)),  # a score function
        ("trace_graph", (kinds, of_kinds)),
        ("trace_enum", (ENUMERATED, of_means)),
    ],
)
def test_losses_and_gradients_are_pyros(name: str, pair: Pair, particles: int) -> None:
    theirs = PYRO[name](num_particles=particles, max_plate_nesting=1)
    ours = objectives()[name](particles, 1)
    theirs.loss(*pair, Y)  # makes the parameters
    parameters = dict(pyro.get_param_store().named_parameters())
    results: list[list[Any]] = []
    for each in ("theirs", "ours"):
        pyro.set_rng_seed(1)
        for value in parameters.values():
            value.grad = torch.zeros_like(value)
        if each == "theirs":
            loss = theirs.loss_and_grads(*pair, Y)
        else:
            found, surrogate = ours.loss_and_surrogate(*pair, {"y": Y})
            surrogate.backward()
            loss = float(found)
        results.append([torch.as_tensor(loss), *(v.grad for v in parameters.values())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    pyro.set_rng_seed(1)
    assert ours.loss(*pair, y=Y) == pytest.approx(float(results[0][0]), rel=1e-12)
