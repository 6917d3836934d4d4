"""Group effects of a regression: read, placed, and as quadrature and other densities have them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
from scipy import stats
from scipy.special import logsumexp

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.models._groups import split_groups
from elbowroom.pipeline.fitting import bind_model


@dataclass(frozen=True)
class Sizes:
    groups: int = 8
    rows: int = 40
    grid: int = 90


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


def test_a_random_intercept_is_that_of_quadrature() -> None:
    """Given the standard deviations, the rows are one Normal vector."""
    rows = table()
    fit = er.fit("bayesian_regression", rows, formula="y ~ 1 + (1 | school)", seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    centre, unit = rows["y"].mean(), rows["y"].std()
    y = ((rows["y"] - centre) / unit).to_numpy()
    member = (rows["school"].to_numpy()[:, None] == sorted(set(rows["school"]))).astype(float)
    grid = np.linspace(-4.5, 2.5, SIZES.grid)
    log_weights, moments = [], []
    for sigma in np.exp(grid):
        for noise in np.exp(grid):
            covariance = 6.25 + sigma**2 * member @ member.T + noise**2 * np.eye(len(y))
            solved = np.linalg.solve(covariance, y)
            log_p = -0.5 * (y @ solved + np.linalg.slogdet(covariance)[1])
            log_p += stats.t(3, scale=2.5).logpdf(sigma) + stats.expon.logpdf(noise)
            log_weights.append(log_p + np.log(sigma) + np.log(noise))
            moments.append([sigma, noise, 6.25 * solved.sum(), *(sigma**2 * member.T @ solved)])
    weights = np.exp(np.array(log_weights) - logsumexp(log_weights))
    each = np.array(moments) * unit
    means = weights @ each
    sds = np.sqrt(weights @ np.square(each[:, :2] - means[:2]))
    means[2] += centre
    draws = fit.posterior["posterior"]
    one = draws["1|school"].to_numpy().reshape(-1, SIZES.groups)
    names = ["1|school_sigma", "sigma", "intercept"]
    found = np.column_stack([*(draws[name].to_numpy().ravel() for name in names), one])
    errors = np.abs(found.mean(0) - means) / found.std(0)
    assert errors.max() < 0.1
    assert np.abs(np.log(found.std(0)[:2] / sds)).max() < 0.1


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
    place = "standardised_1, x|school"
    assert float(trace.nodes[place]["log_prob"].sum()) == pytest.approx(log_p, rel=1e-5)
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
    fit = er.fit("bayesian_regression", table(), formula=formula, guide="mean_field", seed=1)
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
    fit = er.fit("bayesian_regression", rows, formula="y ~ x + (x | room)", seed=1)
    fit.save(tmp_path / "run")
    new = pd.DataFrame({"x": [0.0, 2.0, 2.0], "room": [1.0, 1.0, 0.0]})
    draws = fit.posterior["posterior"]
    whole = {str(name): draws[name].to_numpy().reshape(4000, -1) for name in draws}
    eta = whole["intercept"] + whole["coefficients"] * new["x"].to_numpy()
    room = new["room"].astype(int)
    eta = eta + whole["1|room"][:, room] + whole["x|room"][:, room] * new["x"].to_numpy()
    for run in (fit, er.load(tmp_path / "run")):
        predicted = run.predict(new)
        width = 5 * predicted["sd"].to_numpy() / 4000**0.5
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
    "y ~ x + (1 | gaps)": (DataError, "column 'gaps' has 1 empty cells"),
    "y ~ x + (1 | lists)": (DataError, "column 'lists' has cells such as"),
}


@pytest.mark.parametrize("formula", BAD)
def test_what_cannot_be_read_is_a_sentence(formula: str) -> None:
    error, words = BAD[formula]
    gaps: Any = ["a", None, *"b" * 38]
    lists: Any = [[1], [2]] * 20
    rows = table().assign(same="a", gaps=gaps, lists=lists)
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
    fit = er.fit("bayesian_regression", rows, formula="y ~ (1 | own)", seed=1)
    assert "Each row is a group of its own" in str(fit.verdict)


def test_quotes_and_other_columns_are_left_as_they_are() -> None:
    rest, terms = split_groups("d['a|b'] ~ (x + z) * w + (0 + x | `my school`:room) - 1")
    assert rest == "d['a|b'] ~ (x + z) * w - 1"
    assert [(term.inside, term.factors) for term in terms] == [("0 + x", ("my school", "room"))]
