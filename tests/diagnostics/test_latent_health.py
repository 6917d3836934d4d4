"""The health of rows' latents: against closed forms, and collapse seen."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import elbowroom as er
from elbowroom.diagnostics.latent_health import mutual_information, own_bound


@pytest.fixture(scope="module")
def digits() -> pd.DataFrame:
    return er.load_dataset("digits").head(300)


def test_mutual_information_of_normals_is_the_closed_form() -> None:
    """Means of variance a² and noise of variance b²: half the log of 1 + a² / b²."""
    torch.manual_seed(0)
    means = 0.8 * torch.randn(500, 1, dtype=torch.float64)
    values = means + 0.6 * torch.randn(10, 500, 1, dtype=torch.float64)
    found = mutual_information(values, means, torch.full_like(means, 0.6))
    exact = 0.5 * math.log(1 + float(means.var()) / 0.36)
    assert abs(found - exact) < 0.05
    nothing = mutual_information(values, torch.zeros_like(means), torch.ones_like(means))
    assert nothing == pytest.approx(0.0, abs=1e-12)


def test_the_latents_of_factor_analysis_carry_what_its_closed_form_says() -> None:
    fit = er.fit("factor_analysis", "iris", seed=1)
    points = fit.model_parameters
    loadings = points["loadings"].tril() / points["noise"]
    covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + loadings.T @ loadings)
    scaled = (fit.problem.arguments["x"] - fit.problem.arguments["centre"]) / fit.problem.arguments[
        "spread"
    ]
    means = (scaled - points["mean"]) @ (loadings / points["noise"]) @ covariance
    variance = covariance.diagonal()
    exact = 0.5 * (means.square() + variance - 1 - variance.log()).mean(0)
    np.testing.assert_allclose(fit.measures["kl_per_latent"], exact, rtol=0.02)
    assert fit.measures["active_units"] == 2
    assert fit.measures["inference_gap"] == pytest.approx(0.0, abs=1e-9)
    assert "amortisation_gap" not in fit.measures  # the guide is no independent Normals


def test_latents_that_carry_nothing_are_named_with_the_remedy(digits: pd.DataFrame) -> None:
    fit = er.fit("vae", digits, seed=1, latent=12, epochs=150, draws=100)
    silent = [k for k, nats in enumerate(fit.measures["kl_per_latent"]) if nats < 0.01]
    assert 0 < len(silent) < 12
    assert 0 < fit.measures["active_units"] <= 12
    said = str(fit.verdict)
    assert f"Posterior collapse: {len(silent)} of 12 latents" in said
    assert "--free-bits 0.1" in said
    freed = er.fit("vae", digits, seed=1, latent=12, epochs=150, draws=100, free_bits=0.3)
    assert "Posterior collapse" not in str(freed.verdict)
    assert min(freed.measures["kl_per_latent"]) > 0.1


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
    below = weighed.elbo[rows.numpy()] - found  # the guide is exact: its ELBO is log p(x)
    assert gap > 0.05
    assert below.mean() == pytest.approx(gap, abs=0.02)
    assert (below > gap - 5 / 400**0.5).all()
