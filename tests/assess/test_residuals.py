"""Places of rows and residuals: beside SciPy's distributions, ArviZ and exact refits."""

from dataclasses import dataclass, replace

import arviz_stats
import numpy as np
import pytest
import xarray
from scipy import stats

from elbowroom.assess.residuals import (
    BETWEEN,
    LEFT,
    RIGHT,
    SHAPES,
    band_of,
    columns_of,
    dependence,
    expected_share,
    places_of,
    shapes_of,
)


@dataclass(frozen=True)
class Made:
    """How much is drawn."""

    draws: int = 20_000
    rows: int = 40
    sets: int = 400
    errors: float = 4.5
    """Standard errors of a share of draws, beyond which one of all rows would be by chance once in
    thousands of runs."""


MADE = Made()


def even(drawn: np.ndarray) -> np.ndarray:
    return np.full(drawn.shape, 1 / len(drawn))


def test_places_are_the_distribution_function_of_scipy() -> None:
    random = np.random.default_rng(1)
    mean = random.normal(size=MADE.rows)
    y = mean + random.normal(size=MADE.rows)
    drawn = mean + random.normal(size=(MADE.draws, MADE.rows))
    found = places_of(y, drawn, even(drawn), random)
    exact = stats.norm(mean, 1).cdf(y)
    error = np.sqrt(exact * (1 - exact) / MADE.draws) + 1 / MADE.draws
    assert (np.abs(found.u - exact) < MADE.errors * error).all()
    near = np.abs(y - mean) < 2
    assert np.allclose(found.residuals[near], (y - mean)[near], atol=0.15)


def test_residuals_of_counts_are_drawn_between_the_ends_of_a_step() -> None:
    """Dunn and Smyth's: uniform between the probabilities below and up to the count."""
    random = np.random.default_rng(2)
    y = random.poisson(2.0, MADE.sets)
    drawn = random.poisson(2.0, (4000, MADE.sets)).astype(float)
    u = places_of(y, drawn, even(drawn), random).u
    low, high = stats.poisson(2.0).cdf(y - 1), stats.poisson(2.0).cdf(y)
    slack = MADE.errors * 0.5 / np.sqrt(4000)
    assert ((u > low - slack) & (u < high + slack)).all()
    assert stats.kstest((u - low) / (high - low), "uniform").pvalue > 0.001
    again = places_of(y, drawn, even(drawn), random).u
    assert np.abs(again - u).max() > 0.1  # drawn anew


@pytest.mark.parametrize(
    ("status", "inside"), [(RIGHT, (0.5, 1.0)), (LEFT, (0.0, 0.5)), (BETWEEN, (0.5, 0.84))]
)
def test_a_censored_row_is_anywhere_within_what_is_known(
    status: int, inside: tuple[float, float]
) -> None:
    random = np.random.default_rng(3)
    drawn = np.tile(random.normal(size=(MADE.draws, 1)), MADE.sets)
    rows, upper = np.zeros(MADE.sets), np.ones(MADE.sets)
    known = np.full(MADE.sets, status)
    u = places_of(rows, drawn, even(drawn), random, known, upper).u
    assert stats.kstest(u, "uniform", (inside[0], inside[1] - inside[0])).pvalue > 0.001


def test_weighted_places_are_those_of_arviz() -> None:
    random = np.random.default_rng(4)
    mean = random.normal(size=2000) / 5  # of the posterior
    y = random.normal(size=MADE.rows)
    drawn = mean[:, None] + random.normal(size=(2000, MADE.rows))
    density = stats.norm(mean[:, None], 1).logpdf(y)
    dims = ("chain", "draw", "row")
    tree = xarray.DataTree.from_dict(
        {
            "posterior": xarray.Dataset({"mean": (dims[:2], mean[None])}),
            "posterior_predictive": xarray.Dataset({"y": (dims, drawn[None])}),
            "log_likelihood": xarray.Dataset({"y": (dims, density[None])}),
            "observed_data": xarray.Dataset({"y": (dims[2:], y)}),
        }
    )
    loo = arviz_stats.loo(tree, pointwise=True, reff=1.0)
    weights = np.exp(loo.log_weights.transpose(*dims).to_numpy()[0])
    found = places_of(y, drawn, weights / weights.sum(0), random)
    assert np.allclose(found.u, arviz_stats.loo_pit(tree)["y"], atol=2e-3)
    # Not those of rows that are left in:
    assert not np.allclose(found.u, places_of(y, drawn, even(drawn), random).u, atol=2e-3)


def test_a_band_and_shapes_flag_uniform_places_as_rarely_as_they_say() -> None:
    random = np.random.default_rng(5)
    sets = [random.random(60) for _ in range(MADE.sets)]
    band = band_of(sets[0], 0.9, random)
    outside = sum(replace(band, share=stats.ecdf(u).cdf.evaluate(band.at)).outside for u in sets)
    assert stats.binomtest(outside, MADE.sets, 0.1).pvalue > 0.001
    for name in SHAPES:
        p = [shapes_of(u)[name][1] for u in sets]
        assert stats.kstest(p, "uniform").pvalue > 0.001, name


@pytest.mark.parametrize(
    ("drawn", "seen"),
    [
        (stats.norm(0.5, 1), {"level": 1}),
        (stats.norm(0, 1.6), {"spread": 1}),
        (stats.norm(0, 0.6), {"spread": -1}),
        (stats.skewnorm(20, loc=-1.3, scale=1.65), {"skewness": 1}),
        (stats.t(1.6, scale=0.5), {"tails": 1}),
        (stats.uniform(-1.7, 3.4), {"tails": -1}),
    ],
)
def test_each_shape_is_seen_by_its_name(drawn: object, seen: dict[str, int]) -> None:
    """Rows of other distributions than the standard Normal that is predicted."""
    quantiles = (np.arange(500) + 0.5) / 500
    shapes = shapes_of(stats.norm.cdf(drawn.ppf(quantiles)))  # type: ignore[attr-defined]
    for name, sign in seen.items():
        value, p = shapes[name]
        assert p < 0.001
        assert np.sign(value) == sign


def test_dependence_is_the_f_test_of_scipy_and_sees_curves_and_levels() -> None:
    random = np.random.default_rng(6)
    x, levels = random.normal(size=300), random.choice([*"abc"], 300)
    noise = random.normal(size=300)
    for residuals in (noise, noise + (levels == "a")):
        found = dependence(residuals, columns_of(levels, tuple("abc")))
        exact = stats.f_oneway(*(residuals[levels == each] for each in "abc"))
        assert found is not None
        assert np.isclose(found[1], exact.pvalue, rtol=1e-6)
    columns = columns_of(x, None)
    curved, flat = dependence(noise + 0.4 * x**2, columns), dependence(noise, columns)
    assert curved is not None
    assert flat is not None
    assert curved[1] < 1e-4 < flat[1]
    sets = [dependence(random.normal(size=40), columns[:40]) for _ in range(MADE.sets)]
    shares = [each[0] for each in sets if each is not None]
    mean, low, high = expected_share(columns[:40], (0.05, 0.95))
    assert abs(np.mean(shares) - mean) < MADE.errors * np.std(shares) / np.sqrt(MADE.sets)
    assert abs(np.mean([low < each < high for each in shares]) - 0.9) < 0.07
    assert dependence(noise[:3], columns[:3]) is None
