"""Priors in words: they are the distributions that are drawn, in the units of the table."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import elbowroom as er
from elbowroom.errors import ModelError
from elbowroom.models._families import FAMILIES
from elbowroom.models._prior_words import AT_MEANS
from elbowroom.report import pictures


@dataclass(frozen=True)
class Sizes:
    rows: int = 60
    p_value: float = 1e-4


SIZES = Sizes()
DISTRIBUTIONS: dict[str, Any] = {
    "normal": lambda loc, scale: stats.norm(loc, scale),
    "student_t": stats.t,
    "laplace": lambda loc, scale: stats.laplace(loc, scale),
    "exponential": lambda rate: stats.expon(scale=1 / rate),
    "gamma": lambda shape, rate: stats.gamma(shape, scale=1 / rate),
    "inverse_gamma": lambda shape, scale: stats.invgamma(shape, scale=scale),
    "beta": stats.beta,
}


def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    found = pd.DataFrame({"x": 5 + 3 * random.normal(size=SIZES.rows)})
    found["y"] = 40 + 2 * found["x"] + 7 * random.normal(size=SIZES.rows)
    found["positive"] = np.exp(0.1 * found["y"] - 4)
    found["count"] = random.poisson(4, SIZES.rows)
    found["group"] = np.resize(list("abcd"), SIZES.rows)
    return found


def check(view: er.PriorView, name: str) -> None:
    """The draws of a quantity, (draws,), have the distribution that is stated."""
    words = re.fullmatch(r"(\w+)\((.*)\)", str(view.table["prior"][name]))
    assert words is not None, name
    numbers = [float(each) for each in words[2].split(",")]
    site, _, label = name.partition("[")
    drawn = view.tree["prior"][site].to_numpy()[0].ravel()
    if label:
        drawn = drawn.reshape(len(view.predicted), -1)[:, 0]
    own: Any = None
    if words[1].startswith("half_"):
        drawn, own = np.abs(drawn), lambda df, scale: _half(stats.t(df, scale=scale))
    else:
        own = DISTRIBUTIONS[words[1]]
    assert stats.kstest(drawn, own(*numbers).cdf).pvalue > SIZES.p_value, name


@dataclass(frozen=True)
class _half:  # noqa: N801  as scipy names distributions
    whole: Any

    def cdf(self, x: Any) -> Any:
        return 2 * self.whole.cdf(x) - 1


def test_what_is_stated_is_what_is_drawn() -> None:
    view = er.priors(
        "bayesian_regression", table(), formula="y ~ 0 + x + (x | group)", seed=1,
        priors={"x": "student_t(4, 1, 0.5)"},
    )  # fmt: skip
    for name in ("coefficients[x]", "sigma", "1|group_sigma", "x|group_sigma"):
        check(view, name)
    assert view.table["prior"]["coefficients[x]"] == "student_t(4, 1, 0.5)"
    assert view.table["prior"]["group_correlation"] == "lkj(1)"
    varying = er.priors(
        "bayesian_regression", table(), formula="y ~ x", parameter="sigma ~ x", seed=1,
        priors={"sigma_x": "laplace(0, 0.1)", "intercept": "normal(30, 4)"},
    )  # fmt: skip
    for name in ("intercept", "coefficients[x]", "sigma_coefficients[x]"):
        check(varying, name)
    assert varying.table["prior"]["sigma"].endswith(AT_MEANS)


@pytest.mark.parametrize(
    ("family", "left"),
    [("gamma", "positive"), ("inverse_gaussian", "positive"), ("hurdle_poisson", "count"),
     ("student_t", "y"), ("lognormal", "positive"), ("negative_binomial", "count")],
)  # fmt: skip
def test_parameters_of_families_are_in_their_units(family: str, left: str) -> None:
    view = er.priors("bayesian_regression", table(), formula=f"{left} ~ x", family=family, seed=2)
    for parameter in FAMILIES[family].parameters:
        check(view, parameter.name)


def test_an_intercept_is_stated_where_all_predictors_are_at_their_means() -> None:
    view = er.priors("bayesian_regression", table(), formula="y ~ x", seed=3)
    words = view.table["prior"]["intercept"]
    assert words.endswith(AT_MEANS)
    loc, scale = map(float, re.findall(r"[\d.]+", words)[:2])
    prior = view.tree["prior"]
    centred = prior["intercept"] + prior["coefficients"].squeeze() * table()["x"].mean()
    drawn = centred.to_numpy().ravel()
    assert stats.kstest(drawn, stats.norm(loc, scale).cdf).pvalue > SIZES.p_value
    levels = er.priors("bayesian_regression", "iris", formula="species ~ petal_width", seed=1)
    classes = levels.table["prior"]
    assert (
        classes["coefficients[virginica, petal_width]"]
        == classes["coefficients[versicolor, petal_width]"]
    )


def test_conjugate_priors_are_stated_in_units_of_the_noise() -> None:
    view = er.priors("bayesian_regression", table(), formula="y ~ x", priors="conjugate", seed=4)
    words, prior = view.table["prior"], view.tree["prior"]
    noise = prior["sigma"].to_numpy().ravel() / table()["y"].std()
    slope = re.fullmatch(r"normal\(0, ([\d.]+) \* sigma / sd\(y\)\)", words["coefficients[x]"])
    assert slope is not None
    standard = prior["coefficients"].to_numpy().ravel() / (float(slope[1]) * noise)
    assert stats.kstest(standard, stats.norm.cdf).pvalue > SIZES.p_value
    shape, scale = map(float, re.findall(r"[\d.]+", words["sigma"])[:2])
    inverse = stats.invgamma(shape, scale=scale)
    assert stats.kstest(noise**2, inverse.cdf).pvalue > SIZES.p_value
    assert words["intercept"].startswith(f"normal({table()['y'].mean():.6g}, ")


def test_a_model_of_ones_own_has_draws_of_its_prior() -> None:
    def model(y: torch.Tensor | None) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0), 2.0))
        with pyro.plate("rows", 5):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    view = er.priors(model, {"y": torch.arange(5.0)}, seed=1)
    drawn = view.tree["prior"]["rate"].to_numpy().ravel()
    assert stats.kstest(drawn, stats.gamma(3, scale=0.5).cdf).pvalue > SIZES.p_value
    assert (view.predicted.shape[1:], view.data.tolist()) == ((5,), [0, 1, 2, 3, 4])

    def flat(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mean, 1.0).expand([5]).to_event(1), obs=y)

    with pytest.raises(ModelError, match="cannot be sampled"):
        er.priors(flat, {"y": torch.arange(5.0)}, seed=1)
    with pytest.raises(ModelError, match="vae: only latents of rows have priors"):
        er.priors("vae", "iris", seed=1)


def test_the_picture_shows_the_data_and_draws(tmp_path: Any) -> None:
    view = er.priors("bayesian_regression", table(), formula="y ~ x", seed=1)
    pictures.picture_of_priors(view.predicted, view.data, tmp_path / "p.png", view.observed)
    assert (tmp_path / "p.png").stat().st_size > 10_000
