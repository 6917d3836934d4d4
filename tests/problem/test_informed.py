"""Multivariate Normal sites by what is known of them: the same posterior in other coordinates."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.density.landscape import density_of
from elbowroom.problem.bound import Problem, bind, resolve_model
from elbowroom.problem.informed import SMALL, Form, Information, restored, stored
from elbowroom.problem.isolation import isolated


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with isolated(0, dtype=torch.float64):
        yield


EXACT: Any = {"rtol": 1e-9, "atol": 1e-9}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape)


def positive(size: int, *batch: int) -> Tensor:
    root = drawn(*batch, size, size)
    return root @ root.mT + 0.5 * torch.eye(size)


def rooted(precision: Tensor, slope: Tensor) -> Information:
    return Information(torch.linalg.cholesky(precision).mT.contiguous(), slope)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_given_normal_data_the_posterior_is_standard_normal(
    batch: tuple[int, ...], diagonal: bool
) -> None:
    """Whatever the prior: p(u) p(y | f(u)) = N(u; 0, 1) N(y; loc, K + S), S the noise of y."""
    size = 4
    noise = positive(size, *batch)
    if diagonal:
        noise = torch.diag_embed(noise.diagonal(dim1=-2, dim2=-1))
    y, precision = drawn(*batch, size), torch.linalg.inv(noise)
    information = rooted(precision, (precision @ y.unsqueeze(-1)).squeeze(-1))
    for _ in range(2):
        loc, covariance = drawn(*batch, size), positive(size)
        own = information.of_normal(loc, torch.linalg.cholesky(covariance))
        u = drawn(5, *batch, size)
        f = own.value_of(u)
        joint = own.log_prob(u) + dist.MultivariateNormal(f, noise).log_prob(y)
        evidence = dist.MultivariateNormal(loc, covariance + noise).log_prob(y)
        torch.testing.assert_close(joint, dist.Normal(0.0, 1.0).log_prob(u).sum(-1) + evidence)
        torch.testing.assert_close(own.of_value(f), u, **EXACT)


@pytest.mark.parametrize("size", [2, SMALL, SMALL + 1])
def test_what_is_known_moves_with_other_latents(size: int) -> None:
    """p(u) p(y | f(u) + X b) = N(u; 0, 1) N(y; loc + X b, K + S), S the noise of y."""
    noise, x, y = positive(size, 3), drawn(3, size, 4), drawn(3, size)
    precision = torch.linalg.inv(noise)
    known = rooted(precision, (precision @ y.unsqueeze(-1)).squeeze(-1))
    known = replace(known, moves={"b": precision @ x[..., :3], "c.d": precision @ x[..., 3:]})
    loc, covariance = drawn(3, size), positive(size)
    for _ in range(2):
        b = drawn(4)
        own = known.of_normal(loc, torch.linalg.cholesky(covariance), {"b": b[:3], "c.d": b[3]})
        u = drawn(3, size)
        f = own.value_of(u)
        data = dist.MultivariateNormal(f + x @ b, noise)
        evidence = dist.MultivariateNormal(loc + x @ b, covariance + noise).log_prob(y)
        expected = dist.Normal(0.0, 1.0).log_prob(u).sum(-1) + evidence
        torch.testing.assert_close(own.log_prob(u) + data.log_prob(y), expected, **EXACT)
        torch.testing.assert_close(own.of_value(f), u, **EXACT)


def test_draws_are_those_of_the_prior() -> None:
    loc, covariance, count = drawn(3), positive(3), 40_000
    own = rooted(positive(3), drawn(3)).of_normal(loc, torch.linalg.cholesky(covariance))
    f = own.value_of(own.expand((2,)).rsample((count // 2,)).reshape(count, 3))
    error = 5 / count**0.5
    sds = covariance.diagonal().sqrt()
    assert float(((f.mean(0) - loc) / sds).abs().max()) < error
    assert float(((f.T.cov() - covariance) / sds / sds[:, None]).abs().max()) < 2**0.5 * error


def of_covariance(covariance: Tensor) -> dict[str, Any]:
    return {"covariance_matrix": covariance}


def of_precision(covariance: Tensor) -> dict[str, Any]:
    return {"precision_matrix": torch.linalg.inv(covariance)}


def of_factor(covariance: Tensor) -> dict[str, Any]:
    return {"scale_tril": torch.linalg.cholesky(covariance)}


def process(kind: Callable[[Tensor], dict[str, Any]]) -> Callable[..., Any]:
    def model(y: Tensor) -> None:
        size = pyro.sample("size", dist.LogNormal(0.0, 0.5))
        x = torch.arange(y.shape[-1]) / 2.0
        covariance = size**2 * torch.exp(-((x[:, None] - x) ** 2)) + 0.1 * torch.eye(len(x))
        f = pyro.sample("f", dist.MultivariateNormal(size * x, **kind(covariance)))
        pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    return model


def low_rank(y: Tensor) -> None:
    size = pyro.sample("size", dist.LogNormal(0.0, 0.5))
    factor = size * torch.linspace(-1.0, 1.0, len(y))[:, None]
    fn = dist.LowRankMultivariateNormal(torch.zeros(len(y)), factor, torch.ones(len(y)))
    f = pyro.sample("f", fn)
    pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)


def in_plates(y: Tensor) -> None:
    """Pairs in a table of 2 x 3, its rows with covariances of their own."""
    size = pyro.sample("size", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    covariance = size[:, None, None, None] * torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        f = pyro.sample("f", dist.MultivariateNormal(size, covariance))
        pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)


def in_one_event(y: Tensor) -> None:
    size = pyro.sample("size", dist.LogNormal(0.0, 0.5))
    covariance = size * torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    fn = dist.MultivariateNormal(torch.zeros(3, 2), covariance).to_event(1)
    f = pyro.sample("f", fn)
    pyro.sample("y", dist.Normal(f, 0.5).to_event(2), obs=y)


MODELS = {
    "covariance": (process(of_covariance), (4,)),
    "precision": (process(of_precision), (4,)),
    "factor": (process(of_factor), (4,)),
    "low rank": (low_rank, (4,)),
    "plates": (in_plates, (2, 3, 2)),
    "one event": (in_one_event, (3, 2)),
}


def bound(model: Callable[..., Any], shape: tuple[int, ...]) -> Problem:
    data = {"y": drawn(*shape)}
    return bind(resolve_model(model), data, None, torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("informed", [False, True])
@pytest.mark.parametrize("name", [*MODELS])
def test_the_density_changes_by_the_jacobian_alone(name: str, informed: bool) -> None:
    model, shape = MODELS[name]
    problem = bound(model, shape)
    assert problem.space.location_scale == problem.space.vectors == ("f",)
    known = rooted(positive(shape[-1], *shape[:-1]), drawn(*shape))
    forms: dict[str, Form] = {"f": known} if informed else {}
    changed = problem.reparameterise(["f"], forms)
    before, after = density_of(problem), density_of(changed)
    assert after.how == "recorded"
    u = 0.5 * drawn(after.dimension)
    values = changed.space.constrain(u)

    def of(moved: Tensor) -> Tensor:
        given = poutine.condition(changed.function, values | {"f_decentered": moved})
        trace: Any = poutine.trace(given).get_trace(**changed.arguments)
        return trace.nodes["f"]["value"]

    moved = values["f_decentered"]
    own = {"size": values["size"], "f": of(moved)}
    jacobian: Any = torch.autograd.functional.jacobian(of, moved)
    volume = torch.linalg.slogdet(jacobian.reshape(moved.numel(), -1))[1]
    expected = before.at(problem.space.unconstrain(own).numpy())[0] + float(volume)
    assert after.at(u.numpy())[0] == pytest.approx(expected, abs=1e-8)
    again = problem.restated(["f"], forms, own)
    torch.testing.assert_close(again["f_decentered"], moved, **EXACT)
    assert set(again) == {"size", "f_decentered"}


def test_a_covariance_that_is_known_is_left_as_it_is() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        f = pyro.sample("f", dist.MultivariateNormal(mean * torch.ones(4), torch.eye(4)))
        pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    space = bound(model, (4,)).space
    assert space.location_scale == space.vectors == ()


def test_a_start_is_given_in_the_model_s_own_sites() -> None:
    def model(y: Tensor) -> None:
        size = pyro.sample("size", dist.LogNormal(0.0, 0.5))
        level = pyro.sample("level", dist.Normal(1.0, size))
        f = pyro.sample("f", dist.MultivariateNormal(level * torch.ones(4), size * torch.eye(4)))
        pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    problem = bound(model, (4,))
    start = {"level": torch.tensor(3.0), "f": torch.arange(4.0)}
    begun = Problem(**{**vars(problem), "start": start | {"size": torch.tensor(4.0)}})
    found = begun.reparameterise(["level", "f"]).start
    assert float(found["level_decentered"]) == pytest.approx((3 - 1) / 4)
    expected = (start["f"] - 3) / 2
    torch.testing.assert_close(found["f_decentered"], expected, **EXACT)
    assert float(found["size"]) == pytest.approx(4.0)
    part = Problem(**{**vars(problem), "start": {"f": start["f"]}}).reparameterise(["f"]).start
    torch.testing.assert_close(part["f_decentered"], start["f"], **EXACT)  # the others at zero


def test_forms_are_stored_and_restored() -> None:
    known = Information(positive(2), drawn(2), {"b.c": drawn(2, 3), "d": drawn(2, 1)})
    forms: dict[str, Form] = {"a.b": drawn(3), "f": known}
    found = restored(dict(stored(forms)))
    assert set(found) == set(forms)
    assert found["a.b"] is forms["a.b"]
    again = found["f"]
    assert isinstance(again, Information)
    assert (again.root is known.root, again.slope is known.slope) == (True, True)
    assert again.moves == known.moves


def test_what_is_known_follows_the_type_of_the_model() -> None:
    """The same fit in float32, whose densities are still taken in float64."""
    problem = bound(process(of_covariance), (4,))
    problem = bind(problem.model, problem.data, None, torch.float32, torch.device("cpu"))
    changed = problem.reparameterise(["f"], {"f": rooted(positive(4), drawn(4))})
    assert density_of(changed).how == "recorded"
    with changed.session(0):
        u = torch.zeros(changed.space.dimension)
        assert changed.space.constrain(u)["f_decentered"].dtype == torch.float32
        poutine.trace(changed.function).get_trace(**changed.arguments)
