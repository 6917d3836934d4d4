"""How often the stopping rule is wrong, on series whose trend is known."""

import numpy as np
import pytest

from elbowroom.inference.stopping import NEGLIGIBLE, trend

WINDOW = 200
SERIES = 1000
NORMAL_MISS = 0.0295
"""How often Student's t with 18 degrees of freedom is above 2, and flat noise not called flat."""


def share_flat(rises: float, correlation: float = 0.0) -> float:
    """The share of series called flat, whose windows differ by `rises` standard errors."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(SERIES, 2 * WINDOW))
    for t in range(1, 2 * WINDOW):
        noise[:, t] += correlation * noise[:, t - 1]
    # The standard error of the difference of two means of an autoregression.
    error = (2 / WINDOW) ** 0.5 / (1 - correlation)
    scale = 100.0  # far above the rise that is called negligible
    noise[:, WINDOW:] += rises * error
    found = [trend((scale * series).tolist(), WINDOW) for series in noise]
    return float(np.mean([each is not None and each.flat for each in found]))


def monte_carlo_error(rate: float) -> float:
    return 4 * (rate * (1 - rate) / SERIES) ** 0.5


def test_stationary_noise_is_flat_but_for_one_series_in_thirty() -> None:
    assert abs(1 - share_flat(0.0) - NORMAL_MISS) < monte_carlo_error(NORMAL_MISS)


def test_correlated_noise_is_flat_but_for_one_series_in_ten() -> None:
    """Batches of twenty steps with a correlation of 0.8 from step to step are not independent."""
    assert share_flat(0.0, correlation=0.8) > 0.9 - monte_carlo_error(0.1)


@pytest.mark.parametrize(("rises", "most"), [(4.0, 0.05), (8.0, 0.001)])
def test_a_rising_series_is_seldom_called_flat(rises: float, most: float) -> None:
    assert share_flat(rises) < most + monte_carlo_error(most)


def test_a_falling_series_is_flat() -> None:
    assert share_flat(-4.0) == 1.0


def test_the_standard_error_is_that_of_the_difference_of_means() -> None:
    series = np.random.default_rng(1).normal(size=20_000)
    found = trend(series.tolist(), 10_000)
    assert found is not None
    # A standard deviation from twenty batch means is known within a factor 1 ± 4 / √(2 · 18).
    assert 1 / 3 < found.standard_error / (2 / 10_000) ** 0.5 < 5 / 3
    assert abs(found.rise) < 4 * (2 / 10_000) ** 0.5


def test_a_rise_that_nobody_would_notice_is_flat() -> None:
    def step(rise: float) -> list[float]:
        return [0.0] * WINDOW + [rise] * WINDOW

    small, large = trend(step(NEGLIGIBLE / 2), WINDOW), trend(step(NEGLIGIBLE * 2), WINDOW)
    assert small is not None
    assert small.flat
    assert large is not None
    assert not large.flat


def test_only_the_last_two_windows_count() -> None:
    found = trend([-1e6] * 300 + [1.0] * 2 * WINDOW, WINDOW)
    assert found is not None
    assert found.rise == 0.0


def test_too_few_estimates_say_nothing() -> None:
    assert trend([1.0] * (2 * WINDOW - 1), WINDOW) is None
    assert trend([1.0] * 100, 9) is None
    assert trend([float("nan")] * 2 * WINDOW, WINDOW) is None


def test_a_skipped_step_does_not_silence_the_rule() -> None:
    """One bad step in every window must not keep a fit from ever converging."""
    series = np.random.default_rng(2).normal(size=1000)
    series[::150] = np.nan
    assert trend(series.tolist(), WINDOW) is not None
