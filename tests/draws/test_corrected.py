"""What is told of corrected draws: their log densities, and what holds for all rows but a few."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import elbowroom as er
from elbowroom.result import Fit

Y = np.linspace(-1.0, 1.5, 8)
PENALTY = -3.25


def latent_rows(y: Tensor, batch_size: int | None = None) -> None:
    """Each row with a latent of its own, and a term that belongs to no row."""
    pyro.factor("penalty", torch.tensor(PENALTY, dtype=y.dtype))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=y.dtype), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=batch)


def near_posterior(y: Tensor, batch_size: int | None = None) -> None:
    """The posterior, a little too wide."""
    slope = pyro.param("slope", torch.tensor(0.5, dtype=y.dtype))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("z", dist.Normal(slope * batch, 0.8))


def one_mean(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=y.dtype), 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def draws_of(fit: Fit, site: str, group: str = "posterior") -> np.ndarray:
    """The draws of a site, (draws, ...)."""
    return fit.posterior[group][site].to_numpy()[0]


@pytest.fixture(scope="module")
def by_row() -> Fit:
    options: dict[str, Any] = {"steps": 5, "learning_rate": 1e-6, "draws": 300, "seed": 1}
    return er.fit(latent_rows, {"y": torch.tensor(Y)}, near_posterior, **options)


def test_corrected_draws_of_rows_have_all_terms_of_their_log_density(by_row: Fit) -> None:
    """The prior's, the data's and those of no row."""
    assert by_row.posterior.attrs["draws"] == "corrected"
    z, own = draws_of(by_row, "z"), by_row.posterior["sample_stats"]
    log_p = (stats.norm.logpdf(z) + stats.norm.logpdf(Y, z)).sum(1) + PENALTY
    np.testing.assert_allclose(own["log_p"].to_numpy()[0], log_p, rtol=1e-6)
    log_q = stats.norm.logpdf(z, 0.5 * Y, 0.8).sum(1)
    np.testing.assert_allclose(own["log_q"].to_numpy()[0], log_q, rtol=1e-4, atol=1e-4)


def test_the_log_evidence_of_rows_has_the_term_of_no_row(by_row: Fit) -> None:
    exact = stats.norm.logpdf(Y, 0, 2**0.5).sum() + PENALTY
    found, error = by_row.diagnostics["log_evidence"], by_row.diagnostics["log_evidence_se"]
    assert error < 0.1
    assert found == pytest.approx(exact, abs=5 * error)


@pytest.mark.parametrize("engine", ["svi", "fixed_draws"])
def test_corrected_draws_have_all_terms_of_their_log_density(engine: str) -> None:
    fit = er.fit(one_mean, {"y": torch.tensor(Y)}, "full_rank", engine=engine, seed=1)
    assert fit.posterior.attrs["draws"] == "corrected"
    mean, own = draws_of(fit, "mean"), fit.posterior["sample_stats"]
    log_p = stats.norm.logpdf(mean, 0, 2) + stats.norm.logpdf(Y, mean[:, None]).sum(1)
    np.testing.assert_allclose(own["log_p"].to_numpy()[0], log_p, rtol=1e-6)


@pytest.mark.parametrize(("rows", "few"), [(40, 2), (59, 2)])
def test_a_few_rows_are_a_twentieth_at_most(rows: int, few: int) -> None:
    """So many have a larger k-hat, and fewer effective draws, than is told of the fit."""
    y = torch.linspace(-3.0, 3.0, rows, dtype=torch.float64)
    options: dict[str, Any] = {"steps": 5, "learning_rate": 1e-6, "draws": 100, "seed": 1}
    fit = er.fit(latent_rows, {"y": y}, near_posterior, **options)
    # The same draws as the fit's.
    scored = fit.score(draws=fit.diagnostics["weighted_draws"], seed=fit.seed + 1)
    told = fit.diagnostics["corrected_k_hat"]
    assert np.isclose(scored["k_hat"], told, rtol=1e-9).any()
    assert (scored["k_hat"] > told + 1e-9).sum() == few
