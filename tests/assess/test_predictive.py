"""Posterior predictive checks: shares in closed form, and statistics that are missed."""

from typing import Any

import numpy as np
import pytest

from elbowroom.assess.predictive import TAIL, flat_predictions, predictive_checks


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_shares_are_those_of_the_statistics_known_distribution() -> None:
    """Of ten standard Normals: the mean is Normal(0, 1/10); the largest has distribution Φ^10."""
    observed = np.linspace(-1.0, 1.0, 10) + 0.2
    replicated = generator().normal(size=(4000, 10))
    shares, sentences = predictive_checks({"y": observed}, {"y": replicated})
    error = 4 * (0.25 / 4000) ** 0.5
    assert sentences == []
    assert shares["y.mean"] == pytest.approx(0.2635, abs=error)  # 1 - Φ(0.2 √10)
    assert shares["y.largest"] == pytest.approx(0.7055, abs=error)  # 1 - Φ(1.2)^10


@pytest.mark.parametrize(
    ("spoil", "statistics", "words"),
    [
        (lambda y: y + 3, "mean smallest largest", "mean, smallest value and largest value"),
        (lambda y: 4 * y, "sd smallest largest", "sd, smallest value and largest value"),
        (lambda y: np.where(y == y.max(), 9.0, y), "sd largest", "sd and largest value"),
        (lambda y: 0.01 * y, "sd smallest largest", "sd, smallest value and largest value"),
        (lambda y: np.where(y == y.max(), 4.0, y), "largest", "largest value"),
    ],
)
def test_statistics_that_the_model_misses_are_named(
    spoil: Any, statistics: str, words: str
) -> None:
    random = generator()
    observed = spoil(random.normal(size=40))
    shares, sentences = predictive_checks({"y": observed}, {"y": random.normal(size=(1000, 40))})
    assert sentences == [
        f"The model does not reproduce the {words} of 'y': compare the group "
        "posterior_predictive of posterior.nc with the data."
    ]
    missed = [name for name, share in shares.items() if min(share, 1 - share) < TAIL]
    assert missed == [f"y.{name}" for name in statistics.split()]


def test_one_number_and_constant_data_are_not_missed() -> None:
    assert predictive_checks({"y": np.array(3.0)}, {"y": np.zeros(100)}) == ({}, [])
    shares, sentences = predictive_checks({"y": np.ones(5)}, {"y": np.ones((100, 5))})
    assert set(shares.values()) == {0.5}
    assert sentences == []


def test_half_of_the_ties_lie_above_and_a_two_hundredth_is_the_limit() -> None:
    """Of 1,000 data sets whose mean is 1, four or five above the observed one, and two ties."""
    for above, missed in ((3, True), (4, False)):
        means = np.ones(1000)
        means[:above], means[-2:] = 3.0, 2.0
        replicated = means[:, None] + np.array([-1.0, 1.0])
        observed = {"y": np.array([[1.0], [3.0]])}
        shares, sentences = predictive_checks(observed, {"y": replicated.reshape(1000, 2, 1)})
        assert shares["y.mean"] == pytest.approx((above + 1) / 1000)
        assert shares["y.sd"] == 0.5
        assert any("mean" in sentence for sentence in sentences) == missed


def test_two_numbers_are_looked_at_and_one_is_not() -> None:
    observed = {"y": np.array([1, 2]), "one": np.array([3])}
    replicated = {"y": np.array([[0, 1], [5, 6]]), "one": np.zeros((2, 1))}
    shares, _ = predictive_checks(observed, replicated)
    assert set(shares) == {"y.mean", "y.sd", "y.smallest", "y.largest"}
    assert shares["y.mean"] == 0.5


def test_replicates_whose_squares_overflow_give_no_warning() -> None:
    replicated = generator().normal(size=(100, 5))
    replicated[7] = [1e200, -1e200, 0.0, 0.0, 0.0]
    shares, sentences = predictive_checks({"y": np.arange(5.0) - 2}, {"y": replicated})
    assert 0.0 < shares["y.sd"] < 1.0
    assert sentences == []


def test_flat_predictions_are_said_to_be_flat() -> None:
    random = np.random.default_rng(0)
    slope = np.linspace(-1.0, 1.0, 50)
    y = slope + 0.1 * random.normal(size=50)

    def explained(part: float) -> np.ndarray:
        """Draws whose means have this part of the variance of y."""
        return part**0.5 * slope * y.std() / slope.std() + random.normal(size=(400, 50))

    said = flat_predictions({"y": y}, {"y": explained(0.03)})
    assert said[0].startswith("The prediction of 'y' is nearly the same for every row")
    assert "% of the variance of 'y'" in said[0]
    assert flat_predictions({"y": y}, {"y": explained(0.08)}) == []
    # Of class numbers, and of several numbers a row, a variance says nothing.
    assert flat_predictions({"y": np.arange(50)}, {"y": explained(0.0)}) == []
    assert flat_predictions({"y": y[:, None]}, {"y": explained(0.0)[..., None]}) == []


def test_the_noise_of_few_draws_is_no_signal() -> None:
    random = np.random.default_rng(1)
    y = random.normal(size=50)
    assert flat_predictions({"y": y}, {"y": random.normal(size=(15, 50))})
