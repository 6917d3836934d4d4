"""Verbs on rows whose latents stand beside others that all rows share."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import MultivariateNormal

from elbowroom.api import fit as fit_model
from elbowroom.data.bundled import load_dataset
from elbowroom.errors import ModelError
from elbowroom.models.factor_analysis import filled, posterior
from elbowroom.result import Fit

COLUMNS = ["sepal_length", "sepal_width", "petal_length"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return load_dataset("iris")[COLUMNS].iloc[::4].reset_index(drop=True)


@pytest.fixture(scope="module", params=[1, 2])
def fit(request: Any, table: pd.DataFrame) -> Fit:
    return fit_model(
        "factor_analysis", table, engine="coordinate_ascent", priors="conjugate", latent=1,
        seed=request.param, draws=1000,
    )  # fmt: skip


def exact(fit: Fit, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log density, and the latent's mean and sd, of each row: in closed form at each draw."""
    known, sites = fit.problem.arguments, fit.global_sites()
    x = torch.tensor(rows[COLUMNS].to_numpy()) - known["centre"]
    x = x / known["spread"]
    density: list[Tensor] = []
    means: list[Tensor] = []
    squares: list[Tensor] = []
    for s in range(len(sites["mean"])):
        loadings = filled(sites["free_loadings"][s], len(COLUMNS), 1)
        noise = sites["noise_precision"][s].rsqrt().expand(len(COLUMNS))
        covariance = loadings @ loadings.T + torch.diag(noise.square())
        density.append(MultivariateNormal(sites["mean"][s], covariance).log_prob(x))
        mean, variance = posterior(x, sites["mean"][s], loadings, noise)
        means.append(mean[:, 0])
        squares.append(mean[:, 0].square() + variance[0, 0])
    each = torch.stack(density).numpy() - float(known["spread"].log().sum())
    weights = np.exp(each - logsumexp(each, axis=0))
    mean = (weights * torch.stack(means).numpy()).sum(0)
    square = (weights * torch.stack(squares).numpy()).sum(0)
    return logsumexp(each, axis=0) - np.log(len(each)), mean, np.sqrt(square - mean**2)


@pytest.mark.parametrize("new", [False, True])
def test_scores_and_latents_of_rows_are_those_in_closed_form(
    fit: Fit, table: pd.DataFrame, new: bool
) -> None:
    rows = table.iloc[::7] if new else table
    data = rows if new else None
    density, mean, sd = exact(fit, rows)
    score, latents = fit.score(data, draws=2000), fit.embed(data, draws=2000)
    error = score["standard_error"].to_numpy()
    assert error.max() < 0.15
    gap = np.abs(score["log_density"].to_numpy() - density) / error
    assert np.median(gap) < 1.5
    assert gap.max() < 5
    effective = score["effective_sample_size"].to_numpy()
    apart = np.abs(latents["z[0].mean"] - mean) / (sd / np.sqrt(effective))
    assert np.median(apart) < 2
    assert apart.max() < 7
    assert np.abs(np.log(latents["z[0].sd"] / sd)).max() < 0.35
    assert np.corrcoef(latents["z[0].mean"], mean)[0, 1] > 0.99


def test_rows_between_two_are_decoded_at_the_posterior_not_the_prior(
    fit: Fit, table: pd.DataFrame
) -> None:
    """The ends are near the rows, and what a row loads on is averaged over draws."""
    found = fit.interpolate(1, len(table), 3)
    ends = table.iloc[[0, -1]].to_numpy()
    scale = table.to_numpy().std(0)
    assert (np.abs(found[COLUMNS].to_numpy()[[0, 2]] - ends) / scale).max() < 1.5
    known, sites = fit.problem.arguments, fit.global_sites()
    z = torch.tensor(found["z[0]"].to_numpy())[:, None]
    loadings = filled(sites["free_loadings"], len(COLUMNS), 1).mean(0)
    expected = known["centre"] + known["spread"] * (sites["mean"].mean(0) + z @ loadings.T)
    np.testing.assert_allclose(found[COLUMNS], expected, atol=0.1 * scale.max())


def test_every_verb_of_the_model_takes_new_rows(fit: Fit, table: pd.DataFrame) -> None:
    rows = table.head(3)
    for made in (fit.reconstruct(rows), fit.generate(3, rows), fit.generate(3)):
        assert made.columns.tolist() == COLUMNS
        assert np.isfinite(made.to_numpy()).all()
    near = np.abs(fit.reconstruct(rows) - rows) / table.std()
    assert near.to_numpy().max() < 1.5
    assert np.isfinite(fit.predict(rows).to_numpy()).all()
    holes = rows.copy()
    holes.loc[1, COLUMNS[2]] = np.nan
    assert len(fit.impute(holes).cells) == 1
    with pytest.raises(ModelError, match="no command 'manifold'"):
        fit.manifold()
