"""What fits are for: each verb against closed forms, its files, and its refusals."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import elbowroom as er
from elbowroom.cli import app
from elbowroom.commands import COMMANDS
from elbowroom.errors import DataError, ElbowroomError, GuideError, ModelError, OptionError
from elbowroom.models import get_model, model_summaries
from elbowroom.options import declared
from elbowroom.result import Fit

VERBS = (
    "generate", "score", "embed", "reconstruct", "interpolate", "manifold", "impute", "effects",
)  # fmt: skip


@pytest.fixture(scope="module")
def factors() -> Fit:
    return er.fit("factor_analysis", "iris", seed=1)


@pytest.fixture(scope="module")
def encoded() -> Fit:
    return er.fit("factor_analysis", "iris", guide="linear", seed=1)


def changed(fit: Fit, change: Callable[[dict[str, torch.Tensor]], object]) -> Fit:
    """The fit with other values of its parameters; its own stay."""
    values = {name: value.clone() for name, value in fit.parameters.values.items()}
    change(values)
    parameters = replace(fit.parameters, values=values)
    return replace(fit, fitted=replace(fit.fitted, parameters=parameters))


@pytest.fixture(scope="module")
def mixture() -> Fit:
    return er.fit("gaussian_mixture", "iris", seed=1, guide="linear_response", fixed_draws=64)


@pytest.fixture(scope="module")
def autoencoder() -> Fit:
    digits = er.load_dataset("digits").head(300)
    return er.fit("vae", digits, seed=1, epochs=60, draws=100)


def test_every_verb_has_the_same_seed_by_default_in_python_and_on_the_command_line() -> None:
    methods = {
        name: inspect.signature(method).parameters["seed"].default
        for name, method in inspect.getmembers(Fit, inspect.isfunction)
        if "seed" in inspect.signature(method).parameters and not name.startswith("_")
    }
    required = {"active", "guide_of_rows", "moments_of_rows", "weigh_rows"}  # which are no verbs
    assert {name for name, seed in methods.items() if seed is inspect.Parameter.empty} == required
    verbs = set(methods) - required
    assert {"draw", "sample", "predict", "score", "elbo"} < verbs
    assert {methods[verb] for verb in verbs} == {0}
    commands = {
        name: option.default
        for name in {*VERBS, "predict"} & set(COMMANDS)
        for option in declared(COMMANDS[name])
        if option.name == "seed"
    }
    assert {"predict", "score", "embed"} < set(commands)
    assert set(commands.values()) == {0}


def row_normal(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a row of factor analysis, from the fitted points."""
    arguments, points = fit.problem.arguments, fit.model_parameters
    spread = arguments["spread"].numpy()
    loadings = spread[:, None] * np.tril(points["loadings"].numpy())
    noise = np.broadcast_to(points["noise"].numpy(), spread.shape)
    mean = arguments["centre"].numpy() + spread * points["mean"].numpy()
    return mean, loadings @ loadings.T + np.diag((spread * noise) ** 2)


def test_scores_of_factor_analysis_are_its_normal_densities(factors: Fit, encoded: Fit) -> None:
    x = factors.problem.arguments["x"].numpy()
    mean, covariance = row_normal(factors)
    away = x - mean
    _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
    exact = -0.5 * ((away @ np.linalg.inv(covariance) * away).sum(1) + log_determinant)
    np.testing.assert_allclose(factors.score(draws=100)["log_density"], exact, atol=1e-9)
    scored = encoded.score(draws=2000)
    assert encoded.evidence.weights.rows is not None
    assert encoded.evidence.weights.rows[1] < 0.05
    # The points of the two fits differ by their optimisers' tolerance alone.
    assert abs(float((scored["log_density"] - exact).mean())) < 0.01


@pytest.mark.slow
def test_importance_weights_mend_a_wrong_encoder_row_by_row(encoded: Fit) -> None:
    """With an encoder that is off, the corrected means and sds are still the closed form's."""
    from elbowroom.models.factor_analysis import points, posterior

    off = changed(encoded, lambda values: values["guide.level"].add_(0.15))
    problem = off.problem
    with problem.session(0, off.parameters), torch.no_grad():
        known = points(4, 2, shared=True)
        scaled = (problem.arguments["x"] - problem.arguments["centre"]) / problem.arguments[
            "spread"
        ]
        means, covariance = posterior(scaled, *known)
    found = off.embed(draws=8000)
    sds = covariance.diagonal().sqrt().numpy()
    for j in range(2):
        shift = (found[f"z[{j}].mean"] - means[:, j].numpy()) / sds[j]
        assert np.abs(shift).max() < 6 / np.sqrt(8000 / 4)
        assert np.abs(np.log(found[f"z[{j}].sd"] / sds[j])).max() < 6 / np.sqrt(2 * 8000 / 4)


def test_the_verdict_says_no_to_an_encoder_that_misses_its_rows(encoded: Fit) -> None:
    digits = er.load_dataset("digits").head(200)
    begun = er.fit("vae", digits, seed=1, steps=5, draws=100)
    assert not begun.verdict.trusted
    assert encoded.verdict.trusted
    # A guide of half the posterior's width, by its own parameters.
    narrow = changed(encoded, lambda values: values["guide.factor"].fill_diagonal_(-4.0))
    weighed = narrow.weigh_rows(None, 1000, 0, ["z"])
    assert weighed.unreliable > 0.5
    assert not weighed.usable


def test_imputed_cells_of_factor_analysis_have_the_conditional_moments(factors: Fit) -> None:
    rows = er.load_dataset("iris").head(3).copy()
    rows.loc[0, ["sepal_width", "petal_width"]] = np.nan
    rows.loc[2, :] = rows.loc[2, :].where(rows.columns == "species")
    found = factors.impute(rows, draws=4_000)
    mean, covariance = row_normal(factors)
    x = er.load_dataset("iris").iloc[0, :4].to_numpy(dtype=float)
    there, gone = [0, 2], [1, 3]
    cross = covariance[np.ix_(gone, there)] @ np.linalg.inv(covariance[np.ix_(there, there)])
    exact = mean[gone] + cross @ (x[there] - mean[there])
    left = covariance[np.ix_(gone, gone)] - cross @ covariance[np.ix_(there, gone)]
    first = found.cells[found.cells["row"] == 1]
    sds = np.sqrt(np.diag(left))
    assert np.abs(first["mean"] - exact).max() < 5 * sds.max() / np.sqrt(4_000)
    np.testing.assert_allclose(first["sd"], sds, rtol=5 / np.sqrt(2 * 4_000))
    drawn = found.draws[["1.sepal_width", "1.petal_width"]].cov().iloc[0, 1]
    assert drawn == pytest.approx(left[0, 1], abs=5 * sds.prod() / np.sqrt(4_000))
    # A row of which nothing is known is as any row.
    third = found.cells[found.cells["row"] == 3]
    assert np.abs(third["mean"] - mean).max() < 5 * np.sqrt(covariance.diagonal().max() / 4_000)
    assert found.completed.loc[[1]].equals(rows.loc[[1]])
    assert found.acceptance is None


def test_imputed_cells_of_a_mixture_follow_the_components_that_are_left(mixture: Fit) -> None:
    """A cell that is all that tells two groups apart has both modes when it is missing."""
    rows = er.load_dataset("iris").iloc[[0, 140]].copy().reset_index(drop=True)
    names = ["petal_length", "petal_width"]
    near = mixture.impute(rows.assign(petal_width=np.nan), draws=2000)
    first, second = near.cells["mean"].tolist()
    assert first < 0.5 < 1.2 < second  # the cells tell
    blind = rows.copy()
    blind[["sepal_length", "sepal_width", *names]] = np.nan
    found = mixture.impute(blind, draws=4000).draws["1.petal_length"]
    x = er.load_dataset("iris")["petal_length"]
    assert abs((found < 2.5).mean() - (x < 2.5).mean()) < 0.06
    assert abs(found.mean() - x.mean()) < 0.2


@pytest.mark.slow
def test_a_chain_finds_what_the_closed_form_does(encoded: Fit) -> None:
    """The chain for autoencoders, on factor analysis with a guide that is not exact."""
    from elbowroom.draws.imputing import from_chains

    fit = encoded
    x = fit.problem.arguments["x"]
    missing = torch.zeros_like(x, dtype=torch.bool)
    missing[:20, 1] = missing[10:20, 2] = True
    given = {**fit.problem.arguments, "x": torch.where(missing, x.mean(0), x)}
    with fit.active(0) as guide:
        drawn, taken = from_chains(
            fit.problem.function, guide, given, "x", missing, fit.problem.space, 800
        )
    rows = er.load_dataset("iris").head(20).copy()
    rows.iloc[:20, 1] = np.nan
    rows.iloc[10:20, 2] = np.nan
    exact = fit.impute(rows, draws=4000).cells
    for row, column, mean, sd in exact[["row", "column", "mean", "sd"]].to_numpy().tolist():
        own = drawn[:, row - 1, list(rows.columns).index(column)]
        batches = own.reshape(20, -1).mean(1)
        error = batches.std(ddof=1) / np.sqrt(20)
        assert abs(own.mean() - mean) < 5 * np.hypot(error, sd / 60)
    assert 0.1 < taken < 1
    assert (drawn[:, 25] == x[25].numpy()).all()


def test_generated_rows_have_the_moments_of_the_model(factors: Fit, mixture: Fit) -> None:
    mean, covariance = row_normal(factors)
    rows = factors.generate(20_000).to_numpy()
    error = np.sqrt(covariance.diagonal() / 20_000)
    assert (np.abs(rows.mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(np.cov(rows.T), covariance, atol=0.1 * covariance.max())
    made = mixture.generate(600)
    iris = er.load_dataset("iris")
    for name in made.columns:
        assert abs(made[name].mean() - iris[name].mean()) < 6 * iris[name].std() / np.sqrt(150)
        assert abs(np.log(made[name].std() / iris[name].std())) < 0.2
    wide = mixture.generate(300, prior=True)
    assert wide["petal_length"].std() > made["petal_length"].std()


def test_rows_of_an_autoencoder(autoencoder: Fit) -> None:
    new = er.load_dataset("digits").iloc[300:320]
    back = autoencoder.reconstruct(new)
    pixels = list(back.columns)
    given = new[pixels].to_numpy()
    error = np.abs(back.to_numpy() - given).mean()
    assert error < 0.95 * np.abs(given - given.mean(0)).mean()
    line = autoencoder.interpolate(1, 5, 7, new)
    ends = autoencoder.embed(new, draws=4000).iloc[[0, 4]][["z[0].mean", "z[1].mean"]].to_numpy()
    assert np.abs(line[["z[0]", "z[1]"]].to_numpy()[[0, -1]] - ends).max() < 0.5
    steps = np.diff(line[["z[0]", "z[1]"]].to_numpy(), axis=0)
    np.testing.assert_allclose(steps, np.repeat(steps[:1], 6, 0), atol=1e-5)
    grid = autoencoder.manifold(4)
    assert len(grid) == 16
    assert grid["z[0]"].iloc[:4].is_monotonic_increasing
    assert grid[pixels].min().min() >= 0
    assert grid[pixels].max().max() <= 16
    scored = autoencoder.score(new, quantile=0.05)
    upside_down = new.copy()
    upside_down[pixels] = 16 - given
    odd = autoencoder.score(upside_down, quantile=0.05)
    assert odd["flagged"].all()
    assert scored["flagged"].mean() < 0.5
    near = autoencoder.generate(20, new, expected=True)
    np.testing.assert_allclose(near.to_numpy().mean(), back.to_numpy().mean(), rtol=0.1)


@pytest.mark.parametrize("model", list(model_summaries()))
def test_every_model_says_which_verbs_it_has(model: str) -> None:
    assert set(get_model(model).verbs) <= set(VERBS)


def test_a_run_of_another_model_is_refused_with_those_that_have_the_verb(mixture: Fit) -> None:
    with pytest.raises(
        ModelError, match=r"the model 'gaussian_mixture' has no command 'reconstruct'; "
    ):
        mixture.reconstruct()
    regression = er.fit(
        "bayesian_regression", "diabetes", guide="map", seed=1, formula="progression ~ bmi"
    )
    for call in (regression.embed, regression.generate, lambda: regression.impute("diabetes")):
        with pytest.raises(ModelError, match="these models have it"):
            call()


def test_what_verbs_cannot_take_is_said(autoencoder: Fit, factors: Fit) -> None:
    calls: list[tuple[Any, type[ElbowroomError], str]] = [
        (lambda: factors.impute("iris"), DataError, "no cell of these rows is missing"),
        (lambda: factors.impute(pd.DataFrame({"a": [1.0]})), DataError, "4 columns .* missing"),
        (lambda: autoencoder.interpolate(1, 301), OptionError, "--to 301"),
        (lambda: autoencoder.interpolate(1, 2, 1), OptionError, "--steps 1"),
        (lambda: autoencoder.generate(0), OptionError, "--count 0"),
        (lambda: autoencoder.generate(2, "digits", prior=True), OptionError, "leave --prior"),
        (lambda: autoencoder.score(quantile=1.5), OptionError, "--quantile 1.5"),
        (
            lambda: autoencoder.generate(2, given={"digit": 3}),
            OptionError,
            "this model has no known",
        ),
    ]
    for call, kind, said in calls:
        with pytest.raises(kind, match=said):
            call()
    local = er.fit("factor_analysis", "iris", guide="local", seed=1, steps=20, draws=100)
    with pytest.raises(GuideError, match="knows only the fitted rows"):
        local.embed("iris")
    wide = er.fit("vae", er.load_dataset("digits").head(50), seed=1, steps=5, latent=3, draws=100)
    with pytest.raises(ModelError, match="one or two latents, and the model has 3"):
        wide.manifold()


def test_the_command_line_writes_tables_and_pictures(autoencoder: Fit, tmp_path: Path) -> None:
    run = autoencoder.save(tmp_path / "run")
    rows = er.load_dataset("digits").head(20).copy()
    rows["pixel_33"] = rows["pixel_33"].astype(float)
    rows.loc[0, "pixel_33"] = np.nan
    rows.to_parquet(tmp_path / "rows.parquet")
    commands = {
        "generated": ["generate", "-n", "12"],
        "reconstructed": ["reconstruct"],
        "interpolated": ["interpolate", "--from", "1", "--to", "9"],
        "manifold": ["manifold", "--size", "4"],
        "embedded": ["embed", "--draws", "100"],
        "scored": ["score", "--quantile", "0.1", "--draws", "100"],
        "imputed": ["impute", "--data", str(tmp_path / "rows.parquet"), "--draws", "20"],
    }
    tables = {
        "generated": "rows.csv", "reconstructed": "rows.csv", "interpolated": "steps.csv",
        "manifold": "grid.csv", "embedded": "latents.csv", "scored": "scores.csv",
        "imputed": "cells.csv",
    }  # fmt: skip
    for name, (verb, *options) in commands.items():
        result = CliRunner().invoke(app, [verb, str(run), *options])
        assert result.exit_code == 0, result.output
        folder = tmp_path / f"run-{name}"
        assert len(pd.read_csv(folder / tables[name])) > 0
        pictured = name not in ("scored", "imputed")
        assert (folder / "picture.png").is_file() == pictured
        again = CliRunner().invoke(app, [verb, str(run), *options])
        assert isinstance(again.exception, ElbowroomError)  # nothing written is lost
    assert (
        "rows are flagged"
        in CliRunner()
        .invoke(app, ["score", str(run), *commands["scored"][1:], "--overwrite"])
        .output
    )


@pytest.mark.parametrize("covariance_type", ["full", "spherical"])
def test_a_mixture_of_one_component_does_all_that_others_do(
    covariance_type: str, tmp_path: Path
) -> None:
    fit = er.fit("gaussian_mixture", "iris", components=1, covariance_type=covariance_type, seed=1)
    rows = fit.problem.data.head(5)
    assert (fit.predict(rows)["probability[0]"] == 1.0).all()
    assert len(fit.generate(3)) == 3
    assert fit.log_density(rows).shape == (5,)
    assert len(fit.score(rows)) == 5
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run")
    assert again.sample(20, seed=2).equals(fit.sample(20, seed=2))


@pytest.mark.parametrize("model", ["factor_analysis", "gaussian_mixture"])
def test_columns_that_are_the_same_in_every_row_are_left_out_and_told(model: str) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(30, 3)), columns=["a", "b", "c"])
    held = table.assign(rim=0.0, corner=7)
    factors = {"latent": 1, "noise": "shared"}
    options: Any = factors if model == "factor_analysis" else {"components": 1}
    fit = er.fit(model, held, "em", seed=1, **options)
    assert fit.problem.prepared.coords["column"] == ["a", "b", "c"]
    assert "Columns 'rim', 'corner' are the same in every row and were left out." in str(
        fit.verdict
    )
    assert len(fit.score(held.head(2))) == 2
    with pytest.raises(DataError, match="column 'rim' is 0"):
        er.fit(model, held, "em", seed=1, columns=("a", "rim", "b"), **options)
