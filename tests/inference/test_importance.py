"""The Pareto shape of importance weights, on tails whose shape is known."""

import numpy as np
import pytest

from elbowroom.inference.importance import (
    effective_sample_size,
    k_hat_threshold,
    pareto_k_hat,
)

DRAWS = 4000
REPEATS = 20
TAIL = 3 * DRAWS**0.5
"""The number of weights that the shape is estimated from."""
PRIOR_COUNT, PRIOR_SHAPE = 10, 0.5
"""The weak prior of the estimate: ten observations of shape one half (Vehtari et al., 2024)."""


def pareto_log_weights(shape: float, seed: int) -> np.ndarray:
    """Logs of exact Pareto weights: their whole distribution has the tail's shape."""
    return shape * np.random.default_rng(seed).exponential(size=DRAWS)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0, 1.5])
def test_the_shape_of_a_pareto_tail_is_found(shape: float) -> None:
    found = [pareto_k_hat(pareto_log_weights(shape, seed)) for seed in range(REPEATS)]
    wanted = (TAIL * shape + PRIOR_COUNT * PRIOR_SHAPE) / (TAIL + PRIOR_COUNT)
    error = (1 + shape) / (TAIL * REPEATS) ** 0.5  # the asymptotic error of maximum likelihood
    # Four standard errors, and as much again for the bias of a finite tail.
    assert abs(np.mean(found) - wanted) < 4 * error + 0.05


def test_a_constant_factor_changes_nothing() -> None:
    weights = pareto_log_weights(0.6, 0)
    assert pareto_k_hat(weights + 3000) == pytest.approx(pareto_k_hat(weights), abs=1e-6)


def test_the_right_tail_counts_and_not_the_left() -> None:
    """Few huge weights spoil an estimate; few tiny ones do not."""
    heavy = pareto_log_weights(1.5, 0)
    assert pareto_k_hat(heavy) > 1.0
    assert pareto_k_hat(-heavy) < 0.3


def test_a_guide_narrower_than_its_target_is_seen() -> None:
    """q = Normal(0, s) for p = Normal(0, 1) has a tail of shape 1 - s²; a wider one has none."""
    z = np.random.default_rng(0).normal(size=DRAWS)

    def log_weights(s: float) -> np.ndarray:
        return -0.5 * (s * z) ** 2 + 0.5 * z**2 + np.log(s)

    assert pareto_k_hat(log_weights(0.4)) > 0.7
    assert pareto_k_hat(log_weights(1.5)) < 0.3


def test_weights_that_are_not_numbers_are_never_trusted() -> None:
    weights = np.random.default_rng(0).normal(size=1000)
    for bad in (np.nan, np.inf):
        assert pareto_k_hat(np.append(weights, bad)) == np.inf
    assert pareto_k_hat(np.full(1000, 2.5)) == -np.inf


def test_draws_of_zero_density_are_allowed_but_one_draw_with_all_the_weight_is_not() -> None:
    random = np.random.default_rng(0).normal(size=900)
    assert pareto_k_hat(np.concatenate([random, np.full(100, -np.inf)])) < 0.7
    assert pareto_k_hat(np.append(np.full(999, -np.inf), 3.0)) > 0.7


def test_no_draw_with_any_density_is_never_trusted() -> None:
    assert pareto_k_hat(np.full(1000, -np.inf)) == np.inf


@pytest.mark.parametrize(
    ("draws", "threshold"), [(100, 0.5), (1000, 2 / 3), (2000, 0.69706), (2200, 0.7), (10**5, 0.7)]
)
def test_thresholds(draws: int, threshold: float) -> None:
    assert k_hat_threshold(draws) == pytest.approx(threshold, abs=1e-4)


def test_effective_sample_size_of_known_weights() -> None:
    assert effective_sample_size(np.full(50, -700.0)) == pytest.approx(50)
    assert effective_sample_size(np.log([3.0, 1.0, 1e-300])) == pytest.approx(16 / 10)
    assert effective_sample_size(np.array([0.0, -np.inf, -np.inf])) == 1.0
