"""Checks of a run's predictions: exact leave-one-out, each misfit seen, and no cry of wolf."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import expit
from torch import Tensor
from typer.testing import CliRunner

import elbowroom as er
from elbowroom.cli import app
from elbowroom.errors import ModelError, OptionError
from elbowroom.model_check import ModelCheck
from elbowroom.report.model_check import picture_of_check


@dataclass(frozen=True)
class Made:
    """The rows that the fits are of."""

    rows: int = 300
    sets: int = 50
    """Data sets of right models."""


MADE = Made()
X_Z = "y ~ x + z"


def rows(seed: int, count: int = MADE.rows) -> tuple[pd.DataFrame, np.ndarray, Any]:
    """Two predictors and a level, a linear predictor, and the generator of the response."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "x": random.normal(3, 2, count), "z": random.normal(size=count),
            "g": random.choice([*"abc"], count),
        }
    )  # fmt: skip
    return table, (0.3 * (table["x"] - 3) + 0.2 * table["z"]).to_numpy(), random


def censored(t: pd.DataFrame, times: np.ndarray, random: Any) -> pd.DataFrame:
    ends = random.exponential(6, len(t))
    status = np.where(times <= ends, "none", "right")
    return t.assign(y=np.minimum(times, ends), status=status)


Response = Callable[[pd.DataFrame, np.ndarray, Any], Any]
RIGHT: dict[str, tuple[Response, dict[str, Any]]] = {
    "normal": (lambda t, e, r: 2 + e + r.normal(size=len(t)), {}),
    "student_t": (lambda t, e, r: e + r.standard_t(4, len(t)), {"family": "student_t"}),
    "bernoulli": (lambda t, e, r: (r.random(len(t)) < expit(e)) * 1.0, {"family": "bernoulli"}),
    "poisson": (lambda t, e, r: r.poisson(np.exp(1 + e)), {"family": "poisson"}),
    "gamma": (lambda t, e, r: r.gamma(3, np.exp(1 + e) / 3), {"family": "gamma"}),
    "ordinal": (
        lambda t, e, r: np.digitize(e + r.logistic(size=len(t)), [-1, 0.5]), {"family": "ordinal"},
    ),
    "binomial": (
        lambda t, e, r: t.assign(y=r.binomial(8, expit(e))),
        {"family": "binomial", "formula": "p(y, 8) ~ x + z"},
    ),
    "weibull": (
        lambda t, e, r: censored(t, r.weibull(2, len(t)) * np.exp(1 + e), r),
        {"family": "weibull", "formula": "censored(y, status) ~ x + z"},
    ),
    "sigma": (
        lambda t, e, r: e + np.exp(0.2 * t["x"]) * r.normal(size=len(t)),
        {"parameter": {"sigma": "x"}},
    ),
    "quantile": (
        lambda t, e, r: e + r.normal(size=len(t)), {"family": "quantile", "quantile": 0.8},
    ),
    "none": (lambda t, e, r: r.normal(size=len(t)), {}),
    "level alone": (lambda t, e, r: r.normal(size=len(t)), {"formula": "y ~ 1"}),
    "groups": (
        lambda t, e, r: t.assign(
            h=[f"h{k % 100}" for k in range(len(t))],
            y=e + np.resize(2 * r.normal(size=100), len(t)) + r.normal(size=len(t)),
        ),
        {"formula": "y ~ x + z + (1 | h)"},
    ),
    "weights": (
        lambda t, e, r: t.assign(y=e + r.normal(size=len(t)), w=r.uniform(0, 3, len(t))),
        {"weights": "w"},
    ),
}  # fmt: skip
"""Models that are right, by what is in them."""
WRONG: dict[str, tuple[Response, dict[str, Any], str]] = {
    "zeros": (
        lambda t, e, r: r.poisson(np.exp(1 + e)) * (r.random(len(t)) < 0.7), {"family": "poisson"},
        "more zeros than the model draws .*--family zero_inflated_poisson",
    ),
    "overdispersion": (
        lambda t, e, r: r.negative_binomial(1.5, 1.5 / (1.5 + np.exp(1 + e))),
        {"family": "poisson"}, "varies more than the model draws .*--family negative_binomial",
    ),
    "successes": (
        lambda t, e, r: t.assign(y=r.binomial(8, r.beta(2 * expit(e), 2 - 2 * expit(e)))),
        {"family": "binomial", "formula": "p(y, 8) ~ x + z"},
        "varies more than the model draws .*--family beta_binomial",
    ),
    "tails": (
        lambda t, e, r: e + r.standard_t(2, len(t)), {}, "are farther off .*--family student_t",
    ),
    "skewness": (
        lambda t, e, r: e + r.exponential(1.5, len(t)) - 5, {},
        "skewed more to the right .*--family skew_normal",
    ),
    "skewness that grows": (
        lambda t, e, r: e + np.exp(0.25 * (t["x"] - 3)) * (r.exponential(1, len(t)) - 1), {},
        "skewed more to the right",
    ),
    "positive": (
        lambda t, e, r: r.gamma(1.2, np.exp(1 + e) / 1.2), {},
        "is above 0, and 2.% .*--family gamma or lognormal",
    ),
    "spread": (
        lambda t, e, r: e + np.exp(0.3 * (t["x"] - 3)) * r.normal(size=len(t)), {},
        "spread of the residuals depends on 'x'.*--parameter 'sigma ~ x'",
    ),
    "spread of levels": (
        lambda t, e, r: e + np.where(t["g"] == "a", 3, 1) * r.normal(size=len(t)),
        {"formula": "y ~ x + g"}, "spread .*depends on 'g'.*--parameter 'sigma ~ g'",
    ),
    "curve": (
        lambda t, e, r: e + 0.25 * (t["x"] - 3) ** 2 + r.normal(size=len(t)), {},
        r"residuals depend on 'x'.*poly\(x, 2\)",
    ),
    "probabilities": (
        lambda t, e, r: (r.random(len(t)) < expit(0.6 * (t["x"] - 3) ** 2 - 1.5)) * 1.0,
        {"family": "bernoulli"}, r"residuals depend on 'x'.*poly\(x, 2\)",
    ),
    "levels": (
        lambda t, e, r: np.digitize(0.5 * (t["x"] - 3) ** 2 + r.logistic(size=len(t)), [0, 2]),
        {"family": "ordinal"}, r"residuals depend on 'x'.*poly\(x, 2\)",
    ),
    "times": (
        lambda t, e, r: censored(t, r.weibull(3, len(t)) * np.exp(1 + e), r),
        {"family": "exponential", "formula": "censored(y, status) ~ x + z"},
        "varies less than the model draws.*--family weibull",
    ),
    "quantiles": (
        lambda t, e, r: e + np.exp(0.8 * np.abs(t["x"] - 3)) * r.normal(size=len(t)),
        {"family": "quantile", "quantile": 0.9}, "residuals depend on 'x'",
    ),
}  # fmt: skip
"""Models that are wrong, and what is said of them."""


@cache
def checked(name: str, seed: int = 1) -> ModelCheck:
    respond, options = (RIGHT.get(name) or WRONG[name])[:2]
    table, eta, random = rows(seed)
    made = respond(table, eta, random)
    table = made if isinstance(made, pd.DataFrame) else table.assign(y=made)
    given = {"formula": X_Z, **options}
    return er.fit("bayesian_regression", table, seed=1, draws=2000, **given).check()


def level(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_places_and_p_values_of_a_normal_mean_have_their_closed_forms() -> None:
    """Given the others y[i] is Normal(sum of the others / n, 1 + 1 / n), with n rows."""
    y = np.random.default_rng(3).normal(0.4, 1.3, 12)
    check = er.fit(level, {"y": torch.tensor(y)}, seed=1, draws=20_000).check()
    n = len(y)
    others = (y.sum() - y) / n
    exact = stats.norm(others, np.sqrt(1 + 1 / n)).cdf(y)
    effective = 20_000 / 4  # of the weights of the farthest row
    assert np.abs(check.rows["pit"] - exact).max() < 4 * 0.5 / np.sqrt(effective)
    assert np.abs(check.rows["mean"] - others).max() < 4 / np.sqrt(effective)
    # Of the mean of n rows: Normal(posterior mean, posterior variance 1 / (n + 1), and 1 / n).
    mean = stats.norm(y.sum() / (n + 1), np.sqrt(1 / (n + 1) + 1 / n))
    line = check.table.iloc[0]
    assert line["quantity"] == "mean"
    exact_p = 2 * min(mean.cdf(y.mean()), mean.sf(y.mean()))
    assert abs(line["p"] - exact_p) < 4 / np.sqrt(20_000)
    assert np.allclose(line[["lower", "upper"]].to_list(), mean.ppf([0.05, 0.95]), atol=0.02)


@pytest.mark.parametrize("name", WRONG)
def test_each_misfit_is_seen_and_what_to_try_is_said(name: str) -> None:
    (sentence,) = checked(name).findings
    assert pd.Series([sentence]).str.contains(WRONG[name][2], regex=True).all(), sentence


@pytest.mark.parametrize("name", ["groups", "level alone", "weibull", "weights", "quantile"])
def test_a_right_model_is_not_accused(name: str) -> None:
    assert checked(name).findings == ()


def schools(effect: Tensor, error: Tensor, size: Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        theta = pyro.sample("theta", dist.Normal(0.0, spread))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


def test_predictions_that_follow_their_own_rows_tell_nothing_of_residuals() -> None:
    random = np.random.default_rng(1)
    error, size = random.uniform(0.5, 1, 80), random.normal(size=80)
    effect = random.normal(size=80) + error * random.normal(size=80)
    data = {"effect": effect, "error": error, "size": size}
    given = {name: torch.tensor(values) for name, values in data.items()}
    check = er.fit(schools, given, seed=1, draws=1000).check()
    assert check.findings == ()
    assert not check.table["check"].str.contains("prediction").any()
    assert check.table["check"].str.contains("residuals by size").any()


@pytest.mark.slow
def test_fifty_right_models_are_hardly_ever_accused() -> None:
    names = list(RIGHT)
    accused = [
        seed for seed in range(MADE.sets) if checked(names[seed % len(names)], seed + 10).findings
    ]
    assert len(accused) <= 0.05 * MADE.sets


def test_what_is_advised_ends_the_misfit() -> None:
    table, eta, random = rows(1)
    table["y"] = WRONG["zeros"][0](table, eta, random)
    given: Any = {"formula": X_Z, "seed": 1, "draws": 2000}
    fit = er.fit("bayesian_regression", table, family="zero_inflated_poisson", **given)
    assert fit.check().findings == ()


def test_the_row_farthest_off_is_named() -> None:
    table, eta, random = rows(2)
    y = eta + random.normal(size=len(table))
    y[[30, 60]] += (9.0, -30.0)
    table["y"] = y
    check = er.fit("bayesian_regression", table, formula=X_Z, seed=1).check()
    assert check.farthest(2)["row"].tolist() == [61, 31]
    assert "look at the rows farthest off" in check.findings[0]


def test_whole_weights_of_counts_are_rows_that_are_there_as_often() -> None:
    short = pd.DataFrame({"x": [0, 0, 1, 1, 2], "y": [0, 1, 0, 1, 1], "w": [90, 30, 40, 60, 0]})
    given: Any = {"formula": "y ~ x", "family": "bernoulli", "seed": 1}
    found = er.fit("bayesian_regression", short, weights="w", **given).check()
    long = short.loc[short.index.repeat(short["w"])]
    exact = er.fit("bayesian_regression", long, **given).check()
    assert len(found.rows) == len(exact.rows) == 220
    assert found.findings == exact.findings == ()
    one, other = (each.table.iloc[0] for each in (found, exact))
    assert one["quantity"] == other["quantity"] == "proportion"
    assert one["observed"] == other["observed"] == 90 / 220
    near, exact_ends = (each[["lower", "upper"]].to_list() for each in (one, other))
    assert np.allclose(near, exact_ends, atol=0.02)


def test_of_very_many_rows_a_sample_is_checked() -> None:
    table, eta, random = rows(4, 5200)
    table["y"] = eta + random.standard_t(3, len(table))
    check = er.fit("bayesian_regression", table, formula=X_Z, seed=1).check()
    assert len(check.rows) == 5000
    assert check.rows["row"].is_unique
    assert (check.rows["observed"] == table["y"].to_numpy()[check.rows["row"] - 1]).all()
    assert "a random sample of 5,000 of 5,200 rows" in check.notes[0]
    assert "--family student_t" in check.findings[0]


def test_rows_with_missing_cells_are_not_among_those_that_are_checked() -> None:
    table, eta, random = rows(5, 60)
    table["y"] = eta + random.normal(size=60)
    table.loc[3, "x"] = np.nan
    check = er.fit("bayesian_regression", table, formula=X_Z, seed=1).check()
    assert len(check.rows) == 59


def test_what_cannot_be_checked_is_said() -> None:
    mixture = er.fit("gaussian_mixture", "iris", "em", components=3, seed=1)
    with pytest.raises(ModelError, match="it observes several columns"):
        mixture.check()
    with pytest.raises(ModelError, match="its rows have latents of their own"):
        er.fit("factor_analysis", "iris", "em", seed=1).check()
    few = pd.DataFrame({"x": [1.0, 2.0, 4.0], "y": [1.0, 3.0, 2.0]})
    with pytest.raises(ModelError, match="it has 3 rows, and a check needs 5"):
        er.fit("bayesian_regression", few, formula="y ~ x", seed=1).check()
    with pytest.raises(OptionError, match="--seed -1"):
        mixture.check(seed=-1)


@pytest.mark.parametrize(
    "name", ["zeros", "probabilities", "levels", "times", "tails", "quantiles"]
)
def test_every_kind_of_response_has_its_picture(name: str, tmp_path: Path) -> None:
    picture_of_check(checked(name), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_the_command_checks_a_run_and_says_what_it_takes(tmp_path: Path) -> None:
    call = CliRunner().invoke
    run, out = str(tmp_path / "run"), tmp_path / "out"
    given = ["--formula", "progression ~ bmi", "--seed", "1", "--output", run]
    assert call(app, ["fit", "bayesian_regression", *given]).exit_code == 0
    result = call(app, ["check", run, "--output", str(out)])
    assert result.exit_code == 0
    assert "All of 'progression' is above 0" in result.output
    assert "Rows farthest off" in result.output
    assert {each.name for each in out.iterdir()} == {
        "checks.csv", "rows.csv", "picture.png", "manifest.json",
    }  # fmt: skip
    again = er.load(run).check()
    pd.testing.assert_frame_equal(pd.read_csv(out / "rows.csv"), again.rows)
    for words, said in (
        (["check", run, "--formula", "y ~ x"], "--formula would have no effect: .* is a run"),
        (["check", run, "--guide", "map"], "--guide would have no effect"),
        (["check", "bayesian_regression", "--trust"], "is a model, not a run; leave it out"),
    ):
        with pytest.raises(OptionError, match=said):
            call(app, words, catch_exceptions=False)
