"""Smooth terms: as quadrature, exact kernels and other libraries have them; and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import stats
from scipy.integrate import trapezoid
from scipy.interpolate import make_interp_spline, make_smoothing_spline
from scipy.special import logsumexp

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.models._smooth_bases import (
    boundary_of,
    frequencies,
    hilbert_space,
    penalised_spline,
    shortest_length,
)
from elbowroom.models._smooth_effects import spectral_root
from elbowroom.models._smooths import split_smooths
from elbowroom.pipeline.centring import partly_centred
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.informed import Information
from elbowroom.result import Fit


@dataclass(frozen=True)
class Sizes:
    rows: int = 60
    grid: int = 60
    coarse: int = 24
    fine: int = 20_001
    width: float = 2.5
    """Of the priors of the intercept, of slopes and of standard deviations."""


SIZES = Sizes()


def table(seed: int = 3, rows: int = SIZES.rows) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.uniform(0, 10, rows)
    z = random.normal(size=rows)
    y = 40 + 6 * np.sin(x) + 2 * z + 3 * random.normal(size=rows)
    return pd.DataFrame({"y": y, "x": x, "z": z, "g": list("abc") * (rows // 3)})


def spline_kernel(x: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """The covariance of what a penalised spline adds to a line, of variance one on average.

    The penalty by quadrature of the second derivative, its inverse by numpy's pseudo-inverse.

    Returns:
        That, (rows, rows), and what it was divided by, for x in standard deviations.
    """
    z = (x - x.mean()) / x.std()
    knots = np.quantile(np.unique(z), np.linspace(0, 1, k))
    spline = make_interp_spline(knots, np.eye(k), bc_type="natural")
    at = np.linspace(knots[0], knots[-1], SIZES.fine)
    second = spline(at, 2)
    penalty = trapezoid(second[:, :, None] * second[:, None, :], at, axis=0)
    line = np.column_stack([np.ones_like(z), z])
    left = np.eye(len(z)) - line @ np.linalg.pinv(line)
    found = left @ spline(z) @ np.linalg.pinv(penalty, rcond=1e-7) @ spline(z).T @ left
    size = float(np.trace(found) / len(z))
    return found / size, size


@dataclass(frozen=True)
class Quadrature:
    """A regression with a smooth term of Normal rows, whose hyperparameters are on a grid.

    Attributes:
        points: The hyperparameters, (points, number).
        weights: Of each, (points,).
        mean: Of the linear predictor given each, (points, rows).
        variance: Of it, (points, rows).
    """

    points: np.ndarray
    weights: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Means and sds of the logs of hyperparameters and of the linear predictor."""
        logs = np.log(self.points)
        values = np.concatenate([logs, self.mean], 1)
        mean = self.weights @ values
        within = np.concatenate([np.zeros_like(logs), self.variance], 1)
        return mean, np.sqrt(self.weights @ (within + np.square(values - mean)))


def by_quadrature(y: np.ndarray, linear: np.ndarray, kernels: Any, grids: Any) -> Quadrature:
    """The rows are one Normal vector given the hyperparameters, the noise the last of them.

    Args:
        y: Standardised, (rows,).
        linear: The covariance of the intercept and the slopes, (rows, rows).
        kernels: The covariance of the term, and the log prior, at hyperparameters but the noise.
        grids: Of the logs of each.
    """
    points, log_p, means, variances = [], [], [], []
    noise = np.exp(grids[-1])  # (noises,)
    for logs in np.stack(np.meshgrid(*grids[:-1], indexing="ij"), -1).reshape(-1, len(grids) - 1):
        kernel, log_prior = kernels(*np.exp(logs))
        values, vectors = np.linalg.eigh(linear + kernel)
        values, turned = values.clip(0), vectors.T @ y
        total = values + noise[:, None] ** 2  # (noises, rows)
        own = -0.5 * (np.square(turned) / total + np.log(total)).sum(1)
        log_p.append(own + log_prior + stats.expon.logpdf(noise) + logs.sum() + grids[-1])
        points.append([[*np.exp(logs), each] for each in noise])
        means.append(values / total * turned @ vectors.T)
        variances.append((values * noise[:, None] ** 2 / total) @ np.square(vectors).T)
    every = np.concatenate(log_p)
    weights = np.exp(every - logsumexp(every))
    return Quadrature(*map(np.concatenate, (points, [weights], means, variances)))


def line_covariance(column: np.ndarray | None, rows: int) -> np.ndarray:
    """Of the intercept and, if there is one, a slope."""
    found = np.ones((rows, rows))
    if column is not None:
        z = (column - column.mean()) / column.std(ddof=1)
        found = found + np.outer(z, z)
    return SIZES.width**2 * found


def agrees(fit: Fit, names: list[str], units: list[float], exact: Quadrature) -> None:
    """Sees that a fit is trusted, and has the moments of quadrature."""
    assert fit.verdict.trusted, str(fit.verdict)
    rows = fit.problem.data
    means, sds = exact.moments()
    draws = fit.posterior["posterior"]
    logs = [np.log(draws[name].to_numpy() / unit) for name, unit in zip(names, units, strict=True)]
    eta = fit.predict(rows, scale="linear")
    unit, centre = rows["y"].std(), rows["y"].mean()
    found = np.concatenate([[each.mean() for each in logs], (eta["mean"] - centre) / unit])
    spread = np.concatenate([[each.std() for each in logs], eta["sd"] / unit])
    assert np.abs((found - means) / sds).max() < 0.1
    assert np.abs(np.log(spread / sds)).max() < 0.1


def test_a_spline_is_that_of_quadrature() -> None:
    rows = table()
    fit = er.fit("bayesian_regression", rows, formula="y ~ s(x, k=8)", seed=1)
    x, y = rows["x"].to_numpy(), rows["y"].to_numpy()
    kernel, _ = spline_kernel(x, 8)
    prior = stats.t(3, scale=SIZES.width)
    exact = by_quadrature(
        (y - y.mean()) / y.std(ddof=1), line_covariance(x, len(x)),
        lambda sigma: (sigma**2 * kernel, prior.logpdf(sigma)),
        [np.linspace(-3, 4, SIZES.grid), np.linspace(-2, 1, SIZES.grid)],
    )  # fmt: skip
    unit = y.std(ddof=1)
    agrees(fit, ["s(x)_sigma", "sigma"], [unit, unit], exact)
    slope = fit.posterior["posterior"]["coefficients"].sel(predictor="s(x)").to_numpy()
    assert slope.mean() == pytest.approx(np.polyfit(x, exact.weights @ exact.mean, 1)[0] * unit,
                                         abs=0.1 * slope.std())  # fmt: skip


def exact_kernel(x: np.ndarray, length: float, centred: bool) -> np.ndarray:
    """The squared exponential kernel, of a function less its mean over the rows."""
    z = x / x.std()
    found = np.exp(-0.5 * np.square((z[:, None] - z) / length))
    if centred:
        found = found - found.mean(0)
        found = found - found.mean(1, keepdims=True)
    return found


def test_a_gaussian_process_is_that_of_its_exact_kernel() -> None:
    rows = table(5)
    formula = "y ~ hsgp(x, m=40, c=2.5)"
    fit = er.fit("bayesian_regression", rows, formula=formula, seed=1)
    x, y = rows["x"].to_numpy(), rows["y"].to_numpy()
    sigma_prior, length_prior = (
        stats.t(3, scale=SIZES.width),
        stats.lognorm(0.6, scale=np.exp(-0.3)),
    )

    def kernels(sigma: float, length: float) -> tuple[np.ndarray, float]:
        log_p = sigma_prior.logpdf(sigma) + length_prior.logpdf(length)
        return sigma**2 * exact_kernel(x, length, centred=True), log_p

    exact = by_quadrature(
        (y - y.mean()) / y.std(ddof=1), line_covariance(None, len(x)), kernels,
        [np.linspace(-2, 3, SIZES.coarse), np.linspace(-2, 0.7, SIZES.coarse),
         np.linspace(-1.8, 0.2, SIZES.coarse)],
    )  # fmt: skip
    unit = y.std(ddof=1)
    names = ["hsgp(x)_sigma", "hsgp(x)_length_scale", "sigma"]
    agrees(fit, names, [unit, x.std(), unit], exact)
    assert "functions can follow" not in str(fit.verdict)


@pytest.mark.parametrize("centred", [True, False])
def test_more_functions_come_closer_to_the_exact_kernel(centred: bool) -> None:
    x = table()["x"].to_numpy()
    boundary, length = boundary_of(x, 3.0), 0.6
    exact, errors = exact_kernel(x, length, centred), []
    for count in (5, 10, 20, 40):
        functions = hilbert_space(x, count, boundary, centred)(x)
        root = spectral_root(torch.as_tensor(frequencies(count, boundary)), torch.tensor(length))
        made = functions * root.numpy()
        errors.append(np.abs(made @ made.T - exact).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3
    # As many as the paper has them need are close.
    needed = shortest_length(length, boundary)
    assert 10 < needed < 20
    assert errors[2] < 0.05 < errors[1]


def test_a_spline_has_no_part_of_a_line_and_goes_on_as_one() -> None:
    x = table()["x"].to_numpy()
    functions = penalised_spline(x, 8)
    made = functions(x)
    kernel, _ = spline_kernel(x, 8)
    np.testing.assert_allclose(made @ made.T, kernel, atol=1e-5)
    assert np.abs(np.column_stack([np.ones_like(x), x]).T @ made).max() < 1e-8
    crossed = made.T @ made
    assert np.abs(crossed - np.diag(np.diagonal(crossed))).max() < 1e-8
    beyond = functions(np.array([11.0, 12.0, 13.0, -1.0, -2.0, -3.0]))
    assert np.abs(beyond[0] - 2 * beyond[1] + beyond[2]).max() < 1e-8
    assert np.abs(beyond[3] - 2 * beyond[4] + beyond[5]).max() < 1e-8
    for end in (x.min(), x.max()):
        near = functions(np.array([end - 1e-4, end, end + 1e-4]))
        assert np.abs(near[0] - 2 * near[1] + near[2]).max() < 1e-7


def test_a_curve_is_that_of_a_smoothing_spline() -> None:
    """SciPy's, with a knot at each row, and the penalty that the standard deviations imply."""
    rows = table(4)
    x, y = rows["x"].to_numpy(), rows["y"].to_numpy()
    fit = er.fit("bayesian_regression", rows, formula="y ~ s(x, k=30)", seed=1)
    means = fit.summary()["mean"]
    _, size = spline_kernel(x, 30)
    ratio = size * (means["sigma"] / means["s(x)_sigma"]) ** 2
    order = np.argsort(x)
    other = make_smoothing_spline(x[order], y[order], lam=ratio * x.std() ** 3)(x)
    found = fit.predict(rows, scale="linear")
    assert np.abs(found["mean"] - other).max() < 0.5 * found["sd"].max()
    assert np.corrcoef(found["mean"], other)[0, 1] > 0.99


def test_priors_of_ones_own_are_those_of_the_density() -> None:
    """By SciPy, in the units of the response and of the column."""
    rows = table()
    options = {
        "formula": "y ~ s(x) + hsgp(z)",
        "prior": "s(x)_sigma ~ exponential(0.5), hsgp(z)_length_scale ~ lognormal(1, 0.5)",
    }
    problem, *_ = bind_model("bayesian_regression", rows, options)
    with problem.session(0):
        trace: Any = pyro.poutine.trace(problem.function).get_trace(**problem.arguments)
        trace.compute_log_prob()
    units = {"s(x)_sigma": rows["y"].std(), "hsgp(z)_length_scale": rows["z"].std(ddof=0)}
    priors = (stats.expon(scale=2), stats.lognorm(0.5, scale=np.e))
    for (name, unit), prior in zip(units.items(), priors, strict=True):
        log_p = float(trace.nodes[f"standardised_{name}"]["log_prob"])
        expected = prior.logpdf(float(trace.nodes[name]["value"])) + np.log(unit)
        assert log_p == pytest.approx(expected, rel=1e-4)


def test_terms_go_together_and_are_named(tmp_path: Path) -> None:
    rows = table(rows=300)
    random, member = np.random.default_rng(0), np.arange(300) % 12
    eta = np.sin(rows["x"]) + 0.2 * rows["z"] + 0.5 * random.normal(size=12)[member]
    rows["n"], rows["school"] = random.poisson(np.exp(eta)), [f"s{k}" for k in member]
    options: Any = {
        "formula": "n ~ . + s(x) + hsgp(z, m=12) + (1 | school) - y", "family": "poisson",
        "prior": "s(x)_sigma ~ exponential(2), hsgp(z)_length_scale ~ lognormal(1, 0.5)",
    }  # fmt: skip
    words = er.priors("bayesian_regression", rows, seed=1, **options).table["prior"]
    assert words["s(x)_sigma"] == "exponential(2)"
    assert words["hsgp(z)_length_scale"] == "lognormal(1, 0.5)"
    assert words["hsgp(z)_sigma"] == "half_student_t(3, 2.5)"
    fit = er.fit("bayesian_regression", rows, **options, seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    names = {"coefficients[s(x)]", "s(x)_sigma", "hsgp(z)_sigma", "hsgp(z)_length_scale"}
    assert names <= set(fit.summary().index)
    assert not [name for name in fit.summary().index if "standardised" in name]
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run")  # no code is run, so that no trust is asked for
    some = rows.iloc[[7, 3]]
    pd.testing.assert_frame_equal(again.predict(some), fit.predict(some))
    eta = fit.predict(rows, scale="linear")["mean"].to_numpy()
    np.testing.assert_allclose(fit.predict(some, scale="linear")["mean"], eta[[7, 3]], rtol=1e-4)
    curve = again.effects("x", scale="linear")
    assert np.corrcoef(curve["mean"], np.sin(curve["value"]))[0, 1] > 0.95


@pytest.mark.parametrize(
    "right",
    ["s(x)", "hsgp(x, m=5)", "bs(x, df=5)", "cr(x, df=5)", "tp(x, df=5)", "cc(x, df=5, period=12)"],
)
def test_rows_beyond_the_fitted_ones_are_said(right: str) -> None:
    fit = er.fit("bayesian_regression", table(), formula=f"y ~ {right} + z", seed=1)
    new = pd.DataFrame({"x": [5.0, 12.0, 99.0], "z": [0.0, 99.0, 0.0], "y": [40.0] * 3})
    for found in (fit.predict(new), fit.score(new)):
        (note,) = found.attrs["notes"]
        assert "In 2 of 3 rows 'x' is beyond the fitted rows (0." in note
    assert fit.predict(new.head(1)).attrs["notes"] == fit.score().attrs["notes"] == []
    (note,) = (each for each in fit.effects("x=5,12").attrs["notes"] if "Beyond" in each)
    assert "x = 12:" in note


def test_few_functions_of_one_curve_are_written_by_what_is_known_of_them() -> None:
    """Also where they are short: a curve near a line makes a funnel of every other form."""
    problem, *_ = bind_model("bayesian_regression", table(), {"formula": "y ~ s(x, k=6)"})
    form = partly_centred(problem, 0)[0].forms["standardised_s(x)"]
    assert isinstance(form, Information)


def test_too_few_functions_are_a_doubt() -> None:
    rows = table()
    few = er.fit("bayesian_regression", rows, formula="y ~ hsgp(x, m=4)", seed=1)
    assert "is shorter than its 4 functions can follow" in str(few.verdict)


def test_a_curve_of_ordered_levels_and_one_without_an_intercept() -> None:
    rows = table(rows=240)
    rows["level"] = pd.cut(rows["y"], 3, labels=["low", "middle", "high"])
    fit = er.fit("bayesian_regression", rows, formula="level ~ s(x)", seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    rows["y"] -= rows["y"].mean()
    fit = er.fit("bayesian_regression", rows, formula="y ~ 0 + s(x)", seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    assert "intercept" not in fit.summary().index


@pytest.mark.parametrize(
    ("right", "kind", "message"),
    [
        ("s(g)", DataError, r"column 'g' is not of numbers.*write g, or \(1 \| g\)"),
        ("s(xx)", DataError, "no column 'xx' for s.xx.; did you mean 'x'"),
        ("s(few)", DataError, r"'few' has 5 different values, and s\(few\) needs 10; write s\(few, "
         r"k=5\) or few"),
        ("hsgp(two)", DataError, r"has 2 different values, and hsgp\(two\) needs 3; write two"),
        ("s(one)", DataError, r"'one' is 1 in every row.*leave out s\(one\)"),
        ("s(x, k=2)", OptionError, "k is 2 and must be a whole number from 3 to 200"),
        ("s(x, k=4.5)", OptionError, "k is 4.5 and must be a whole number"),
        ("hsgp(x, c=1)", OptionError, "c is 1 and must be a number from 1.1 to 10"),
        ("hsgp(x, m=0)", OptionError, "m is 0 and must be"),
        ("s(x, bs='cc')", OptionError, "no argument of s.. 'bs'. Known: k"),
        ("s(x, 8)", OptionError, r"one column of the table.*write s\(x\), or s\(x, k=10\)"),
        ("hsgp(x, z)", OptionError, r"one column of the table.*hsgp\(x, m=20, c=1.5\)"),
        ("s(log(x))", OptionError, "make a column of it"),
        ("s(x):z", OptionError, r"'s\(x\):z' has the smooth term s\(\) within.*add it by \+"),
        ("(s(x) | g)", OptionError, "write it outside of the parentheses"),
        ("x + s(x)", OptionError, r"s\(x\) has a slope of 'x' within; leave out '\+ x'"),
        ("s(x) + s(x, k=5)", OptionError, r"smooth term s\(x\) is written twice"),
        ("z - s(x)", OptionError, r"leave out '- s\(x\)'"),
        ("s(x", OptionError, "a parenthesis is not closed"),
    ],
)  # fmt: skip
def test_a_smooth_term_that_cannot_be_is_refused(
    right: str, kind: type[Exception], message: str
) -> None:
    rows = table().assign(few=np.arange(SIZES.rows) % 5, two=np.arange(SIZES.rows) % 2, one=1.0)
    with pytest.raises(kind, match=message) as error:
        bind_model("bayesian_regression", rows, {"formula": f"y ~ {right}"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("bayesian_regression", {"parameter": "sigma ~ s(z)"}, "write poly"),
        ("bayesian_regression", {"priors": "conjugate"}, "leave out smooth terms"),
        ("bayesian_regression", {"formula": "g ~ s(x)"}, "no smooth terms"),
        ("negative_binomial", {}, r"smooth terms, which negative_binomial does not fit"),
        ("bayesian_regression", {"prior": "s(x)_sigma ~ normal(0, 1)"}, "numbers above 0"),
        ("bayesian_regression", {"prior": "s(x)_length_scale ~ gamma(1, 1)"}, "no coefficient"),
    ],
)
def test_what_does_not_go_with_smooth_terms_is_said(
    model: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        bind_model(model, table(), {"formula": "y ~ s(x)", **options})


def test_columns_of_smooth_terms_have_any_name() -> None:
    rest, terms = split_smooths("d['s(x)'] ~ w * `s(a)` + s(`my x`, k = 5) + hsgp( x,c=2 ) - 1")
    assert rest == "d['s(x)'] ~ w * `s(a)` - 1"
    assert [(each.name, each.numbers) for each in terms] == [
        ("s(my x)", (("k", 5),)), ("hsgp(x)", (("c", 2.0),)),
    ]  # fmt: skip
    rows = table().rename(columns={"x": "my x"}).assign(k=np.nan)  # k is an argument, no column
    problem, *_ = bind_model("bayesian_regression", rows, {"formula": "y ~ s(`my x`, k=5)"})
    assert list(problem.prepared.coords["predictor"]) == ["s(my x)"]
    assert len(problem.data) == len(rows)
