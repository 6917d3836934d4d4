"""The regression of counts: against quadrature, and what it makes of a table."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.models import Training
from elbowroom.models.negative_binomial import Options, prepare
from elbowroom.problem.isolation import isolated
from elbowroom.result import Fit

POINTS = 61
"""Of the quadrature, for each of three numbers."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def table() -> pd.DataFrame:
    """Counts over different hours."""
    random = np.random.default_rng(0)
    found = pd.DataFrame({"dose": random.uniform(1, 5, 30), "hours": random.uniform(1, 9, 30)})
    mean = found["hours"] * np.exp(0.4 * found["dose"] - 1)
    return found.assign(visits=random.negative_binomial(3, 3 / (3 + mean)))


def quadrature(
    data: pd.DataFrame, x: str, y: str, exposure: np.ndarray
) -> tuple[np.ndarray, float]:
    """Means and standard deviations of intercept, coefficient and overdispersion; log p(data).

    SciPy's negative binomial on a grid of the intercept, the coefficient and the root of the
    overdispersion, all in the scale of the priors.
    """
    centre, spread = data[x].mean(), data[x].std()
    z, counts = ((data[x] - centre) / spread).to_numpy(), data[y].to_numpy()
    level = np.log(counts.mean() / exposure.mean())
    a, b = np.linspace(-1.5, 1.5, POINTS), np.linspace(-1.5, 1.5, POINTS)
    root = np.linspace(0, 2.5, 2 * POINTS + 1)[1::2]  # the middles of cells
    one, two, three = (g[..., None] for g in np.meshgrid(a, b, root, indexing="ij"))
    mean = exposure * np.exp(level + one + two * z)  # (a, b, root, rows)
    size = 1 / three**2
    log_p = stats.nbinom(size, size / (size + mean)).logpmf(counts).sum(-1)
    log_p += (stats.norm(0, 2.5).logpdf(one) + stats.norm(0, 2.5).logpdf(two))[..., 0]
    log_p += stats.halfnorm.logpdf(three)[..., 0]
    cell = (a[1] - a[0]) * (b[1] - b[0]) * (root[1] - root[0])
    evidence = logsumexp(log_p) + np.log(cell)
    share = np.exp(log_p - logsumexp(log_p))
    slope = two[..., 0] / spread
    quantities = (level + one[..., 0] - slope * centre, slope, three[..., 0] ** 2)
    means = [(share * values).sum() for values in quantities]
    sds = [
        np.sqrt((share * (values - own) ** 2).sum())
        for values, own in zip(quantities, means, strict=True)
    ]
    return np.array([means, sds]), float(evidence)


@cache
def fitted(exposed: bool) -> tuple[Fit, Any, float]:
    """A fit of 8,000 draws, and the truth by quadrature."""
    if exposed:
        data = table()
        hours = data["hours"].to_numpy()
        truth = quadrature(data, "dose", "visits", hours)
        options: dict[str, Any] = {"formula": "visits ~ dose", "exposure": "hours"}
    else:
        data = er.load_dataset("linnerud")
        truth = quadrature(data, "waist", "chins", np.ones(len(data)))
        options = {"formula": "chins ~ waist"}
    return er.fit("negative_binomial", data, seed=1, draws=8_000, **options), *truth


@pytest.mark.parametrize("exposed", [False, True], ids=["chins", "visits"])
def test_the_posterior_is_that_of_quadrature(exposed: bool) -> None:
    fit, (means, sds), evidence = fitted(exposed)
    assert fit.verdict.level != "not trusted"
    summary = fit.summary()[["mean", "sd"]].to_numpy(dtype=float)
    # Four standard errors of a mean.
    error = 4 / min(fit.diagnostics["corrected_effective_sample_size"], 8_000) ** 0.5
    assert (np.abs(summary[:, 0] - means) < error * sds).all()
    assert (np.abs(summary[:, 1] / sds - 1) < 2 * error).all()  # tails heavier than a Normal's
    assert abs(fit.diagnostics["log_evidence"] - evidence) < 0.05


def test_the_variance_is_that_of_the_overdispersion() -> None:
    """Of predictions at fixed parameters nearly: a narrow posterior of many rows."""
    random = np.random.default_rng(1)
    x = random.normal(size=1_000)
    data = pd.DataFrame({"x": x, "y": random.negative_binomial(2, 2 / (2 + 10 * np.exp(0 * x)))})
    fit = er.fit("negative_binomial", data, response="y", seed=1)
    predicted = fit.predict(pd.DataFrame({"x": [0.0]}))
    # Var = 10 + 100 / 2; four standard errors of 1,000 rows' mean are 10 %, and of their sd 17 %.
    assert predicted["mean"][0] == pytest.approx(10, rel=0.1)
    assert predicted["sd"][0] == pytest.approx(60**0.5, rel=0.17)


def test_twice_the_exposure_is_twice_the_mean() -> None:
    fit, _, _ = fitted(exposed=True)
    new = pd.DataFrame({"dose": [3.0] * 2, "hours": [4.0, 8.0]})
    once, twice = fit.predict(new)["mean"]
    assert twice / once == pytest.approx(2, rel=0.05)  # of 8,000 draws with an sd of the mean


def test_counts_of_a_poisson_have_little_overdispersion() -> None:
    random = np.random.default_rng(2)
    data = pd.DataFrame({"x": random.normal(size=300)})
    data["y"] = random.poisson(np.exp(2 + 0.3 * data["x"]))
    fit = er.fit("negative_binomial", data, response="y", seed=1)
    assert fit.verdict.level != "not trusted"
    # Its standard error is about (2 / 300)^½ / 8, of a mean count of 8.
    assert float(fit.posterior["posterior"]["overdispersion"].mean()) < 0.02


def test_the_exposure_is_no_predictor() -> None:
    found = prepare(table(), Options(response="visits", exposure="hours"))
    assert list(found.coords["predictor"]) == ["dose"]
    np.testing.assert_allclose(found.arguments["exposure"], table()["hours"])


def test_new_rows_keep_the_fits_scaling() -> None:
    first = prepare(table(), Options(formula="visits ~ dose", exposure="hours"))
    new = table()[["dose", "hours"]].head(2)
    training = Training(table(), first.arguments)
    found = prepare(new, Options(formula="visits ~ dose", exposure="hours"), training).arguments
    assert found["response"] is None
    for name in ("centre", "spread", "level"):
        assert torch.equal(found[name], first.arguments[name])


def test_without_an_intercept_nothing_is_centred() -> None:
    found = prepare(table(), Options(formula="visits ~ 0 + dose")).arguments
    assert not found["has_intercept"]
    assert (found["centre"] == 0).all()
    assert found["level"] == 0


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"visits": 1.5}, {"response": "visits"}, DataError, "'visits', row 1: 1.5; .* counts"),
        ({"visits": -1}, {"response": "visits"}, DataError, "'visits', row 1: -1; .* counts"),
        (
            {"hours": 0.0}, {"response": "visits", "exposure": "hours"}, DataError,
            "'hours', row 1: 0; an exposure",
        ),
        ({}, {"response": "visits", "exposure": "hour"}, DataError, "hour"),
        ({}, {"formula": "visits ~ dose + offset(np.log(hours))"}, OptionError, "--exposure"),
        ({}, {"formula": "visits ~ dose + (1|hours)"}, OptionError, "negative_binomial does not"),
        ({}, {}, OptionError, "negative_binomial needs to know"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(
    change: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    data = table().astype({"visits": float})
    for name, value in change.items():
        data.loc[0, name] = value
    with pytest.raises(error, match=message):
        prepare(data, Options(**options))
