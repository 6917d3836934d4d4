"""The posterior in the ArviZ schema, and what ArviZ itself makes of it."""

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import arviz
import numpy as np
import pytest
import torch
import xarray
from arviz_stats.base import array_stats
from scipy.special import logsumexp
from scipy.stats import halfcauchy, multivariate_normal, norm

import elbowroom as er
from elbowroom.draws import groups
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.result import Fit

GROUPS = {
    "posterior",
    "unconstrained_posterior",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
}


@pytest.mark.parametrize("name", ["regression", "mixture", "own"])
def test_every_group_is_there_with_one_chain(name: str, request: pytest.FixtureRequest) -> None:
    fit = request.getfixturevalue(name)
    other = "raw_posterior" if fit.origin == "corrected" else "corrected_posterior"
    assert set(fit.posterior.children) == GROUPS | {other}
    assert fit.posterior.attrs["draws"] == fit.origin
    for group in GROUPS - {"observed_data", "constant_data"}:
        assert fit.posterior[group].sizes["chain"] == 1
    draws = fit.diagnostics["draws"]
    for variable in ("log_p", "log_q"):
        assert fit.posterior["sample_stats"][variable].shape == (1, draws)


def test_dims_carry_the_names_of_columns_and_plates(mixture: Fit, own: Fit) -> None:
    means = mixture.posterior["posterior"]["means"]
    assert means.dims == ("chain", "draw", "component", "column")
    assert means.coords["column"].values.tolist()[0] == "sepal_length"
    assert own.posterior["posterior"]["offset"].dims == ("chain", "draw", "school")
    assert own.posterior["log_likelihood"]["effect"].dims == ("chain", "draw", "school")


def test_internal_sites_are_not_reported(regression: Fit) -> None:
    assert list(regression.posterior["posterior"].data_vars) == [
        "intercept",
        "coefficients",
        "sigma",
    ]


def test_pointwise_log_likelihood_is_in_the_units_of_the_data(
    regression: Fit, mixture: Fit
) -> None:
    table = er.load_dataset("diabetes")
    posterior = regression.posterior["posterior"].isel(chain=0, draw=0)
    mean = (
        float(posterior["intercept"])
        + table[["bmi", "bp"]].to_numpy() @ posterior["coefficients"].to_numpy()
    )
    expected = norm(mean, float(posterior["sigma"])).logpdf(table["progression"])
    found = regression.posterior["log_likelihood"]["progression"].isel(chain=0, draw=0)
    np.testing.assert_allclose(found, expected, rtol=1e-9)

    flowers = er.load_dataset("iris").iloc[:, :4].to_numpy()
    draw = mixture.posterior["posterior"].isel(chain=0, draw=3)
    parts = [
        np.log(float(draw["weights"][k]))
        + multivariate_normal(draw["means"][k], draw["covariances"][k]).logpdf(flowers)
        for k in range(3)
    ]
    found = mixture.posterior["log_likelihood"]["x"].isel(chain=0, draw=3)
    np.testing.assert_allclose(found, logsumexp(parts, axis=0), rtol=1e-8)


def test_predictive_draws_have_the_moments_of_the_posterior(regression: Fit) -> None:
    """The observed sites are drawn anew; the latent ones are not."""
    posterior = regression.posterior["posterior"]
    row = er.load_dataset("diabetes")[["bmi", "bp"]].to_numpy()[0]
    mean = posterior["intercept"].values[0] + posterior["coefficients"].values[0] @ row
    variance = mean.var() + np.mean(posterior["sigma"].values[0] ** 2)
    drawn = regression.posterior["posterior_predictive"]["progression"].values[0, :, 0]
    error = np.sqrt(variance / len(drawn))
    assert abs(drawn.mean() - mean.mean()) < 4 * error
    assert abs(drawn.var() / variance - 1) < 4 * np.sqrt(2 / len(drawn))


def test_unconstrained_values_are_those_of_the_posterior(own: Fit) -> None:
    spread = own.posterior["posterior"]["spread"].values
    log_spread = own.posterior["unconstrained_posterior"]["spread"].values
    np.testing.assert_allclose(np.exp(log_spread), spread, rtol=1e-12)


@pytest.mark.parametrize("name", ["regression", "mixture", "own"])
def test_arviz_opens_the_file_and_works_on_it(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fit = request.getfixturevalue(name)
    fit.save(tmp_path / "run")
    for opened in (arviz.from_netcdf(tmp_path / "run" / "posterior.nc"), fit.to_arviz()):
        assert len(arviz.summary(opened, kind="stats")) == len(fit.summary())
        plot = vars(arviz).get("plot_posterior") or arviz.plot_dist  # of ArviZ 1.x
        plot(opened, var_names=[next(iter(opened.posterior.data_vars))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rows with a high Pareto k
        loo = arviz.loo(fit.to_arviz())
    # ArviZ smooths fewer weights, since it takes the draws to be a chain's.
    elpd = float(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo)
    # The others stopped after a few steps: their draws count by log p - log q as well.
    far = abs(elpd - fit.diagnostics["elpd_loo"])
    assert far < 0.2 if name == "regression" else far > 1


def _warns(name: str) -> Any:
    warnings.warn(f"{name} is the tree", FutureWarning, stacklevel=2)
    return xarray.DataTree


@pytest.mark.parametrize("names", [{}, {"InferenceData": xarray.DataTree}, {"__getattr__": _warns}])
def test_an_arviz_of_trees_is_given_the_tree(
    names: dict[str, Any], regression: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ArviZ 1.x: with no InferenceData, with another name for the tree, with one that warns."""
    monkeypatch.setitem(sys.modules, "arviz", ModuleType("arviz"))
    vars(sys.modules["arviz"]).update(names)
    assert regression.to_arviz() is regression.posterior


def test_large_local_latents_are_left_out_with_a_line(autoencoder: Fit) -> None:
    digits = er.load_dataset("digits").head(650)  # a million numbers are too many
    options: dict[str, Any] = {"epochs": 1, "hidden": (5,), "latent": 16, "draws": 100, "seed": 1}
    fit = er.fit("vae", digits, **options)
    assert not fit.posterior["posterior"].data_vars
    assert any("'z'" in note and "--keep-local" in note for note in fit.notes)
    assert fit.summary().empty
    kept = er.fit("vae", digits.head(100), keep_local=True, **options)
    assert kept.posterior["posterior"]["z"].dims == ("chain", "draw", "rows", "latent")
    # Small ones need no line: they are kept.
    assert "z" in autoencoder.posterior["posterior"]


def test_what_was_observed_has_the_names_of_the_users_columns(
    regression: Fit, mixture: Fit, own: Fit
) -> None:
    table = er.load_dataset("diabetes")
    for group in ("observed_data", "posterior_predictive", "prior_predictive", "log_likelihood"):
        assert list(regression.posterior[group].data_vars) == ["progression"]
        assert list(own.posterior[group].data_vars) == ["effect"]
    constants = regression.posterior["constant_data"]
    for name in ("bmi", "bp"):
        assert constants[name].dims == ("rows",)
        np.testing.assert_array_equal(constants[name], table[name])
    flowers = er.load_dataset("iris").iloc[:, :4]
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        assert list(mixture.posterior[group].data_vars) == list(flowers.columns)
    np.testing.assert_array_equal(
        mixture.posterior["observed_data"]["petal_width"], flowers["petal_width"]
    )
    # A row of several columns has one log likelihood; a row of one column has the column's.
    assert list(mixture.posterior["log_likelihood"].data_vars) == ["x"]
    options: dict[str, Any] = {"components": 2, "guide": "laplace", "draws": 100, "restarts": 2}
    one = er.fit("gaussian_mixture", flowers[["petal_width"]], seed=1, **options).posterior
    for group in ("observed_data", "posterior_predictive", "log_likelihood"):
        assert one[group]["petal_width"].dims[-1:] == ("rows",)


@pytest.mark.parametrize("column", ["rows", "draw", "chain", "predictor", "sigma", "response"])
def test_columns_with_the_names_of_dims_and_sites_are_kept_apart(column: str) -> None:
    table = er.load_dataset("diabetes").head(30)[["bmi", "bp", "progression"]]
    table = table.rename(columns={"bmi": column})
    options: dict[str, Any] = {"response": "progression", "guide": "laplace", "draws": 100}
    for response in ("progression", column):
        fit = er.fit("bayesian_regression", table, seed=1, **{**options, "response": response})
        group = fit.posterior["observed_data" if response == column else "constant_data"]
        found = group.get(f"{column}_column", group.get(column))
        assert found is not None
        np.testing.assert_array_equal(found, table[column])


def test_log_priors_are_those_of_the_model(own: Fit, mixture: Fit) -> None:
    posterior, prior = own.posterior["posterior"], own.posterior["log_prior"]
    expected = {
        "mean": norm(0, 5).logpdf(posterior["mean"]),
        "spread": halfcauchy(scale=5).logpdf(posterior["spread"]),
        "offset": norm(0, 1).logpdf(posterior["offset"]),
    }
    assert set(prior.data_vars) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(prior[name], values, rtol=1e-10)
    assert prior["offset"].dims == ("chain", "draw", "school")
    # All of the density: what is left is the likelihood.
    weights = mixture.posterior["log_prior"]["weights"]
    np.testing.assert_allclose(weights, np.log(2), rtol=1e-12)  # Dirichlet(1, 1, 1)


def test_the_chain_of_resampled_draws_is_worth_what_its_weights_are() -> None:
    """ArviZ's effective draws are those of a mean of which each draw counts as often as taken."""
    random = np.random.default_rng(3)
    found = []
    for seed in range(20):
        values = random.standard_normal(2000)
        log_weights = 1.2 * values - 0.72  # Kish's share is exp(-1.44)
        weighted = WeightedDraws({"z": torch.as_tensor(values)}, log_weights, np.zeros(2000))
        drawn = weighted.resample(1000, np.random.default_rng(seed)).sites["z"].numpy()
        taken, times = np.unique(drawn, return_counts=True)
        variance = np.square(times * (taken - drawn.mean())).sum() / 1000**2
        wanted = drawn.var() / variance
        assert wanted < 500  # not the 1,000 that there are
        found.append(float(array_stats.ess(drawn[None], method="mean")) / wanted)
    assert abs(np.log(np.median(found))) < 0.15


def test_a_check_takes_draws_from_the_whole_chain(
    own: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were taken several times follow one another."""
    taken: list[Any] = []

    def predict(function: Any, arguments: Any, sites: Any, *others: Any) -> dict[str, Any]:
        taken.append(sites["mean"])
        return {}

    monkeypatch.setattr(groups, "predict_sites", predict)
    sites = {
        name: each[:1].expand(1000, *each.shape[1:]) for name, each in own.global_sites().items()
    }
    sites["mean"] = torch.arange(1000.0)
    groups.replicated(own.problem, sites)
    assert taken[0].tolist() == list(range(0, 1000, 3))


def test_large_latents_are_kept_thinned_where_the_posterior_has_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exact factor analysis: its file has a posterior group that ArviZ reads."""
    monkeypatch.setattr(groups, "LARGEST_GROUP", 5 * 40_000)  # of 150 rows, 2 latents, 400 draws
    fit = er.fit("factor_analysis", "iris", guide="exact", seed=1, draws=400)
    z = fit.posterior["posterior"]["z"]
    assert z.sizes["draw"] == 134  # one in 3
    assert not any("'z'" in note for note in fit.notes)


def test_an_improper_prior_leaves_the_prior_groups_out_and_says_so() -> None:
    import pyro
    import pyro.distributions as dist

    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    data = {"y": torch.linspace(-1, 1, 20)}
    fit = er.fit(model, data, guide="laplace", seed=1)
    assert "prior" not in fit.posterior.children
    assert any("prior" in note for note in fit.notes)
    mean = fit.posterior["posterior"]["mean"].values
    assert abs(mean.mean()) < 4 * 20**-0.5 / len(mean[0]) ** 0.5
    assert mean.std() == pytest.approx(20**-0.5, rel=0.1)
