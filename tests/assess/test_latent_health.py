"""The health of rows' latents: against closed forms, and collapse seen."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import elbowroom as er
from elbowroom.assess.latent_health import _active, mutual_information, own_bound


@pytest.fixture(scope="module")
def digits() -> pd.DataFrame:
    return er.load_dataset("digits").head(300)


def test_mutual_information_of_normals_lies_between_its_bounds() -> None:
    """Posterior means of variance a² about noise of variance b²: half the log of 1 + a² / b²."""
    random = np.random.default_rng(0)
    means, owners = 0.8 * random.standard_normal(1000), np.arange(2000) % 1000
    values = means[owners] + 0.6 * random.standard_normal(2000)
    log_q = -0.5 * np.square((values[:, None] - means) / 0.6)  # constants cancel
    lower, error, upper = mutual_information(log_q, owners)
    exact = 0.5 * math.log(1 + 0.64 / 0.36)
    assert lower < upper < lower + 0.02
    assert lower - 4 * error < exact < upper + 4 * error
    lower, error, upper = mutual_information(np.zeros((20, 10)), np.arange(20) % 10)
    assert (lower, error, upper) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def factor_table(rows: int, noise: float) -> pd.DataFrame:
    """Two latents that each of five columns has a part of: the posterior of a row is correlated."""
    random = np.random.default_rng(1)
    loadings = np.array([[1.0, 0.0], [0.8, 0.8], [0.8, 0.8], [0.7, 0.9], [0.9, 0.7]])
    x = random.standard_normal((rows, 2)) @ loadings.T + noise * random.standard_normal((rows, 5))
    return pd.DataFrame(x, columns=list("abcde"))


def closed_form(fit: er.Fit) -> tuple[np.ndarray, np.ndarray]:
    """Of a fitted factor analysis, the posterior means of its rows, and the covariance of each."""
    points, given = fit.model_parameters, fit.problem.arguments
    noise = points["noise"].expand(len(given["centre"]))
    loadings = points["loadings"].tril() / noise.unsqueeze(-1)
    latents = loadings.shape[1]
    covariance = torch.linalg.inv(torch.eye(latents).double() + loadings.T @ loadings)
    scaled = (given["x"] - given["centre"]) / given["spread"]
    means = ((scaled - points["mean"]) / noise) @ loadings @ covariance
    return means.numpy(), covariance.numpy()


def test_the_latents_of_factor_analysis_carry_what_its_closed_form_says() -> None:
    """I(x; z) is half of minus the log determinant of a row's covariance, if the model is right."""
    fit = er.fit("factor_analysis", factor_table(1000, 0.5), seed=1, guide="em", draws=500)
    means, covariance = closed_form(fit)
    variances = np.diag(covariance)
    assert abs(covariance[0, 1]) / np.sqrt(variances.prod()) > 0.3
    apart = 0.5 * (np.square(means) + variances - 1 - np.log(variances)).mean(0)
    log_determinant = np.linalg.slogdet(covariance)[1]
    together = 0.5 * (np.square(means).sum(1).mean() + variances.sum() - 2 - log_determinant)
    assert together - apart.sum() > 0.05  # what correlations add
    measures = fit.measures
    np.testing.assert_allclose(measures["kl_per_latent"], apart, rtol=0.02)
    assert measures["kl_per_row"] == pytest.approx(together, abs=0.005)
    error = measures["mutual_information_se"]
    told, lower = -0.5 * log_determinant, measures["mutual_information"]
    upper = measures["mutual_information_upper"]
    assert lower - 4 * error < told < upper + 4 * error
    assert 0 < upper - lower < 0.05
    assert error < 0.05
    assert measures["active_units"] == 2
    assert measures["inference_gap"] == pytest.approx(0.0, abs=1e-9)
    assert "amortisation_gap" not in measures  # the guide is no independent Normals
    assert f"is {measures['kl_per_row']:.3g} nats per row" in str(fit.verdict)


def pair(x: torch.Tensor, batch_size: int | None = None) -> None:
    """A model of the user's whose rows have two latents at two sites, of one sum."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        one = pyro.sample("one", dist.Normal(torch.zeros(()), 1.0))
        two = pyro.sample("two", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(one + two, 0.3), obs=pyro.subsample(x, event_dim=0))


def pair_guide(x: torch.Tensor, batch_size: int | None = None) -> None:
    """Its posterior: the sum has variance 2, and the second is Normal given the first."""
    free = pyro.param("free", torch.zeros(()))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen = pyro.subsample(x, event_dim=0)
        first, second = 1 / 2.09, 1 / 1.09
        one = pyro.sample("one", dist.Normal(seen * first + 0 * free, (1 - first) ** 0.5))
        pyro.sample("two", dist.Normal((seen - one) * second, (1 - second) ** 0.5))


def test_latents_at_two_sites_are_taken_together() -> None:
    random = np.random.default_rng(2)
    x = torch.tensor(2.09**0.5 * random.standard_normal(500))
    fit = er.fit(pair, {"x": x}, guide=pair_guide, seed=1, steps=10, draws=500)
    told = 0.5 * math.log(2.09 / 0.09)
    measures = fit.measures
    error = measures["mutual_information_se"]
    assert measures["mutual_information"] - 4 * error < told
    assert told < measures["mutual_information_upper"] + 4 * error
    assert measures["mutual_information_upper"] - measures["mutual_information"] < 0.1
    assert len(measures["kl_per_latent"]) == 2
    # The means are each x / 2.09: this sample's are longer or shorter than those of all rows.
    longer = float((x.square() / 2.09**2).mean()) - 1 / 2.09
    assert measures["kl_per_row"] == pytest.approx(told + longer, abs=0.01)


@pytest.mark.parametrize("draws", [100, 4000])
def test_a_latent_is_active_if_its_posterior_mean_varies(draws: int) -> None:
    """The noise of means over few draws is no variation: by itself it has the limit's variance."""
    random = np.random.default_rng(3)
    rows, deviations = 2000, np.array([0.0, 0.07, 0.13, 1.0])
    spreads = np.array([1.0, 1.0, 0.5, 0.1])
    centres = deviations * random.standard_normal((rows, 4))
    values = torch.tensor(centres + spreads * random.standard_normal((draws, rows, 4)))
    found = _active(values.mean(0), values.var(0), draws)
    assert found.tolist() == [False, False, True, True]


def columns(x: torch.Tensor, weights: torch.Tensor, batch_size: int | None = None) -> None:
    """Latents each with a column of its own, and noise of variance one."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(weights)), 1.0).to_event(1))
        seen = pyro.subsample(x, event_dim=1)
        pyro.sample("x", dist.Normal(weights * z, 1.0).to_event(1), obs=seen)


def columns_guide(x: torch.Tensor, weights: torch.Tensor, batch_size: int | None = None) -> None:
    """Their posterior."""
    free = pyro.param("free", torch.zeros(()))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        variance = 1 / (1 + weights.square())
        seen = pyro.subsample(x, event_dim=1)
        mean = variance * weights * seen + 0 * free
        pyro.sample("z", dist.Normal(mean, variance.sqrt()).to_event(1))


def fit_columns(rows: int, *weights: float) -> er.Fit:
    scales = np.sqrt(1 + np.square(weights))
    x = np.random.default_rng(3).standard_normal((rows, len(weights))) * scales
    data = {"x": torch.tensor(x), "weights": torch.tensor(weights, dtype=torch.float64)}
    return er.fit(columns, data, guide=columns_guide, seed=1, steps=10, draws=200)


def test_a_latent_is_active_or_carries_nothing_and_never_both() -> None:
    """The second latent's posterior mean varies by 0.017, and its divergence is 0.0085 nats."""
    fit = fit_columns(2000, 0.0, 0.131, 1.0)
    assert fit.measures["active_units"] == 2
    assert fit.measures["kl_per_latent"][1] < 0.01
    said = " ".join(fit.verdict.reasons)
    assert "2 of 3 latents are active" in said
    assert "1 of 3 latents carry no information (0, counted from 0)" in said


def test_what_so_few_rows_cannot_show_is_said() -> None:
    """Nine nats and 500 rows, which show log 500 of them: the bounds hold, the limit is said."""
    fit = fit_columns(500, 20.0, 20.0, 20.0)
    told, limit, measures = 1.5 * math.log(401), math.log(500), fit.measures
    assert measures["mutual_information_limit"] == pytest.approx(limit)
    assert measures["mutual_information"] <= limit < told
    # With so many nats, the divergence from the prior is the closer of the upper bounds.
    assert measures["mutual_information_upper"] == measures["kl_per_row"]
    # This sample's rows are longer or shorter than those of the model.
    assert measures["kl_per_row"] == pytest.approx(told, abs=4 * (0.5 * 3 / 500) ** 0.5)
    assert "(the number of rows compared cannot show more than 6.21)" in str(fit.verdict)


def test_latents_that_carry_nothing_are_named_with_the_remedy(digits: pd.DataFrame) -> None:
    fit = er.fit("vae", digits, seed=1, latent=12, epochs=150, draws=100)
    silent = 12 - fit.measures["active_units"]
    assert 0 < silent < 12
    said = str(fit.verdict)
    assert f"Posterior collapse: {silent} of 12 latents" in said
    assert "--free-bits 0.1" in said
    freed = er.fit("vae", digits, seed=1, latent=12, epochs=150, draws=100, free_bits=0.3)
    assert "Posterior collapse" not in str(freed.verdict)
    assert min(freed.measures["kl_per_latent"]) > 0.1


@pytest.mark.slow
def test_warm_up_lets_the_divergence_come_in(digits: pd.DataFrame) -> None:
    options: dict[str, Any] = {"seed": 1, "latent": 4, "steps": 100, "draws": 100}
    warm = er.fit("vae", digits, kl_warm_up=100_000, **options)
    cold = er.fit("vae", digits, **options)
    assert warm.trained.eager is None
    assert sum(warm.measures["kl_per_latent"]) > 1.3 * sum(cold.measures["kl_per_latent"])
    # What is reported of the fit is the ELBO itself.
    assert warm.diagnostics["elbo"] < warm.diagnostics["log_evidence"]


def test_normals_of_rows_own_reach_the_best_bound_there_is() -> None:
    """With a Normal posterior of covariance S, (log |S| + sum of log (S⁻¹)_jj) / 2 below log p."""
    fit = er.fit("factor_analysis", "iris", seed=1)
    weighed = fit.weigh_rows(None, 200, 0, ["z"])
    points = fit.model_parameters
    loadings = points["loadings"].tril() / points["noise"]
    precision = torch.eye(2, dtype=torch.float64) + loadings.T @ loadings
    gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    plate, rows = fit.problem.space.subsampled, torch.arange(0, 150, 3)
    assert plate is not None
    values = weighed.sites["z"]
    with fit.active(0):
        found = own_bound(
            fit.problem.function, fit.problem.arguments, plate, "z",
            values.mean(0)[rows] + 0.3, 0.7 * values.std(0)[rows], rows,
        )  # fmt: skip
    below = weighed.row_elbo[rows.numpy()] - found  # the guide is exact: its ELBO is log p(x)
    assert gap > 0.05
    assert below.mean() == pytest.approx(gap, abs=0.02)
    assert (below > gap - 5 / 400**0.5).all()
