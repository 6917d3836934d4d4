"""Group effects of a regression: read, placed, and as quadrature and other densities have them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import stats
from scipy.special import expit, logsumexp

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.models._group_effects import sample_group_effects
from elbowroom.models._groups import Groups, split_groups
from elbowroom.models._term_priors import Priors
from elbowroom.pipeline.fitting import bind_model


@dataclass(frozen=True)
class Sizes:
    groups: int = 8
    rows: int = 40
    grid: int = 90
    many: int = 40
    each: int = 10
    draws: int = 10_000


SIZES = Sizes()


def table(seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    group = np.arange(SIZES.rows) % SIZES.groups
    x = random.normal(size=SIZES.rows) + 2
    effects = random.normal(size=(2, SIZES.groups))
    y = 50 + 6 * effects[0, group] + 3 * x * (1 + 0.5 * effects[1, group])
    y = y + 4 * random.normal(size=SIZES.rows)
    names = [f"s{k}" for k in group]
    return pd.DataFrame({"y": y, "x": x, "school": names, "room": group % 2, "pupil": names})


@pytest.mark.parametrize(("common", "variance"), [("1", 6.25), ("0", 0.0)])
def test_a_random_intercept_is_that_of_quadrature(common: str, variance: float) -> None:
    """Given the standard deviations, the rows are one Normal vector; with and without intercept."""
    rows = table()
    rows["y"] -= 0 if variance else 50
    fit = er.fit("bayesian_regression", rows, formula=f"y ~ {common} + (1 | school)", seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    centre, unit = rows["y"].mean() if variance else 0.0, rows["y"].std()
    y = ((rows["y"] - centre) / unit).to_numpy()
    member = (rows["school"].to_numpy()[:, None] == sorted(set(rows["school"]))).astype(float)
    grid = np.linspace(-4.5, 2.5, SIZES.grid)
    log_weights, moments = [], []
    for sigma in np.exp(grid):
        for noise in np.exp(grid):
            covariance = variance + sigma**2 * member @ member.T + noise**2 * np.eye(len(y))
            solved = np.linalg.solve(covariance, y)
            log_p = -0.5 * (y @ solved + np.linalg.slogdet(covariance)[1])
            log_p += stats.t(3, scale=2.5).logpdf(sigma) + stats.expon.logpdf(noise)
            log_weights.append(log_p + np.log(sigma) + np.log(noise))
            moments.append([sigma, noise, variance * solved.sum(), *(sigma**2 * member.T @ solved)])
    weights = np.exp(np.array(log_weights) - logsumexp(log_weights))
    each = np.array(moments) * unit
    means = weights @ each
    sds = np.sqrt(weights @ np.square(each[:, :2] - means[:2]))
    means[2] += centre
    draws = fit.posterior["posterior"]
    one = draws["1|school"].to_numpy().reshape(-1, SIZES.groups)
    names = ["1|school_sigma", "sigma", *(["intercept"] if variance else [])]
    found = np.column_stack([*(draws[name].to_numpy().ravel() for name in names), one])
    means = means if variance else np.delete(means, 2)
    errors = np.abs(found.mean(0) - means) / found.std(0)
    assert errors.max() < 0.1
    assert np.abs(np.log(found.std(0)[:2] / sds)).max() < 0.1


def wide_table() -> pd.DataFrame:
    random = np.random.default_rng(3)
    group = np.arange(SIZES.many * SIZES.each) % SIZES.many
    x = random.normal(size=len(group)) * 3 + 5
    effects = random.multivariate_normal([0, 0], [[1, 0.1], [0.1, 0.09]], size=SIZES.many)
    y = 7 + 2 * x + effects[group, 0] + effects[group, 1] * x + random.normal(size=len(group))
    return pd.DataFrame({"y": y, "x": x, "school": [f"s{k:02d}" for k in group]})


def without_groups(rows: pd.DataFrame, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log density of (log s_1, log s_x, atanh r, log noise), and the mean slope, standardised.

    Given these the rows are Normal, with groups of their own: by the formula of Woodbury.

    Args:
        rows: The table.
        at: (n, 4).
    """
    y = ((rows["y"] - rows["y"].mean()) / rows["y"].std()).to_numpy()
    x, spread = rows["x"].to_numpy(), rows["x"].std()
    columns = np.column_stack([y, np.ones(len(y)), (x - x.mean()) / spread])
    effects = np.column_stack([np.ones(len(y)), x / spread])
    by_group = [np.flatnonzero(rows["school"] == name) for name in sorted(set(rows["school"]))]
    squares = np.stack([effects[own].T @ effects[own] for own in by_group])
    crossed = np.stack([effects[own].T @ columns[own] for own in by_group])
    one, two, noise = np.exp(at[:, [0, 1, 3]]).T
    r = np.tanh(at[:, 2])
    covariance = np.stack([one**2, r * one * two, r * one * two, two**2], 1).reshape(-1, 2, 2)
    inner = noise[:, None, None] ** 2 * np.linalg.inv(covariance)
    inner = inner[:, None] + squares  # (n, groups, 2, 2)
    solved = np.linalg.solve(inner, np.broadcast_to(crossed, (len(at), *crossed.shape)))
    taken = np.einsum("gij,ngik->njk", crossed, solved)
    within = (columns.T @ columns - taken) / noise[:, None, None] ** 2
    precision = within[:, 1:, 1:] + np.eye(2) / 6.25
    means = np.linalg.solve(precision, within[:, 1:, 0][..., None])[..., 0]
    log_p = 0.5 * (within[:, 1:, 0] * means).sum(1) - 0.5 * within[:, 0, 0]
    log_p -= 0.5 * np.linalg.slogdet(precision)[1] + 0.5 * np.linalg.slogdet(inner)[1].sum(1)
    log_p -= len(by_group) * 0.5 * np.linalg.slogdet(covariance)[1]
    log_p -= (len(y) - 2 * len(by_group)) * np.log(noise)
    log_p += stats.t(3, scale=2.5).logpdf([one, two]).sum(0) + stats.expon.logpdf(noise)
    return log_p + np.log(one * two * noise * (1 - r**2)), means[:, 1]


def test_correlated_effects_of_many_groups_are_those_without_them() -> None:
    """By importance draws of the four hyperparameters, the groups integrated out by formulas."""
    rows = wide_table()
    fit = er.fit("bayesian_regression", rows, formula="y ~ x + (x | school)", seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    assert fit.posterior["posterior"].attrs["guide"] == "markov"
    draws = fit.posterior["posterior"]
    unit, spread = rows["y"].std(), rows["x"].std()
    names = ["1|school_sigma", "x|school_sigma", "school_correlation", "sigma"]
    first, second, r, noise = (draws[name].to_numpy().ravel() for name in names)
    # The proposal may be any: that it is close to the truth is seen by the weights.
    logs = (np.log(first / unit), np.log(second * spread / unit), np.arctanh(r))
    own = np.stack([*logs, np.log(noise / unit)])
    proposal = stats.multivariate_t(own.mean(1), 1.5 * np.cov(own), df=5, seed=0)
    at = proposal.rvs(SIZES.draws)
    log_p, slopes = without_groups(rows, at)
    weights = np.exp(log_p - proposal.logpdf(at) - logsumexp(log_p - proposal.logpdf(at)))
    assert 1 / np.square(weights).sum() > SIZES.draws / 4
    sds = unit * np.exp(at[:, [0, 1, 3]])
    expected = (sds[:, 0], sds[:, 1] / spread, np.tanh(at[:, 2]), sds[:, 2])
    for name, found, values in zip(names, (first, second, r, noise), expected, strict=True):
        mean = weights @ values
        sd = np.sqrt(weights @ np.square(values - mean))
        assert abs(found.mean() - mean) < 0.1 * sd, name
        assert abs(np.log(found.std() / sd)) < 0.1, name
    slope = draws["coefficients"].to_numpy().ravel()
    assert abs(slope.mean() - unit / spread * (weights @ slopes)) < 0.1 * slope.std()


def test_a_fit_of_many_groups_is_saved_and_predicts_as_before(tmp_path: Path) -> None:
    """Its chains are of other coordinates, which no reader sees."""
    rows = wide_table()
    fit = er.fit("bayesian_regression", rows, formula="y ~ x + (x | school)", seed=1)
    assert not [name for name in fit.posterior["posterior"] if "standardised" in str(name)]
    fit.save(tmp_path / "run")
    new = pd.DataFrame({"x": [2.0, 9.0], "school": ["s01", "s30"]})
    predicted = fit.predict(new)
    pd.testing.assert_frame_equal(er.load(tmp_path / "run").predict(new), predicted)
    draws = fit.posterior["posterior"]
    own = draws.sel(school__factor_dim="s30")
    at_nine = draws["intercept"] + own["1|school"]
    at_nine = at_nine + 9 * (draws["coefficients"].squeeze(drop=True) + own["x|school"])
    assert float(predicted["mean"][1]) == pytest.approx(float(at_nine.mean()), abs=0.15)


def test_three_correlated_effects_have_the_density_of_the_written_ones() -> None:
    """By SciPy, with the covariance of the reported standard deviations and correlations."""
    rows = table().assign(w=lambda t: t["x"] ** 2)
    problem, *_ = bind_model("bayesian_regression", rows, {"formula": "y ~ x + (x + w | school)"})
    with problem.session(0):
        trace: Any = pyro.poutine.trace(problem.function).get_trace(**problem.arguments)
        trace.compute_log_prob()
    names = ["1|school", "x|school", "w|school"]
    effects = np.stack([np.asarray(trace.nodes[name]["value"]) for name in names], 1)
    sigmas = np.array([float(trace.nodes[f"{name}_sigma"]["value"]) for name in names])
    correlations = np.eye(3)
    correlations[np.tril_indices(3, -1)] = trace.nodes["school_correlation"]["value"]
    covariance = np.outer(sigmas, sigmas) * (correlations + correlations.T - np.eye(3))
    log_p = stats.multivariate_normal(np.zeros(3), covariance).logpdf(effects).sum()
    # What is sampled has another volume, by the units of the effects.
    units = rows["y"].std() / np.array([1.0, rows["x"].std(), rows["w"].std()])
    log_p += SIZES.groups * np.log(units).sum()
    sampled = trace.nodes["standardised_effects|school"]["log_prob"].sum()
    assert float(sampled) == pytest.approx(log_p, rel=1e-4)


def test_effects_of_new_groups_are_drawn_from_those_of_all() -> None:
    """Given the parameters a new group's row is Normal, with the variance of its effects."""
    rows = wide_table()
    fit = er.fit("bayesian_regression", rows, formula="y ~ x + (x | school)", seed=1)
    new = pd.DataFrame({"x": [9.0, 9.0], "school": ["new", "s30"], "y": [26.0, 22.0]})
    predicted = fit.predict(new, new_groups="draw")
    draws = fit.posterior["posterior"]
    one, two, r, noise, level = (
        draws[name].to_numpy().ravel()
        for name in ("1|school_sigma", "x|school_sigma", "school_correlation", "sigma", "intercept")
    )
    mean = level + 9 * draws["coefficients"].to_numpy().ravel()
    sd = np.sqrt(one**2 + 81 * two**2 + 2 * 9 * r * one * two + noise**2)
    found = predicted.iloc[0]
    error = 4 * sd.mean() / np.sqrt(len(mean))
    assert found["mean"] == pytest.approx(mean.mean(), abs=error)
    assert found["sd"] == pytest.approx(np.sqrt(np.square(sd).mean() + mean.var()), abs=error)
    log_p = logsumexp(stats.norm(mean, sd).logpdf(26.0)) - np.log(len(mean))
    assert found["log_density"] == pytest.approx(log_p, abs=0.15)
    known = fit.predict(new.tail(1))
    assert predicted["mean"][1] == pytest.approx(known["mean"][0], abs=error)
    with pytest.raises(DataError, match=r"'new'; leave out their rows.*--new-groups draw"):
        fit.predict(new)


def test_effects_of_new_groups_have_the_covariance_of_all() -> None:
    groups = Groups("g", ("1", "x"), ("a", "b"), True, (1.0, 2.0), unseen=SIZES.draws)
    known = {
        "standardised_1|g_sigma": torch.tensor(2.0), "standardised_x|g_sigma": torch.tensor(0.5),
        "g_correlation_root": torch.tensor([[1.0, 0.0], [0.8, 0.6]]),
    }  # fmt: skip
    pyro.set_rng_seed(0)
    model = pyro.condition(sample_group_effects, known)
    ((one, slope),) = model([groups], torch.tensor(3.0), Priors())
    found = np.cov(np.stack([one[2:].numpy(), slope[2:].numpy()]))
    sds = np.array([3.0 * 2.0, 3.0 / 2.0 * 0.5])
    expected = np.outer(sds, sds) * [[1.0, 0.8], [0.8, 1.0]]
    errors = 5 * np.outer(sds, sds) * np.sqrt(2 / SIZES.draws)
    assert (np.abs(found - expected) < errors).all()


def test_the_probability_of_a_row_of_a_new_group_is_that_of_quadrature() -> None:
    rows = wide_table().assign(y=lambda t: np.where(t["y"] > t["y"].mean(), "high", "low"))
    options: Any = {"formula": 'y["high"] ~ x + (1 | school)', "new_groups": "draw"}
    fit = er.fit("bayesian_regression", rows, **options, seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    assert fit.guide.name == "markov"  # first, though there are few groups
    found = fit.predict(pd.DataFrame({"x": [4.0], "school": ["new"]}))["probability"][0]
    draws = fit.posterior["posterior"]
    eta = (draws["intercept"] + 4 * draws["coefficients"].squeeze(drop=True)).to_numpy().ravel()
    nodes, weights = np.polynomial.hermite_e.hermegauss(SIZES.grid)
    spread = draws["1|school_sigma"].to_numpy().ravel()
    each = expit(eta[:, None] + spread[:, None] * nodes)
    expected = (each @ weights).mean() / weights.sum()
    assert found == pytest.approx(expected, abs=4 * each.std() / np.sqrt(len(eta)))


def test_new_groups_without_group_effects_are_an_error() -> None:
    line = er.fit("bayesian_regression", table(), formula="y ~ x", seed=1)
    with pytest.raises(OptionError, match="the formula has no group effects; leave it out"):
        line.predict(table(), new_groups="draw")
    other = er.fit("conjugate", "diabetes", likelihood="normal", response="bmi", seed=1)
    with pytest.raises(OptionError, match="conjugate has no group effects; leave it out"):
        other.predict(other.problem.data, new_groups="draw")


def test_the_density_of_correlated_effects_is_the_written_one() -> None:
    """By SciPy, from the formula in the documentation."""
    rows = table()
    problem, *_ = bind_model(
        "bayesian_regression", rows, {"formula": "y ~ x + (x | school) + (1 | room)"}
    )
    with problem.session(0):
        trace: Any = pyro.poutine.trace(problem.function).get_trace(**problem.arguments)
        trace.compute_log_prob()
    values = {name: node["value"] for name, node in trace.nodes.items() if "value" in node}
    shown = {name: np.asarray(value) for name, value in values.items() if "|" in name}
    unit, spread = rows["y"].std(), np.array([1.0, rows["x"].std()])
    effects = np.stack([shown["1|school"], shown["x|school"]], 1)
    sigmas = np.array([shown["1|school_sigma"], shown["x|school_sigma"]])
    correlation = float(values["school_correlation"])
    covariance = np.outer(sigmas, sigmas) * [[1, correlation], [correlation, 1]]
    log_p = stats.multivariate_normal(np.zeros(2), covariance).logpdf(effects).sum()
    log_p += SIZES.groups * np.log(unit / spread).sum()  # of the standardised effects
    sampled = trace.nodes["standardised_effects|school"]["log_prob"].sum()
    assert float(sampled) == pytest.approx(log_p, rel=1e-5)
    prior = stats.t(3, scale=2.5).logpdf(sigmas[1] * spread[1] / unit) + np.log(2)
    of_sigma = trace.nodes["standardised_x|school_sigma"]["log_prob"]
    assert float(of_sigma) == pytest.approx(prior, rel=1e-5)
    assert float(trace.nodes["school_correlation_root"]["log_prob"]) == pytest.approx(np.log(0.5))
    member = rows["school"].str[1:].astype(int).to_numpy()
    mean = float(values["intercept"]) + float(values["coefficients"]) * rows["x"].to_numpy()
    mean = mean + effects[member, 0] + effects[member, 1] * rows["x"].to_numpy()
    mean = mean + shown["1|room"][rows["room"]]
    noise = float(values["sigma"])
    expected = stats.norm(mean, noise).logpdf(rows["y"])
    np.testing.assert_allclose(trace.nodes["response"]["log_prob"], expected, rtol=1e-4)


def test_effects_without_a_correlation_and_nested_ones_have_their_names() -> None:
    formula = "y ~ x + (x || school / room)"
    options: Any = {"formula": formula, "guide": "mean_field", "steps": 100}
    fit = er.fit("bayesian_regression", table(), **options, seed=1)
    draws = fit.posterior["posterior"]
    names = {"1|school", "x|school", "1|school:room", "x|school:room"}
    assert {str(name) for name in draws if str(name).endswith(("school", "room"))} == names
    assert {f"{name}_sigma" for name in names} <= {str(name) for name in draws}
    assert not [name for name in draws if "standardised" in str(name) or "correlation" in str(name)]
    labels = draws["1|school:room"].coords["school:room__factor_dim"].to_numpy()
    assert "s3:1" in labels
    assert "s3:0" not in labels


def test_new_rows_take_the_effects_of_their_groups(tmp_path: Path) -> None:
    rows = table()
    options: Any = {"formula": "y ~ x + (x | room)", "guide": "mean_field", "steps": 100}
    fit = er.fit("bayesian_regression", rows, **options, seed=1)
    fit.save(tmp_path / "run")
    new = pd.DataFrame({"x": [0.0, 2.0, 2.0], "room": [1.0, 1.0, 0.0]})
    draws = fit.posterior["posterior"]
    whole = {
        str(name): draws[name].to_numpy()[0].reshape(draws.sizes["draw"], -1) for name in draws
    }
    eta = whole["intercept"] + whole["coefficients"] * new["x"].to_numpy()
    room = new["room"].astype(int)
    eta = eta + whole["1|room"][:, room] + whole["x|room"][:, room] * new["x"].to_numpy()
    for run in (fit, er.load(tmp_path / "run")):
        predicted = run.predict(new)
        width = 5 * predicted["sd"].to_numpy() / draws.sizes["draw"] ** 0.5
        assert (np.abs(predicted["mean"] - eta.mean(0)) < width).all()
        with pytest.raises(DataError, match="'room' has groups that the fitted table lacks: '7'"):
            run.predict(pd.DataFrame({"x": [0.0], "room": [7]}))
        with pytest.raises(DataError, match="room"):
            run.predict(pd.DataFrame({"x": [0.0]}))


def test_a_prior_of_a_standard_deviation_is_in_the_units_of_the_table() -> None:
    options = {"formula": "y ~ x + (x || school)", "prior": "x|school_sigma ~ exponential(2)"}
    problem, *_ = bind_model("bayesian_regression", table(), options)
    with problem.session(0):
        trace: Any = pyro.poutine.trace(problem.function).get_trace(**problem.arguments)
        trace.compute_log_prob()
    sigma = float(trace.nodes["x|school_sigma"]["value"])
    standard = float(trace.nodes["standardised_x|school_sigma"]["value"])
    found = float(trace.nodes["standardised_x|school_sigma"]["log_prob"])
    expected = stats.expon(scale=0.5).logpdf(sigma) + np.log(sigma / standard)
    assert found == pytest.approx(expected, rel=1e-5)


BAD: dict[str, tuple[type[Exception], str]] = {
    "y ~ x + 1 | school": (OptionError, "write group effects in parentheses"),
    "y ~ x:(1 | school)": (OptionError, "write group effects in parentheses"),
    "y ~ x - (1 | school)": (OptionError, "leave out '- "),
    "y ~ x + (1 | log(school))": (OptionError, "after it a column"),
    "y ~ x + ( | school)": (OptionError, "write what varies"),
    "y ~ x + (1 | school": (OptionError, "a parenthesis is not closed"),
    "y ~ x + (1 | school) + (1 | school)": (OptionError, "1\\|school is written twice"),
    "y ~ x + (1 | skool)": (DataError, "school"),
    "y ~ x + (nothing | school)": (DataError, "nothing"),
    "y ~ x + (1 | same)": (DataError, "needs two groups at least"),
    "y ~ x + (1 | lists)": (DataError, "column 'lists' has cells such as"),
}


@pytest.mark.parametrize("formula", BAD)
def test_what_cannot_be_read_is_a_sentence(formula: str) -> None:
    error, words = BAD[formula]
    lists: Any = [[1], [2]] * 20
    rows = table().assign(same="a", lists=lists)
    with pytest.raises(error, match=words):
        er.fit("bayesian_regression", rows, formula=formula)


def test_groups_have_an_order_and_one_label_for_equal_values() -> None:
    """A column may hold numbers and the text of them."""
    mixed: Any = [1, "1", 2.0, "b"] * 10
    sizes = pd.Categorical(["small", "large"] * 20, categories=["small", "large", "none"])
    rows = table().assign(mixed=mixed, sizes=sizes, ids=[10**17 + 1, 10**17] * 20)
    formula = "y ~ (1 | mixed) + (1 | sizes) + (1 | ids)"
    problem, *_ = bind_model("bayesian_regression", rows, {"formula": formula})
    levels = [groups.levels for groups in problem.arguments["groups"]]
    assert levels == [("1", "2", "b"), ("small", "large"), (f"{10**17}", f"{10**17 + 1}")]
    assert problem.arguments["group_codes"][:4].tolist() == [
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 1],
        [2, 1, 0],
    ]


def test_a_model_without_group_effects_says_so() -> None:
    rows = table().assign(y=3)
    with pytest.raises(OptionError, match="fit bayesian_regression"):
        er.fit("negative_binomial", rows, formula="y ~ x + (1 | school)")


def test_rows_that_are_groups_of_their_own_are_named() -> None:
    rows = table().assign(own=[f"r{k}" for k in range(SIZES.rows)])
    options: Any = {"formula": "y ~ (1 | own)", "guide": "mean_field", "steps": 100}
    fit = er.fit("bayesian_regression", rows, **options, seed=1)
    assert "Each row is a group of its own" in str(fit.verdict)


def test_quotes_and_other_columns_are_left_as_they_are() -> None:
    rest, terms = split_groups("d['a|b'] ~ (x + z) * w + (0 + x | `my school`:room) - 1")
    assert rest == "d['a|b'] ~ (x + z) * w - 1"
    assert [(term.inside, term.factors) for term in terms] == [("0 + x", ("my school", "room"))]
