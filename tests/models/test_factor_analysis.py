"""Factor analysis and probabilistic PCA: the maximum likelihood and the latents' posterior."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import FactorAnalysis

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.report.terminal import show_run
from elbowroom.run.folder import load


def scaled(table: pd.DataFrame) -> np.ndarray:
    x = table.to_numpy(float)
    return (x - x.mean(0)) / x.std(0, ddof=1)


def principal() -> tuple[np.ndarray, np.ndarray, float]:
    """Eigenvalues and vectors of iris's correlations, and the noise variance of two components."""
    x = scaled(er.read_table("iris").drop(columns="species"))
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    return values[::-1], vectors[:, ::-1], float(values[:2].mean())


@pytest.mark.parametrize("guide", ["auto", pytest.param("linear", marks=pytest.mark.slow)])
def test_probabilistic_pca_is_its_closed_form(guide: str) -> None:
    """Tipping and Bishop, 1999: the loadings, the noise, and every sd of the latents to 1 %."""
    values, vectors, noise = principal()
    fit = er.fit("factor_analysis", "iris", guide, seed=1)
    assert fit.guide.name == ("exact" if guide == "auto" else "linear")
    assert fit.trained.status == "converged"
    assert fit.verdict.level == "trusted"
    found = fit.point_parameters
    assert found["noise"] == pytest.approx(noise**0.5, rel=0.01)
    loadings = np.tril(found["loadings"])
    expected = (vectors[:, :2] * (values[:2] - noise)) @ vectors[:, :2].T
    np.testing.assert_allclose(loadings @ loadings.T, expected, atol=0.02)
    draws = fit.draw(4000).sites["z"].numpy()  # (draws, rows, latent)
    deviations = draws - draws.mean(0)
    covariance = np.einsum("dri,drj->ij", deviations, deviations) / deviations[..., 0].size
    sds = np.sort(np.linalg.eigvalsh(covariance) ** 0.5)
    np.testing.assert_allclose(sds, np.sort((noise / values[:2]) ** 0.5), rtol=0.01)


def test_the_elbo_of_the_exact_guide_is_the_likelihood_at_every_step() -> None:
    """It has no noise, and never falls at a small rate."""
    fit = er.fit(
        "factor_analysis", "iris", "exact", seed=1, steps=300, learning_rate=1e-3,
        schedule="constant",
    )  # fmt: skip
    assert (np.diff(fit.elbo_history) > 0).all()
    x = er.read_table("iris").drop(columns="species").to_numpy(float)
    found = fit.point_parameters
    loadings = np.tril(found["loadings"])
    covariance = loadings @ loadings.T + found["noise"] ** 2 * np.eye(4)
    z = scaled(pd.DataFrame(x)) - found["mean"]
    _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
    likelihood = -0.5 * (log_determinant + (z @ np.linalg.inv(covariance) * z).sum(1)).sum()
    likelihood -= len(x) * np.log(x.std(0, ddof=1)).sum()
    assert fit.diagnostics["elbo"] == pytest.approx(likelihood, rel=1e-9)


def test_factor_analysis_finds_scikit_learns_likelihood() -> None:
    random = np.random.default_rng(1)
    z, loadings = random.normal(size=(400, 2)), random.normal(size=(2, 7))
    x = z @ loadings + random.normal(size=(400, 7)) * random.uniform(0.3, 1.0, size=7)
    table = pd.DataFrame(x * [1, 10, 1, 1, 0.1, 1, 1], columns=list("abcdefg"))
    fit = er.fit("factor_analysis", table, seed=1, noise="separate")
    assert fit.verdict.level == "trusted"
    reference = FactorAnalysis(2, tol=1e-9, max_iter=20_000).fit(scaled(table))
    units = np.log(table.std()).sum()
    expected = reference.score(scaled(table)) - units
    assert fit.diagnostics["elbo"] / 400 == pytest.approx(expected, abs=1e-3)
    noise = fit.point_parameters["noise"]
    np.testing.assert_allclose(noise, reference.noise_variance_**0.5, rtol=0.03)


def test_point_parameters_are_a_group_of_the_run_and_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = er.fit("factor_analysis", "iris", seed=1)
    fit.save(tmp_path / "run")
    group = er.load(tmp_path / "run").posterior["point_parameters"]
    np.testing.assert_array_equal(group["loadings"], fit.point_parameters["loadings"])
    assert group["loadings"]["column"].values[0] == "sepal_length"
    show_run(load(tmp_path / "run"), 0.9)
    shown = capsys.readouterr().out
    assert "loadings[petal_width, 1]" in shown
    assert "noise" in shown


def test_new_rows_are_described_by_what_was_fitted() -> None:
    """Their predictive mean lies where the latents' posterior puts it."""
    table = er.read_table("iris").drop(columns="species")
    fit = er.fit("factor_analysis", "iris", seed=1)
    found = fit.predict(table.head(5))
    observed = table.head(5)
    for column in table:
        difference = (found[f"{column}.mean"] - observed[column]) / table[column].std()
        assert difference.abs().max() < 0.6


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(OptionError, match="4 columns can determine at most 3 latent dimensions"):
        er.fit("factor_analysis", "iris", latent=4)
    with pytest.raises(OptionError, match="1 latent dimension; give --latent 1 or less, or more"):
        er.fit("factor_analysis", "iris", latent=2, noise="separate")
    two = ["sepal_length", "sepal_width"]
    with pytest.raises(OptionError, match="at most 0 latent dimensions; give more columns"):
        er.fit("factor_analysis", "iris", latent=1, noise="separate", columns=two)
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 1.0]})
    with pytest.raises(DataError, match="'b'"):
        er.fit("factor_analysis", table, latent=1, columns=["a", "b"])
    with pytest.raises(OptionError, match="1 columns can determine at most 0"):
        er.fit("factor_analysis", table, latent=1)
