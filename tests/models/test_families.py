"""Every family against quadrature of a density that was written with scipy.stats alone."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import optimize, special, stats

import elbowroom as er
from elbowroom.errors import ElbowroomError, GuideError, OptionError
from elbowroom.models import get_model
from elbowroom.models._families import FAMILIES
from elbowroom.models.bayesian_regression import responses
from elbowroom.problem.isolation import isolated
from elbowroom.sklearn.regression import ONE_COLUMN

MEAN_TOLERANCE = 0.1
"""In posterior standard deviations."""
SD_TOLERANCE = 0.1
"""Relative."""
POINTS = {2: (25, 41), 3: (17, 25), 4: (13, 19)}
"""Of the grid in each dim, by their number: while it is moved to the posterior, and after."""
REACH = 5.5
"""Of the grid, in posterior standard deviations."""
ROWS = 40

Numbers = Mapping[str, Any]


def _quantile(y: Any, eta: Any, p: Numbers, q: float = 0.5) -> Any:
    z = (y - eta) / p["sigma"]
    return np.log(q * (1 - q) / p["sigma"]) - z * (q - (z < 0))


def _count(name: str) -> Callable[..., Any]:
    def at(y: Any, eta: Any, p: Numbers) -> Any:
        if name == "poisson":
            return stats.poisson.logpmf(y, np.exp(eta))
        size = 1 / p["overdispersion"]
        return stats.nbinom.logpmf(y, size, size / (size + np.exp(eta)))

    return at


def _inflated(name: str) -> Callable[..., Any]:
    def at(y: Any, eta: Any, p: Numbers) -> Any:
        zero, base = p["zero_probability"], np.exp(_count(name)(y, eta, p))
        return np.log(zero * (y == 0) + (1 - zero) * base)

    return at


def _hurdle(name: str) -> Callable[..., Any]:
    def at(y: Any, eta: Any, p: Numbers) -> Any:
        zero, none = p["zero_probability"], np.exp(_count(name)(0 * y, eta, p))
        above = np.exp(_count(name)(y, eta, p)) / (1 - none)
        return np.log(np.where(y == 0, zero, (1 - zero) * above))

    return at


def _skew(y: Any, eta: Any, p: Numbers) -> Any:
    shape = p["slant"]
    scale = p["sigma"] / stats.skewnorm.std(shape)
    return stats.skewnorm.logpdf(y, shape, eta - scale * stats.skewnorm.mean(shape), scale)


def _weibull(y: Any, eta: Any, p: Numbers) -> Any:
    k = p["shape"]
    return stats.weibull_min.logpdf(y, k, scale=np.exp(eta) / special.gamma(1 + 1 / k))


def _wald(y: Any, eta: Any, p: Numbers) -> Any:
    mean = np.exp(eta)
    return stats.invgauss.logpdf(y, mean / p["shape"], scale=p["shape"])


def _beta(y: Any, eta: Any, p: Numbers) -> Any:
    mean = special.expit(eta)
    return stats.beta.logpdf(y, mean * p["precision"], (1 - mean) * p["precision"])


def _beta_binomial(y: Any, eta: Any, p: Numbers) -> Any:
    mean = special.expit(eta)
    return stats.betabinom.logpmf(
        y, p["trials"], mean * p["precision"], (1 - mean) * p["precision"]
    )


DENSITIES: dict[str, Callable[..., Any]] = {
    "normal": lambda y, eta, p: stats.norm.logpdf(y, eta, p["sigma"]),
    "student_t": lambda y, eta, p: stats.t.logpdf(y, p["nu"], eta, p["sigma"]),
    "skew_normal": _skew,
    "laplace": lambda y, eta, p: stats.laplace.logpdf(y, eta, p["sigma"]),
    "quantile": _quantile,
    "bernoulli": lambda y, eta, p: stats.bernoulli.logpmf(y, special.expit(eta)),
    "binomial": lambda y, eta, p: stats.binom.logpmf(y, p["trials"], special.expit(eta)),
    "beta_binomial": _beta_binomial,
    "poisson": _count("poisson"),
    "negative_binomial": _count("negative_binomial"),
    "zero_inflated_poisson": _inflated("poisson"),
    "zero_inflated_negative_binomial": _inflated("negative_binomial"),
    "hurdle_poisson": _hurdle("poisson"),
    "hurdle_negative_binomial": _hurdle("negative_binomial"),
    "gamma": lambda y, eta, p: stats.gamma.logpdf(y, p["shape"], scale=np.exp(eta) / p["shape"]),
    "lognormal": lambda y, eta, p: stats.lognorm.logpdf(y, p["sigma"], scale=np.exp(eta)),
    "exponential": lambda y, eta, p: stats.expon.logpdf(y, scale=np.exp(eta)),
    "weibull": _weibull,
    "inverse_gaussian": _wald,
    "beta": _beta,
}
"""The log density of each family, of y, the linear predictor and the parameters."""
OTHERS = {"ordinal", "categorical"}
"""Families whose references have tests of their own."""
PRIORS: dict[str, Any] = {
    "exponential(1)": stats.expon(),
    "gamma(2, 0.1)": stats.gamma(2, scale=10),
    "inverse_gamma(0.4, 0.3)": stats.invgamma(0.4, scale=0.3),
    "normal(0, 4)": stats.norm(0, 4),
    "beta(1, 1)": stats.uniform(),
}
"""The defaults of parameters."""


def table() -> pd.DataFrame:
    """A response for each family, of one predictor."""
    random = np.random.default_rng(3)
    x = 10 * random.normal(size=ROWS) + 3
    eta = 0.4 + 0.6 * (x - 3) / 10
    mean, share = np.exp(eta), special.expit(eta)
    many, trials = np.exp(1 + eta), random.integers(4, 12, ROWS)
    found = pd.DataFrame({"x": x, "trials": trials})
    found["normal"] = eta + random.normal(size=ROWS)
    found["student_t"] = eta + random.standard_t(3, size=ROWS)
    found["skew_normal"] = eta + random.gamma(1.5, size=ROWS)
    found["laplace"] = found["quantile"] = eta + random.laplace(size=ROWS)
    found["bernoulli"] = random.binomial(1, share)
    found["binomial"] = random.binomial(trials, share)
    found["beta_binomial"] = random.binomial(trials, random.beta(4 * share, 4 * (1 - share)))
    counts = {"poisson": random.poisson(many), "negative_binomial": random.negative_binomial(
        2, 2 / (2 + many))}  # fmt: skip
    for name, values in counts.items():
        found[name] = values
        found[f"zero_inflated_{name}"] = values * (random.random(ROWS) > 0.3)
        found[f"hurdle_{name}"] = values * (random.random(ROWS) > 0.3)
    found["gamma"] = random.gamma(3, mean / 3)
    found["lognormal"] = np.exp(found["normal"])
    found["exponential"] = random.exponential(mean)
    found["weibull"] = mean * random.weibull(1.7, size=ROWS)
    found["inverse_gaussian"] = random.wald(mean, 3.0)
    found["beta"] = random.beta(6 * share, 6 * (1 - share))
    return found


@dataclass
class Reference:
    """A regression on one predictor, by quadrature.

    Attributes:
        density: Of the rows.
        y: The response.
        x: The predictor.
        parameters: The priors of the family's parameters and their units, by name.
        level: Of the linear predictor.
        unit: Of the linear predictor.
        rows: What else the density takes.
        slope: The prior of the coefficient; None for the default.
        weights: Of the rows.
        offset: Of the rows.
    """

    density: Callable[..., Any]
    y: np.ndarray
    x: np.ndarray
    parameters: dict[str, tuple[Any, float]]
    level: float
    unit: float
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    slope: Any = None
    intercept: Any = None
    weights: Any = 1.0
    offset: Any = 0.0

    def values(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """What is reported at points of the real line, (points, dims)."""
        found = {"coefficients[x]": points[:, 1]}
        found["intercept"] = points[:, 0] - points[:, 1] * self.x.mean()
        for k, (name, (prior, _)) in enumerate(self.parameters.items(), start=2):
            low, high = prior.support()
            found[name] = points[:, k]
            if low == 0:
                found[name] = np.exp(points[:, k]) if high > 1 else special.expit(points[:, k])
        return found

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """At points, (points, dims): the intercept at the mean of x, the slope, parameters."""
        found = self.values(points)
        eta = points[:, :1] + points[:, 1:2] * (self.x - self.x.mean()) + self.offset
        given = {name: values[:, None] for name, values in found.items()} | self.rows
        total = (self.weights * self.density(self.y, eta, given)).sum(1)
        if self.intercept is None:
            total += stats.norm.logpdf(points[:, 0], self.level, 2.5 * self.unit)
        else:
            total += self.intercept.logpdf(found["intercept"])
        usual = stats.norm(0, 2.5 * self.unit / self.x.std(ddof=1))
        total += (self.slope or usual).logpdf(points[:, 1])
        for k, (name, (prior, unit)) in enumerate(self.parameters.items(), start=2):
            value, (low, high) = found[name], prior.support()
            total += prior.logpdf(value / unit)
            if low == 0:  # the Jacobian
                total += points[:, k] if high > 1 else np.log(value * (1 - value))
        return total

    def moments(self) -> pd.DataFrame:
        """Mean and sd of what is reported, by a grid that is moved to the posterior twice."""
        centre = np.zeros(2 + len(self.parameters))
        centre[0] = self.level
        with np.errstate(all="ignore"):
            found = optimize.minimize(
                lambda u: -np.nan_to_num(self.log_density(u[None])[0], nan=-1e9, neginf=-1e9),
                centre, method="Nelder-Mead", options={"maxiter": 4000, "maxfev": 4000},
            )  # fmt: skip
            centre, cov = found.x, np.diag(np.full(len(centre), 0.3**2))
            cov[1] *= 1 / self.x.var()
            cov[0] *= self.unit**2
            cov[1] *= self.unit**2
            for count in [POINTS[len(centre)][0]] * 3 + [POINTS[len(centre)][1]]:
                points, weights = self._grid(centre, cov, count)
                centre, cov = weights @ points, np.cov(points.T, aweights=weights, ddof=0)
            values = self.values(points)
        means = {name: weights @ value for name, value in values.items()}
        sds = {n: np.sqrt(weights @ (v - means[n]) ** 2) for n, v in values.items()}
        return pd.DataFrame({"mean": means, "sd": sds})

    def _grid(
        self, centre: np.ndarray, cov: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        dims = len(centre)
        line = np.linspace(-REACH, REACH, count)
        grid = np.stack(np.meshgrid(*[line] * dims), -1).reshape(-1, dims)
        points = centre + grid @ np.linalg.cholesky(cov).T
        log = np.concatenate([self.log_density(part) for part in np.array_split(points, 20)])
        weights = np.exp(log - np.nanmax(log))
        weights = np.nan_to_num(weights) / np.nansum(weights)
        return points, weights


def reference(family: str, data: pd.DataFrame, **more: Any) -> Reference:
    """That of a family's own response."""
    entry, y = FAMILIES[family], data[family].to_numpy(dtype=float)
    level, unit = 0.0, 1.0
    if entry.links == ("identity",):
        values = np.log(y) if family == "lognormal" else y
        level, unit = values.mean(), values.std(ddof=1)
    elif entry.links == ("log",):
        level = np.log(y.mean())
    units = {"spread": unit, "mean": y.mean(), "": 1.0}
    return Reference(
        density=DENSITIES[family], y=y, x=data["x"].to_numpy(),
        parameters={p.name: (PRIORS[p.prior], units[p.unit]) for p in entry.parameters},
        level=level, unit=unit, rows={"trials": data["trials"].to_numpy()}, **more,
    )  # fmt: skip


def check(fit: Any, wanted: pd.DataFrame) -> None:
    """A fit that is trusted, and its moments."""
    assert fit.verdict.trusted, str(fit.verdict)
    found = fit.summary().loc[wanted.index]
    shift = (found["mean"] - wanted["mean"]).abs() / wanted["sd"]
    assert (shift < MEAN_TOLERANCE).all(), shift
    ratio = found["sd"] / wanted["sd"]
    assert ((ratio - 1).abs() < SD_TOLERANCE).all(), ratio


def fitted(family: str, data: pd.DataFrame, **more: Any) -> Any:
    left = f"p({family}, trials)" if FAMILIES[family].takes == "trials" else family
    return er.fit("bayesian_regression", data, formula=f"{left} ~ x", family=family, seed=1, **more)


def test_every_family_has_a_reference() -> None:
    assert {*DENSITIES, *OTHERS} == set(FAMILIES)
    assert len(FAMILIES) >= 21


@pytest.mark.parametrize("family", DENSITIES)
def test_a_family_has_the_posterior_of_quadrature(family: str) -> None:
    data = table()
    check(fitted(family, data), reference(family, data).moments())


@pytest.mark.parametrize("link", ["probit", "cloglog"])
def test_other_links_of_a_probability(link: str) -> None:
    data = table()
    wanted = reference("bernoulli", data)

    def density(y: Any, eta: Any, p: Numbers) -> Any:
        share = stats.norm.cdf(eta) if link == "probit" else -np.expm1(-np.exp(eta))
        return np.where(y == 1, np.log(share), np.log1p(-share))

    wanted.density = density
    check(fitted("bernoulli", data, link=link), wanted.moments())


@dataclass
class Ordinal(Reference):
    """Three levels, with uniform shares where x is at its mean; the first and third number."""

    inverse: Any = stats.logistic

    def values(self, points: np.ndarray) -> dict[str, np.ndarray]:
        shares = special.softmax(np.column_stack([points[:, [0, 2]], 0 * points[:, 0]]), axis=1)
        slope = points[:, 1]
        middle = self.inverse.ppf([shares[:, 0], shares[:, 0] + shares[:, 1]])
        low, high = middle + slope * self.x.mean()
        return {"thresholds[a|b]": low, "thresholds[b|c]": high, "coefficients[x]": slope,
                "jacobian": np.log(shares).sum(1)}  # fmt: skip

    def log_density(self, points: np.ndarray) -> np.ndarray:
        found = self.values(points)
        eta = points[:, 1:2] * self.x
        low, high = (
            self.inverse.cdf(found[f"thresholds[{name}]"][:, None] - eta) for name in ("a|b", "b|c")
        )
        shares = np.choose(self.y.astype(int), [low, high - low, 1 - high])
        prior = stats.norm.logpdf(points[:, 1], 0, 2.5 / self.x.std(ddof=1))
        return np.log(shares).sum(1) + prior + found["jacobian"]


@pytest.mark.parametrize(("link", "inverse"), [("logit", stats.logistic), ("probit", stats.norm)])
def test_an_ordinal_regression_has_the_posterior_of_quadrature(link: str, inverse: Any) -> None:
    data = table()
    y = np.digitize(data["normal"], [-0.3, 1.0])
    data["level"] = np.array(list("abc"))[y]
    wanted = Ordinal(
        lambda: None, y, data["x"].to_numpy(), {"": (None, 1.0)}, 0.0, 1.0, inverse=inverse
    )
    fit = er.fit(
        "bayesian_regression", data, formula="level ~ x", family="ordinal", link=link, seed=1
    )
    check(fit, wanted.moments().drop(index="jacobian"))
    shares = fit.predict(data)
    names = [f"probability[{name}]" for name in "abc"]
    np.testing.assert_allclose(shares[names].sum(axis=1), 1, rtol=1e-6)
    # What is observed is as frequent as predicted: the intercepts see to that, but for the prior.
    np.testing.assert_allclose(shares[names].mean(), np.bincount(y) / ROWS, atol=0.05)


@dataclass
class Categorical(Reference):
    """Three classes: the intercepts at the mean of x and the slopes by z of two of them."""

    def values(self, points: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for k, name in enumerate("bc"):
            slope = points[:, 2 + k] / self.x.std(ddof=1)
            found[f"intercept[{name}]"] = points[:, k] - slope * self.x.mean()
            found[f"coefficients[{name}, x]"] = slope
        return found

    def log_density(self, points: np.ndarray) -> np.ndarray:
        z = (self.x - self.x.mean()) / self.x.std(ddof=1)
        second, third = (points[:, k, None] + points[:, 2 + k, None] * z for k in (0, 1))
        total = np.logaddexp(np.logaddexp(second, third), 0)
        rows = np.choose(self.y.astype(int), [0 * second, second, third]) - total
        return rows.sum(1) + stats.norm.logpdf(points, 0, 2.5).sum(1)


def classes() -> pd.DataFrame:
    """Three classes, of which x tells something."""
    random, data = np.random.default_rng(11), table()
    z = ((data["x"] - 3) / 10).to_numpy()
    weights = np.exp(np.stack([0 * z, 0.4 + 0.8 * z, -0.5 - 1.1 * z], 1))
    places = (random.random((ROWS, 1)) > (weights.cumsum(1) / weights.sum(1, keepdims=True))).sum(1)
    data["kind"] = np.array(list("abc"))[places]
    return data


def test_a_categorical_regression_has_the_posterior_of_quadrature() -> None:
    data = classes()
    y = np.array(["abc".index(each) for each in data["kind"]])
    priors = {"a": (None, 1.0), "b": (None, 1.0)}
    wanted = Categorical(lambda: None, y, data["x"].to_numpy(), priors, 0.0, 10.0 / 10)
    fit = er.fit("bayesian_regression", data, formula="kind ~ x", seed=1)
    check(fit, wanted.moments())
    shares = fit.predict(data)
    assert set(shares["response"]) <= set("abc")
    names = [f"probability[{name}]" for name in "abc"]
    np.testing.assert_allclose(shares[names].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[names].mean(), np.bincount(y) / ROWS, atol=0.05)


def test_a_prior_of_a_column_is_that_of_each_class() -> None:
    data = classes()
    fit = er.fit(
        "bayesian_regression", data, formula="kind ~ x + trials", family="categorical", seed=1,
        priors={"x": "normal(0.05, 1e-5)", "trials": "laplace(-0.02, 1e-5)",
                "intercept": "normal(0.3, 1e-4)"},
    )  # fmt: skip
    means = fit.summary()["mean"]
    for name in "bc":
        assert means[f"coefficients[{name}, x]"] == pytest.approx(0.05, abs=1e-4)
        assert means[f"coefficients[{name}, trials]"] == pytest.approx(-0.02, abs=1e-4)
        assert means[f"intercept[{name}]"] == pytest.approx(0.3, abs=1e-3)


TAILS: dict[str, Callable[..., Any]] = {
    "normal": lambda eta, p: stats.norm(eta, p["sigma"]),
    "lognormal": lambda eta, p: stats.lognorm(p["sigma"], scale=np.exp(eta)),
    "exponential": lambda eta, p: stats.expon(scale=np.exp(eta)),
    "gamma": lambda eta, p: stats.gamma(p["shape"], scale=np.exp(eta) / p["shape"]),
}
"""Distributions of censored responses; those of all families are in `test_tails`."""


@pytest.mark.parametrize("family", TAILS)
def test_a_censored_response_has_the_posterior_of_quadrature(family: str) -> None:
    """Rows that are known, censored on either side, and known by an interval."""
    data = table()
    status = np.resize([0, 1, 0, 2, -1], ROWS)
    data["upper"] = data[family] + 0.7
    data["status"] = np.array(["none", "right", "interval", "left"])[status]
    wanted = reference(family, data)

    def density(y: Any, eta: Any, p: Numbers) -> Any:
        of = TAILS[family](eta, p)
        known = [of.logpdf(y), of.logsf(y), np.log(of.cdf(y + 0.7) - of.cdf(y)), of.logcdf(y)]
        return np.choose(status, known, mode="wrap")

    wanted.density = density
    fit = er.fit(
        "bayesian_regression", data, formula=f"censored({family}, upper, status) ~ x",
        family=family, seed=1,
    )  # fmt: skip
    check(fit, wanted.moments())


def test_a_truncated_response_has_the_posterior_of_quadrature() -> None:
    """Of rows above a limit of their own and below a common one."""
    data = table()
    data["least"] = np.resize([-1.0, 0.2], ROWS)
    data = data[data["normal"].between(data["least"], 2.0)].reset_index(drop=True)
    wanted = reference("normal", data)
    least = data["least"].to_numpy()

    def density(y: Any, eta: Any, p: Numbers) -> Any:
        low, high = ((end - eta) / p["sigma"] for end in (least, 2))
        low, high = np.where(low > 0, (-high, -low), (low, high))  # by the smaller tail
        below, above = stats.norm.logcdf(low), stats.norm.logcdf(high)
        return stats.norm.logpdf(y, eta, p["sigma"]) - above - np.log(-np.expm1(below - above))

    wanted.density = density
    fit = er.fit(
        "bayesian_regression", data, formula="truncated(normal, least, 2) ~ x", seed=1
    )  # fmt: skip
    check(fit, wanted.moments())
    drawn = fit.predict(data)
    assert (drawn["lower"] >= least).all()
    assert (drawn["upper"] <= 2).all()
    found = fit.effects(means="x=-20,3")
    assert "within and beyond the limits" in found.attrs["response"]
    means = fit.summary()["mean"]
    line = means["intercept"] + means["coefficients[x]"] * np.array([-20, 3])
    np.testing.assert_allclose(found["mean"], line, rtol=1e-6)


def test_counts_without_zeros_have_the_posterior_of_quadrature() -> None:
    data = table()
    data = data[data["poisson"] > 0].reset_index(drop=True)
    wanted = reference("poisson", data)

    def density(y: Any, eta: Any, p: Numbers) -> Any:
        return stats.poisson.logpmf(y, np.exp(eta)) - np.log(-np.expm1(-np.exp(eta)))

    wanted.density = density
    fit = er.fit(
        "bayesian_regression", data, formula="truncated(poisson, lower=1) ~ x", family="poisson",
        seed=1,
    )  # fmt: skip
    check(fit, wanted.moments())
    drawn = fit.predict(pd.DataFrame({"x": [-30.0]}), draws=50)
    assert drawn["prediction"].min() >= 1


def test_another_quantile_is_that_quantile() -> None:
    data = table()
    wanted = reference("quantile", data)
    wanted.density = lambda y, eta, p: _quantile(y, eta, p, 0.8)
    fit = fitted("quantile", data, quantile=0.8)
    check(fit, wanted.moments())
    means = fit.summary()["mean"]
    below = data["quantile"] < means["intercept"] + means["coefficients[x]"] * data["x"]
    assert abs(below.mean() - 0.8) < 0.1


def test_an_offset_is_added_to_the_linear_predictor_as_it_is() -> None:
    data = table()
    data["time"] = np.random.default_rng(5).uniform(0.5, 3, ROWS)
    wanted = reference("poisson", data, offset=np.log(data["time"].to_numpy()))
    wanted.level = np.log(data["poisson"].mean()) - np.log(data["time"].mean())
    fit = er.fit(
        "bayesian_regression", data, formula="poisson ~ x + offset(log(time))", family="poisson",
        seed=1,
    )  # fmt: skip
    check(fit, wanted.moments())
    assert float(fit.problem.arguments["response_centre"]) == pytest.approx(wanted.level)
    assert list(fit.problem.prepared.coords["predictor"]) == ["x"]


@pytest.mark.parametrize("family", ["poisson", "normal"])
def test_a_weight_is_how_often_a_row_counts(family: str) -> None:
    data = table()
    data["times"] = np.resize([0, 1, 2, 1], ROWS)
    wanted = reference(family, data, weights=data["times"].to_numpy())
    check(fitted(family, data, weights="times"), wanted.moments())


def test_priors_of_ones_own_are_in_the_units_of_the_table() -> None:
    """That of the intercept is of the intercept as it is reported, where x is zero."""
    data = table()
    wanted = reference("normal", data, slope=stats.t(3, 0.5, 0.02), intercept=stats.norm(-1, 0.15))
    wanted.parameters["sigma"] = (stats.gamma(40, scale=1 / 20), 1.0)
    priors = {
        "x": "student_t(3, 0.5, 0.02)", "intercept": "normal(-1, 0.15)", "sigma": "gamma(40, 20)"
    }  # fmt: skip
    fit = fitted("normal", data, priors=priors)
    check(fit, wanted.moments())
    usual = fitted("normal", data).summary()["mean"]
    assert abs(fit.summary()["mean"]["sigma"] - usual["sigma"]) > 0.2
    text = ", ".join(f"{name} ~ {prior}" for name, prior in priors.items())
    pd.testing.assert_frame_equal(fit.summary(), fitted("normal", data, prior=text).summary())


PARAMETERS = [
    (family.name, each.name) for family in FAMILIES.values() for each in family.parameters
]


@pytest.mark.parametrize(("family", "parameter"), PARAMETERS)
def test_with_a_formula_each_row_has_a_parameter_of_its_own(family: str, parameter: str) -> None:
    """The density of rows at a draw of the prior, beside the family's own."""
    data, model = table(), get_model("bayesian_regression")
    options: Any = model.options
    left = f"p({family}, trials)" if FAMILIES[family].takes == "trials" else family
    asked = {"formula": f"{left} ~ 1", "family": family, "parameter": f"{parameter} ~ x"}
    priors = f"{parameter}_x ~ normal(0.02, 0.01), intercept ~ normal(0, 0.1)"
    arguments = model.prepare(data, options(**asked, prior=priors), None).arguments
    with isolated(3, dtype=torch.float64), pyro.poutine.trace() as traced:
        model.function(**arguments)
    nodes: Any = traced.trace.nodes
    at = {name: node["value"].numpy() for name, node in nodes.items() if "value" in node}
    change = at[f"{parameter}_intercept"] + at[f"{parameter}_coefficients"] * data["x"].to_numpy()
    default = next(p.prior for p in FAMILIES[family].parameters if p.name == parameter)
    low, high = PRIORS[default].support()
    inverse = (np.exp if high > 1 else special.expit) if low == 0 else np.array
    given = at | {parameter: inverse(change), "trials": data["trials"].to_numpy()}
    found = nodes["response"]["fn"].log_prob(arguments["response"]).numpy()
    wanted = DENSITIES[family](data[family].to_numpy(), at["intercept"], given)
    assert parameter not in at or np.ptp(inverse(change)) > 0.1 * abs(at[parameter])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@dataclass
class Varying(Reference):
    """A Normal regression whose standard deviation depends on x too; the last dim is of z."""

    def values(self, points: np.ndarray) -> dict[str, np.ndarray]:
        mean, by_sd = self.x.mean(), points[:, 3] / self.x.std(ddof=1)
        return {
            "intercept": points[:, 0] - points[:, 1] * mean, "coefficients[x]": points[:, 1],
            "sigma_intercept": points[:, 2] - by_sd * mean, "sigma_coefficients[x]": by_sd,
        }  # fmt: skip

    def log_density(self, points: np.ndarray) -> np.ndarray:
        away, sd = self.x - self.x.mean(), self.x.std(ddof=1)
        eta = points[:, :1] + points[:, 1:2] * away
        sigma = np.exp(points[:, 2:3] + points[:, 3:4] * away / sd)
        usual = np.exp(points[:, 2]) / self.unit
        prior = stats.norm.logpdf(points[:, 0], self.level, 2.5 * self.unit)
        prior += stats.norm.logpdf(points[:, 1], 0, 2.5 * self.unit / sd)
        prior += stats.expon.logpdf(usual) + np.log(usual)  # and the Jacobian
        prior += stats.norm.logpdf(points[:, 3], 0, 2.5)
        return stats.norm.logpdf(self.y, eta, sigma).sum(1) + prior


def test_a_formula_of_sigma_has_the_posterior_of_quadrature() -> None:
    data = table()
    data["normal"] += 0.08 * (data["x"] - 3) * np.random.default_rng(8).normal(size=ROWS)
    y = data["normal"].to_numpy()
    priors = {"a": (None, 1.0), "b": (None, 1.0)}
    wanted = Varying(
        lambda: None, y, data["x"].to_numpy(), priors, y.mean(), y.std(ddof=1)
    ).moments()  # fmt: skip
    fit = fitted("normal", data, parameter={"sigma": "x"})
    check(fit, wanted)
    assert "sigma" not in fit.posterior["posterior"]
    new = pd.DataFrame({"x": [-20.0, 20.0]})
    spread = np.exp(wanted["mean"]["sigma_intercept"] + wanted["mean"]["sigma_coefficients[x]"] *
                    new["x"])  # fmt: skip
    ratio = fit.predict(new)["sd"] / spread
    assert ratio.between(0.9, 1.6).all()  # the uncertainty of the mean adds to it


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("sigm ~ x", "did you mean 'sigma'"),
        ("sigma", "write it as 'sigma ~ x'"),
        ("sigma ~ 0 + x", "leave out '0 +'"),
        ("sigma ~ (1 | x)", "no group effects"),
        ("sigma ~ 1", "leave it out"),
        ("sigma ~ x, sigma ~ trials", "has two formulas"),
        ("sigma ~ z", "cannot be read"),
        ("sigma ~ log(x", "is not closed"),
        ("sigma ~ x + normal", "'normal' is the response"),
    ],
)
def test_a_formula_of_a_parameter_that_cannot_be_is_named(asked: str, words: str) -> None:
    with pytest.raises(ElbowroomError, match=re.escape(words)):
        fitted("normal", table(), parameter=asked)


def test_the_guide_of_one_noise_refuses_others() -> None:
    with pytest.raises(GuideError, match="leave out --parameter, --priors r2d2 and group effects"):
        fitted("normal", table(), parameter="sigma ~ x", guide="structured")


def test_a_family_without_parameters_takes_no_formula_of_one() -> None:
    with pytest.raises(OptionError, match="poisson has no parameter"):
        fitted("poisson", table(), parameter="sigma ~ x")


@pytest.mark.parametrize("family", [k for k, v in FAMILIES.items() if v.takes in ONE_COLUMN])
def test_every_family_of_one_column_broadcasts_over_draws_and_rows(family: str) -> None:
    """Draws in one batch have the moments that they have one by one."""
    own = FAMILIES[family]
    quantities = {
        "intercept": torch.tensor([0.1, -0.3], dtype=torch.float64),
        "coefficients": torch.tensor([[0.2, 0.1], [-0.1, 0.3]], dtype=torch.float64),
        **{p.name: torch.tensor([0.4, 0.7], dtype=torch.float64) for p in own.parameters},
    }
    quantities |= {"nu": torch.tensor([4.0, 9.0], dtype=torch.float64)}
    arguments = {"family": family, "link": own.links[0], "quantile": 0.3}
    x = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    together = responses(arguments, quantities, x)
    for draw in range(2):
        one = {name: values[draw : draw + 1] for name, values in quantities.items()}
        for row in range(3):
            alone = responses(arguments, one, x[row : row + 1])
            assert torch.allclose(together.mean[draw, row], alone.mean)
            assert torch.allclose(together.variance[draw, row], alone.variance)
    assert together.sample().shape == (2, 3)
