"""The hierarchical normal model beside a quadrature over its two population parameters."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import elbowroom as er
from elbowroom.errors import DataError, OptionError

GIVEN: dict[str, Any] = {"prior_mean": 0.0, "prior_sd": 5.0, "prior_scale": 5.0}


@cache
def exact() -> dict[str, np.ndarray]:
    """Mean and sd of each quantity for eight schools, by a grid over `mean` and log `sd`."""
    table = er.read_table("eight_schools")
    y, error = table["effect"].to_numpy(float), table["standard_error"].to_numpy(float)
    mean, sd = np.meshgrid(np.linspace(-25, 30, 400), np.exp(np.linspace(-9, 6, 600)))
    log_p = stats.norm(0, 5).logpdf(mean) + stats.halfcauchy(scale=5).logpdf(sd) + np.log(sd)
    for value, width in zip(y, error, strict=True):
        log_p += stats.norm(mean, np.hypot(width, sd)).logpdf(value)
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()

    def moments(centre: np.ndarray, variance: Any = 0.0) -> np.ndarray:
        first = (weights * centre).sum()
        return np.array([first, ((weights * (variance + centre**2)).sum() - first**2) ** 0.5])

    found = {"mean": moments(mean), "sd": moments(sd)}
    for name, value, width in zip(table["school"], y, error, strict=True):
        share = sd**2 / (sd**2 + width**2)
        found[f"effects[{name}]"] = moments(mean + share * (value - mean), share * width**2)
    found["new"] = moments(mean, sd**2 + 10.0**2)
    return found


@cache
def fitted(parameterisation: str) -> er.Fit:
    return er.fit(
        "hierarchical_normal", seed=1, draws=4000, parameterisation=parameterisation, **GIVEN
    )


@pytest.mark.parametrize("parameterisation", ["centered", "non_centered"])
def test_both_parameterisations_have_the_exact_moments(parameterisation: str) -> None:
    """Means within four standard errors of 1,500 draws, sds within a tenth."""
    fit = fitted(parameterisation)
    assert fit.verdict.trusted
    summary = fit.summary()
    assert set(summary.index) == set(exact()) - {"new"}
    for name, row in summary.iterrows():
        mean, sd = exact()[str(name)]
        assert abs(row["mean"] - mean) < 4 * sd / 1500**0.5, name
        assert row["sd"] == pytest.approx(sd, rel=0.1), name


def test_a_group_that_was_not_there_is_drawn_from_the_population() -> None:
    new = pd.DataFrame({"school": ["A", "Z"], "standard_error": [10.0, 10.0]})
    found = fitted("non_centered").predict(new)
    mean, sd = exact()["effects[A]"]
    expected = np.array([[mean, np.hypot(sd, 10)], exact()["new"]])
    error = expected[:, 1] / 4000**0.5
    assert (np.abs(found["mean"] - expected[:, 0]) < 4 * error).all()
    np.testing.assert_allclose(found["sd"], expected[:, 1], rtol=0.08)


def test_rows_of_several_groups_share_a_noise_that_is_found() -> None:
    random = np.random.default_rng(0)
    effects = random.normal(50, 4, size=12)
    group = np.repeat(np.arange(12), 15)
    table = pd.DataFrame({"clinic": group, "y": random.normal(effects[group], 2.0)})
    fit = er.fit("hierarchical_normal", table, response="y", group="clinic", seed=1)
    assert fit.verdict.trusted
    summary = fit.summary()
    means = table.groupby("clinic")["y"].mean().to_numpy()
    found = summary.loc[[f"effects[{i}]" for i in range(12)], "mean"].to_numpy()
    np.testing.assert_allclose(found, means, atol=0.3)  # hardly drawn to each other
    assert summary.loc["sigma", "mean"] == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        ({"y": [1.0, 2.0], "s": [1.0, 0.0]}, {"standard_error": "s"}, "'s', row 2: a standard"),
        ({"y": [1.0, 2.0], "g": ["a", None]}, {"group": "g"}, "'g', row 2: the group is missing"),
        ({"y": [1.0, 2.0]}, {"group": "clinic"}, "'clinic'"),
        ({"y": [1.0, 2.0]}, {"response": None}, "give --response COLUMN"),
        ({"y": [1.0, np.nan]}, {}, "'y'"),
    ],
)
def test_what_cannot_be_is_named(data: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, OptionError), match=message):
        er.fit("hierarchical_normal", pd.DataFrame(data), **{"response": "y", **given})
