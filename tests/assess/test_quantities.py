"""Test quantities: beside NumPy and SciPy, closed forms, and Kaplan and Meier."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from elbowroom.assess.quantities import (
    BINARY,
    COUNTS,
    LEVELS,
    NUMBERS,
    TRIALS,
    compared,
    kind_of,
    p_value,
    quantities_of,
    survival,
)


@pytest.mark.parametrize(
    ("kind", "values", "levels", "trials"),
    [
        (NUMBERS, [0.5, 1.0], (), None), (NUMBERS, [-1.0, 1.0], (), None),
        (COUNTS, [0.0, 7.0], (), None), (BINARY, [0.0, 1.0], (), None),
        (LEVELS, [0.0, 1.0], ("a", "b"), None), (TRIALS, [0.0, 1.0], (), np.ones(2)),
    ],
)  # fmt: skip
def test_the_kind_follows_from_what_is_observed_and_drawn(
    kind: str, values: list[float], levels: tuple[str, ...], trials: np.ndarray | None
) -> None:
    observed = np.array(values)
    assert kind_of(observed, observed[None], levels, trials) == kind


def test_each_quantity_is_that_of_scipy() -> None:
    random = np.random.default_rng(1)
    y, drawn = random.gamma(2, 1, 50), random.gamma(2, 1, (300, 50))
    found = compared(quantities_of(NUMBERS, y, drawn), y, drawn)
    exact = {
        "mean": np.mean, "sd": np.std, "smallest": np.min, "largest": np.max,
        "skewness": stats.skew,
    }  # fmt: skip
    for name, function in exact.items():
        assert np.isclose(found[name][0], function(y)), name
        assert np.allclose(found[name][1], [function(each) for each in drawn]), name
    counts = np.array([0.0, 0.0, 3.0, 5.0])
    own = compared(quantities_of(COUNTS, counts, counts[None]), counts, counts[None])
    assert [own[name][0] for name in ("mean", "share of zeros", "largest", "variance / mean")] == [
        2.0, 0.5, 5.0, 4.5 / 2,
    ]  # fmt: skip
    hits, trials = np.array([0.0, 2.0, 4.0]), np.array([2.0, 4.0, 4.0])
    made = quantities_of(TRIALS, hits, hits[None], trials=trials)
    shares = {name: value for name, (value, _) in compared(made, hits, hits[None]).items()}
    assert np.isclose(shares["proportion"], 0.6)
    assert np.isclose(shares["sd of proportions"], np.std([0, 0.5, 1]))
    assert np.isclose(shares["share of all"], 1 / 3)
    ill = np.array([0.0, 1.0, 1.0])
    levels = quantities_of(LEVELS, ill, ill[None], ("no", "yes"))
    assert {name: float(of(ill[None])[0]) for name, of in levels.items()} == {
        "proportion of no": 1 / 3, "proportion of yes": 2 / 3,
    }  # fmt: skip


def test_the_p_value_of_a_normal_mean_has_its_closed_form() -> None:
    """Of the largest of n rows of a known Normal, P(max > m) = 1 - Φ(m)^n."""
    random = np.random.default_rng(2)
    drawn = random.normal(size=(20_000, 30))
    largest = drawn.max(1)
    for m in (1.5, 2.0, 3.0):
        above = 1 - stats.norm.cdf(m) ** 30
        exact = 2 * min(above, 1 - above)
        assert abs(p_value(m, largest) - exact) < 4 * np.sqrt(exact / 20_000) + 1e-4


def test_probabilities_are_compared_with_proportions_bin_by_bin() -> None:
    random = np.random.default_rng(3)
    p = np.linspace(0.05, 0.6, 500)
    drawn = (random.random((2000, 500)) < p).astype(float)
    right, flat = (random.random(500) < p).astype(float), (random.random(500) < 0.5).astype(float)
    for y, wrong in ((right, False), (flat, True)):
        lines = compared(quantities_of(BINARY, y, drawn), y, drawn)
        assert len(lines) == 6
        for name, (_, replicates) in list(lines.items())[1:]:
            low, high = (float(name.split()[place]) for place in (3, 5))
            assert low - 0.01 < replicates.mean() < high + 0.01
            assert abs(high - low - 0.11) < 0.03
        assert (min(p_value(*line) for line in lines.values()) < 0.001) is wrong


def test_survival_is_that_of_scipy_and_replicates_are_censored_as_the_rows() -> None:
    random = np.random.default_rng(4)
    times, ends = random.weibull(2, 200), random.exponential(0.9, 200)
    seen, events = np.minimum(times, ends), times <= ends
    found = survival(seen, random.weibull(2, (1000, 200)), events, random)
    curve = stats.ecdf(stats.CensoredData.right_censored(seen, ~events)).sf
    for share, (own, replicates) in zip((0.75, 0.5, 0.25), found.values(), strict=True):
        assert own == curve.probabilities[curve.probabilities <= share][0]
        time = curve.quantiles[curve.probabilities <= share][0]
        exact = np.exp(-(time**2))
        assert abs(replicates.mean() - exact) < 0.015
        # Greenwood's variance, of the hazard 2u and censoring by an exponential of mean 0.9.
        hazard = quad(lambda u: 2 * u * np.exp(u**2 + u / 0.9), 0, time)[0]
        assert np.isclose(replicates.var(), exact**2 * hazard / 200, rtol=0.25)
        assert p_value(own, replicates) > 0.01
    wrong = survival(seen, 1.5 * random.weibull(2, (1000, 200)), events, random)
    assert min(p_value(*line) for line in wrong.values()) < 0.01
    every = survival(times, random.weibull(2, (1000, 200)), np.ones(200, bool), random)
    assert all(p_value(*line) > 0.01 for line in every.values())
