"""Rows left out by fitting again, against closed forms, quadrature and fits of the other rows."""

from dataclasses import dataclass
from unittest.mock import Mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import expit, logsumexp
from scipy.stats import nbinom, norm
from torch import Tensor

import elbowroom as er
from elbowroom.assess.measures import high_k, rows_left_out
from elbowroom.errors import GuideError
from elbowroom.pipeline import leaving_out
from elbowroom.pipeline.leaving_out import bridged, log_density_without
from elbowroom.pipeline.reference import add_reference
from elbowroom.result import Fit


@dataclass(frozen=True)
class Case:
    """A regression with one row far out, whose density importance weights cannot tell."""

    rows: int = 15
    far: int = 3
    prior: float = 10.0
    reach: float = 6.0
    shift: float = 8.0


CASE = Case()


def line(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, CASE.prior).expand([2]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(b[0] + b[1] * x, 1.0), obs=y)


def numbers(shift: float = CASE.shift) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=CASE.rows)
    y = 1 + 2 * x + random.normal(size=CASE.rows)
    x[CASE.far] = CASE.reach
    y[CASE.far] = 1 + 2 * CASE.reach - shift
    return np.column_stack([np.ones(CASE.rows), x]), y


def without(design: np.ndarray, y: np.ndarray, row: int) -> tuple[float, float, np.ndarray]:
    """Mean and sd of the row's predictive distribution given the others, and the row's log density
    at as many draws of that posterior as of a fit."""
    kept = np.arange(len(y)) != row
    precision = design[kept].T @ design[kept] + np.eye(2) / CASE.prior**2
    mean = np.linalg.solve(precision, design[kept].T @ y[kept])
    sd = float(np.sqrt(1 + design[row] @ np.linalg.solve(precision, design[row])))
    draws = np.random.default_rng(1).multivariate_normal(mean, np.linalg.inv(precision), 4000)
    return float(design[row] @ mean), sd, norm.logpdf(y[row], draws @ design[row], 1.0)


def far() -> tuple[Fit, float]:
    design, y = numbers()
    fit = er.fit(line, {"x": torch.tensor(design[:, 1]), "y": torch.tensor(y)}, seed=1)
    mean, sd, _ = without(design, y, CASE.far)
    return fit, float(norm.logpdf(y[CASE.far], mean, sd))


def test_a_row_far_out_has_the_density_of_the_closed_form() -> None:
    """Its weights are off by nats, and say so; the bridge's own error is about 0.14 nats."""
    fit, exact = far()
    found = rows_left_out(fit.posterior)
    assert found is not None
    assert np.flatnonzero(high_k(found)).tolist() == [CASE.far]
    assert abs(found.elpd_i.to_numpy()[CASE.far] - exact) > 1.5
    assert log_density_without(fit, CASE.far) == pytest.approx(exact, abs=4 * 0.14)
    assert fit.problem.function(**fit.problem.arguments) is None  # its rows are as they were


def test_a_fit_by_nuts_is_fitted_again_by_nuts(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, exact = far()
    sampled = add_reference(fit, draws=500, take=True)
    again = Mock(wraps=add_reference)
    monkeypatch.setattr(leaving_out, "add_reference", again)
    assert sampled.origin == "nuts"
    assert log_density_without(sampled, CASE.far) == pytest.approx(exact, abs=4 * 0.2)
    again.assert_called_once()
    assert again.call_args.kwargs == {"take": True}


def test_the_bridge_is_right_where_the_mean_over_draws_is_not() -> None:
    """Between the closed-form posteriors with and without a row; its error is that of repeats."""
    design, y = numbers()
    mean, sd, left_out = without(design, y, CASE.far)
    exact = norm.logpdf(y[CASE.far], mean, sd)
    precision = design.T @ design + np.eye(2) / CASE.prior**2
    centre, covariance = np.linalg.solve(precision, design.T @ y), np.linalg.inv(precision)
    found = []
    for seed in range(20):
        draws = np.random.default_rng([2, seed]).multivariate_normal(centre, covariance, 4000)
        other = np.random.default_rng([3, seed]).choice(left_out, 4000)
        found.append(bridged(norm.logpdf(y[CASE.far], draws @ design[CASE.far], 1.0), other))
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(exact, abs=4 * errors.mean() / 2)
    assert 0.5 < values.std() / errors.mean() < 2
    assert abs(logsumexp(left_out) - np.log(len(left_out)) - exact) > errors.mean()


def test_posteriors_that_hardly_overlap_are_refused() -> None:
    design, y = numbers(shift=25.0)
    fit = er.fit(line, {"x": torch.tensor(design[:, 1]), "y": torch.tensor(y)}, seed=1)
    with pytest.raises(GuideError, match=r"^row 4 lies so far out that the draws with it and"):
        log_density_without(fit, CASE.far)


def test_a_guide_that_reads_the_rows_itself_does_not_hide_that_one_is_left_out() -> None:
    """The named model `conjugate` has an exact guide that is computed from the arguments.

    Given the others a count is negative binomial, as its rate has a Gamma posterior.
    """
    y = np.array([1.0, 0.0, 2.0, 1.0, 9.0, 0.0])
    fit = er.fit("conjugate", {"y": y}, likelihood="poisson", prior=(1.0, 0.5), seed=1)
    assert fit.guide.name == "exact"
    shape, rate = 1.0 + y.sum() - y[4], 0.5 + len(y) - 1
    exact = nbinom.logpmf(y[4], shape, rate / (rate + 1))
    assert log_density_without(fit, 4) == pytest.approx(exact, abs=0.2)


def logistic(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 2.5).expand([2]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=b[0] + b[1] * x), obs=y)


def test_rows_of_a_logistic_regression_have_the_densities_of_quadrature() -> None:
    random = np.random.default_rng(4)
    x = random.normal(size=12)
    y = (random.uniform(size=12) < expit(1.5 * x)).astype(float)
    y[np.argmax(x)] = 0.0
    grid = np.linspace(-9, 9, 361)
    a, b = np.meshgrid(grid, grid)
    sign = 2 * y - 1
    each = -np.logaddexp(0, -sign[:, None, None] * (a + b * x[:, None, None]))  # (rows, ...)
    prior = norm.logpdf(a, 0, 2.5) + norm.logpdf(b, 0, 2.5)
    whole = prior + each.sum(0)
    exact = np.array([logsumexp(whole) - logsumexp(whole - own) for own in each])
    fit = er.fit(logistic, {"x": torch.tensor(x), "y": torch.tensor(y)}, seed=1)
    found = rows_left_out(fit.posterior)
    assert found is not None
    good = ~high_k(found)
    assert good.sum() >= 11
    assert found.elpd_i.to_numpy()[good] == pytest.approx(exact[good], abs=0.06)
    for row in (int(np.argmax(x)), 0):
        assert log_density_without(fit, row) == pytest.approx(exact[row], abs=0.03)
