"""Quantities of weighted draws that are not resolved: which are named, and which are not."""

import numpy as np
import pytest

from elbowroom.assess.resolution import RESOLUTION, _from_the_farthest, _tail, unresolved_quantities
from elbowroom.density.importance import pareto_k_hat

DRAWS = 4000
EQUAL = np.full(DRAWS, 1 / DRAWS)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_heavy_tails_are_named_and_light_ones_are_not() -> None:
    random = generator()
    values = {
        "normal": random.normal(size=DRAWS),
        "uniform": random.uniform(size=DRAWS),
        "exponential": random.exponential(size=DRAWS),
        "pair": np.stack([random.normal(size=DRAWS), random.standard_cauchy(DRAWS)], axis=1),
        "negative": -random.pareto(1.0, size=DRAWS),
        "constant": np.full((DRAWS, 2), 3.0),
    }
    shapes, sentences = unresolved_quantities(values, EQUAL)
    assert [sentence.split(" cannot")[0] for sentence in sentences] == [
        "The sd of pair[1]",
        "The sd of negative",
    ]
    assert min(shapes["pair[1]"], shapes["negative"]) > RESOLUTION.tail_shape
    assert "uniform" not in shapes
    assert shapes.get("exponential", 0.0) < RESOLUTION.tail_shape


@pytest.mark.parametrize("freedom", [1.0, 1.5])
def test_a_t_without_a_variance_is_named_by_nearly_every_seed(freedom: float) -> None:
    """Its tails have shape 1 / freedom, above one half."""
    named = [
        len(unresolved_quantities({"x": generator(s).standard_t(freedom, DRAWS)}, EQUAL)[1])
        for s in range(20)
    ]
    assert sum(named) >= 18


@pytest.mark.parametrize("freedom", [5.0, 30.0])
def test_a_t_with_a_variance_is_not(freedom: float) -> None:
    named = [
        len(unresolved_quantities({"x": generator(s).standard_t(freedom, DRAWS)}, EQUAL)[1])
        for s in range(20)
    ]
    assert sum(named) <= 2


def test_a_sd_that_hangs_on_a_few_draws_is_named() -> None:
    rare = np.zeros(DRAWS)
    rare[:3] = 1.0
    _, sentences = unresolved_quantities({"rare": rare}, EQUAL)
    # Three of 4000: the relative error of the sd is 1 / (2 √3).
    assert "heavy tail" in sentences[0]
    assert "standard error of the sd is 29%" in sentences[0]


def test_a_sd_with_a_large_error_alone_is_not_said_to_have_a_heavy_tail() -> None:
    few = np.full(20, 1 / 20)
    _, sentences = unresolved_quantities({"x": generator().normal(size=20)}, few)
    assert len(sentences) == 1
    assert sentences[0].startswith("The sd of x cannot be estimated well: the relative standard ")


def test_weights_count() -> None:
    """A Cauchy's draws weighted as a Normal's have a sd; a Normal's far overweighted have none."""
    random = generator()
    x = random.standard_cauchy(DRAWS)
    weights = np.exp(-0.5 * x**2) * (1 + x**2)
    assert unresolved_quantities({"x": x}, weights / weights.sum())[1] == []
    y = 0.5 + 5 * random.standard_normal(DRAWS)
    weights = np.exp(0.5 * ((y - 0.5) / 5) ** 2 + 0.2 * np.abs(y))
    _, sentences = unresolved_quantities({"y": y}, weights / weights.sum())
    assert len(sentences) == 1


def test_infinite_values_are_named() -> None:
    values = generator().normal(size=DRAWS)
    values[3] = np.inf
    _, sentences = unresolved_quantities({"x": values}, EQUAL)
    assert sentences == ["The sd of x is not known: some of its draws are infinite."]


def test_a_draw_whose_square_overflows_is_named_without_a_warning() -> None:
    values = generator().normal(size=DRAWS)
    values[3] = 1e200
    shapes, sentences = unresolved_quantities({"x": values}, EQUAL)
    assert len(sentences) == 1
    assert shapes["x"] > 1


@pytest.mark.parametrize(("far", "looked_at"), [(6.0, False), (6.05, True)])
def test_a_tail_that_ends_before_six_sds_is_not_looked_at(far: float, looked_at: bool) -> None:
    """One draw, whose part of the mean and the sd is in the closed form of its distance."""
    values = np.resize([-1.0, 1.0], DRAWS)
    values[0] = far
    reach = (far - values.mean()) / values.std()
    assert (reach > 6.0) == looked_at
    assert abs(reach - 6.0) < 0.05
    shapes, sentences = unresolved_quantities({"x": values, "elsewhere": 100 + values}, EQUAL)
    assert set(shapes) == ({"x", "elsewhere"} if looked_at else set())
    assert sentences == []


def test_a_constant_has_no_sd_to_resolve_and_the_least_variation_has_one() -> None:
    """Of numbers below one, a sd of 1e-12 is rounding; of larger ones, 1e-12 of their size."""
    lone = np.zeros(DRAWS)
    lone[0] = DRAWS**0.5  # one draw of sd one, whose relative standard error is a half
    for size in (0.01, 1.0, 1e6):
        still = size + 0.8e-12 * max(size, 1.0) * lone
        assert unresolved_quantities({"x": still}, EQUAL) == ({}, [])
    for small in (1.5e-12, 1e-6):
        assert len(unresolved_quantities({"x": small * lone}, EQUAL)[1]) == 1


def test_of_the_farthest_thousandth_of_the_mass_the_share_of_the_variance() -> None:
    """Six draws at ±a among ±1: four of 4,400 are the thousandth, in whichever order."""
    values = np.resize([-1.0, 1.0], 4400)
    values[:6] = [-9.0, 9.0, -9.0, 9.0, -9.0, 9.0]
    expected = 4 * 81 / (6 * 81 + 4394)
    share = _from_the_farthest(generator().permutation(values) + 100.0, np.full(4400, 1 / 4400))
    assert share == pytest.approx(expected)
    # A draw that weighs just that much counts; those that weigh more do not.
    weights = np.array([0.499, 0.5, 0.001])
    column = np.array([-1.0, 1.0, 10.0])
    mean = weights @ column
    square = (column - mean) ** 2
    weights_of_far = 0.001 * square[2] / (weights @ square)
    assert _from_the_farthest(column, weights) == pytest.approx(weights_of_far)


def pareto(shape: float, weights: np.ndarray) -> np.ndarray:
    """Quantiles of a Pareto tail at the middles of the weights' cumulative sums."""
    at = np.cumsum(weights) - weights / 2
    return (1 - at) ** -shape


@pytest.mark.parametrize("shape", [0.3, 0.8])
def test_the_tail_s_shape_is_that_of_a_pareto_whatever_its_side_and_weights(shape: float) -> None:
    even = pareto(shape, EQUAL)
    # The same distribution by draws that are ten times as dense in the tail, and weigh a tenth.
    uneven = np.concatenate([np.full(2000, 1 / 2200), np.full(2000, 1 / 22_000)])
    expected = _tail(even, EQUAL)
    assert expected == pytest.approx(shape, abs=0.05)
    order = generator().permutation(DRAWS)
    assert _tail(-even[order], EQUAL) == pytest.approx(expected, abs=1e-9)
    found = _tail(pareto(shape, uneven)[order], uneven[order])
    assert found == pytest.approx(expected, abs=0.02)


def test_draws_count_as_independent_ones_of_the_tail_that_smoothing_takes() -> None:
    """Draws in order are no chain: their shape is that of weights of the same sizes."""
    exponential = -np.log1p(-(np.arange(DRAWS) + 0.5) / DRAWS)
    assert _tail(exponential, EQUAL) == pytest.approx(pareto_k_hat(np.log(exponential)), abs=1e-6)
