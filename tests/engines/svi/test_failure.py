"""What is not finite is named: the site, its distribution, the rows, or the parameter."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.engines.svi.failure import culprit
from elbowroom.objectives.estimators import Sampled
from elbowroom.problem.isolation import isolated

Y = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
nan_is_announced = pytest.mark.filterwarnings("ignore:.*Encountered:UserWarning")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def guide(y: Tensor) -> None:
    location = pyro.param("location", torch.zeros(()))
    scale = pyro.param("log_scale", torch.zeros(())).exp()
    pyro.sample("x", dist.Normal(location, scale))


def found(model: Callable[..., Any], y: Tensor = Y) -> str:
    return culprit(model, guide, {"y": y}, Sampled(1, 1))


def normal(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_a_scale_that_has_run_away() -> None:
    pyro.param("log_scale", torch.tensor(800.0))
    assert found(normal).startswith("The guide's draw of site 'x' is not finite: Normal with loc 0")
    assert "scale inf" in found(normal)


def test_a_parameter_that_is_no_number() -> None:
    pyro.param("location", torch.tensor(torch.nan))
    assert found(normal) == "The parameter 'location' is not finite."


def test_the_log_of_zero_at_its_rows() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(0 * x.exp() * y), obs=y)

    said = found(model)
    assert "The model's log density of site 'y' is not finite at rows 1, 3 (counted from 1)" in said
    assert "Poisson with rate 0" in said


def test_data_out_of_support() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.LogNormal(x, 1.0), obs=y)

    said = found(model, torch.tensor([1.0, -2.0, 3.0]))
    assert "site 'y' is not finite at row 2 (counted from 1)" in said
    assert "outside its support, GreaterThan(lower_bound=0.0)" in said


def test_an_infinite_gradient_of_a_finite_elbo() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("root", -(0 * x).abs().sqrt())
        pyro.sample("y", dist.Normal(x, 1.0).expand([3]).to_event(1), obs=y)

    assert "its gradient with respect to the parameter 'location' is not: look" in found(model)


def test_what_is_finite_again_is_said_to_be() -> None:
    assert found(normal) == "In 20 further runs the ELBO and its gradient were finite."


def edge(y: Tensor) -> None:
    """Above one, which every climb comes to, there is no density."""
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(3 * x, (1.0 - x).sqrt()), obs=y + 3)


@nan_is_announced
def test_a_run_steps_over_an_edge_that_is_not_finite() -> None:
    fit = er.fit(edge, {"y": Y}, guide=guide, seed=0, steps=3000, learning_rate=0.05, draws=100)
    assert fit.trained.status != "diverged"
    assert fit.trained.skipped > 0
    assert torch.isfinite(torch.as_tensor(fit.posterior["posterior"]["x"].values)).all()


@nan_is_announced
def test_a_run_says_why_it_ended_and_keeps_good_parameters() -> None:
    options: dict[str, Any] = {"steps": 500, "learning_rate": 1e6, "optimizer": "SGD", "draws": 100}
    fit = er.fit(normal, {"y": Y}, guide=guide, seed=0, **options)
    assert fit.trained.status == "diverged"
    assert "site 'x' is not finite: Normal with loc" in fit.trained.reason
    assert torch.isfinite(torch.as_tensor(fit.posterior["posterior"]["x"].values)).all()
    assert not fit.verdict.trusted
