"""A posterior beside a reference: the numbers against closed forms, and what is said of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray
from scipy.stats import norm

from elbowroom.assess.reference import (
    AGREEMENT,
    COLUMNS,
    compare_with_reference,
    reference_sentence,
)
from elbowroom.engines.nuts.sampler import NutsDraws
from elbowroom.errors import DataError

DRAWS = 4000
EFFECTIVE = 600
"""Of a reference whose draws are few, so that its error is large."""


def quantities(mean: float, sd: float, chains: int = 4) -> np.ndarray:
    """Draws of a Normal without Monte Carlo error, in an order without autocorrelation."""
    at = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS, mean, sd)
    return np.random.default_rng(chains).permutation(at).reshape(chains, -1)


def posterior(**quantities: np.ndarray) -> xarray.Dataset:
    dims = ("chain", "draw", "column")
    return xarray.Dataset(
        {name: (dims[: draws.ndim], draws) for name, draws in quantities.items()},
        {"column": ["bmi", "bp"]},
    )


def nuts(divergences: int = 0) -> NutsDraws:
    """A run whose own coordinates say nothing: the quantities in the table count."""
    unknown = np.full(1, np.nan)
    points = np.zeros((4, DRAWS // 4, 1))
    return NutsDraws(points, divergences, unknown, unknown, 1.0, "nutpie", "complete")


def line(table: pd.DataFrame, quantity: str = "b") -> Any:
    return table.set_index("quantity").loc[quantity]


def test_every_number_has_its_closed_form() -> None:
    """Normal(0.6, 1.5) beside Normal(0, 1), in units of ten."""
    found = posterior(b=10 * quantities(0.6, 1.5, chains=1))
    numbers = line(compare_with_reference(found, posterior(b=10 * quantities(0.0, 1.0))))
    # The ends of a tail are a draw's distance off.
    assert numbers["mean_shift"] == pytest.approx(0.6, abs=1e-3)
    assert numbers["sd_ratio"] == pytest.approx(1.5, abs=1e-3)
    reach = 1.5 * norm.ppf(0.95)
    coverage = norm.cdf(0.6 + reach) - norm.cdf(0.6 - reach)
    assert numbers["coverage"] == pytest.approx(coverage, abs=2 / DRAWS)
    # W1 of two Normals is E|shift + (ratio - 1) z|: the mean of a folded Normal.
    folded = 0.5 * np.sqrt(2 / np.pi) * np.exp(-0.5 * 1.2**2) + 0.6 * (1 - 2 * norm.cdf(-1.2))
    assert numbers["wasserstein"] == pytest.approx(folded, abs=2e-3)
    # Of means of 4,000 independent draws, up to the noise of their effective sample sizes.
    error = np.hypot(1.5, 1.0) / DRAWS**0.5
    assert numbers["mean_shift_error"] == pytest.approx(error, rel=0.2)
    assert numbers["log_ratio_error"] == pytest.approx(1 / DRAWS**0.5, rel=0.2)
    assert numbers["r_hat"] == pytest.approx(1.0, abs=5e-3)


def test_shapes_that_means_and_sds_do_not_see_are_seen() -> None:
    two_lumps = np.sign(quantities(0.0, 1.0))
    numbers = line(
        compare_with_reference(posterior(b=quantities(0.0, 1.0)), posterior(b=two_lumps))
    )
    assert numbers["mean_shift"] == pytest.approx(0.0, abs=1e-9)
    assert numbers["sd_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert numbers["coverage"] == 1.0
    # E| |z| - 1 | for a standard Normal.
    assert numbers["wasserstein"] == pytest.approx(
        4 * norm.pdf(1) - 2 * norm.pdf(0) + 4 * norm.cdf(1) - 3, abs=2e-3
    )


def test_a_point_beside_a_reference_that_varies_has_no_sd() -> None:
    one = np.ones((4, DRAWS // 4))
    table = compare_with_reference(posterior(a=one), posterior(a=quantities(1.0, 1.0)))
    assert table["sd_ratio"].tolist() == [0.0]


def test_labels_are_matched_by_name_and_constants_by_value() -> None:
    pair = np.stack([quantities(0.0, 1.0), quantities(5.0, 1.0)], axis=-1)
    one = np.ones((4, DRAWS // 4))
    found = posterior(fixed=one, moved=2 * one, b=pair, only_here=one).isel(column=[1, 0])
    table = compare_with_reference(found, posterior(b=pair, fixed=one, moved=one))
    assert table["quantity"].tolist() == ["b[bmi]", "b[bp]", "fixed", "moved"]
    assert table["mean_shift"].tolist() == [0.0, 0.0, 0.0, np.inf]
    assert table["sd_ratio"].tolist() == [1.0, 1.0, 1.0, 1.0]
    with pytest.raises(DataError, match="no quantity in common"):
        compare_with_reference(posterior(a=one), posterior(b=one))


@pytest.mark.parametrize(
    ("mean", "sd", "words"),
    [
        (0.1, 1.1, None),
        (-0.8, 1.0, "the mean of b is too low by 0.8 sds of NUTS"),
        (0.0, 0.5, "the sd of b is 0.5 times that of NUTS"),
        (
            0.9,
            2.0,
            "the mean of b is too high by 0.9 sds of NUTS and the sd of b is 2 times that of NUTS",
        ),
    ],
)
def test_the_quantity_that_is_off_is_named(mean: float, sd: float, words: str | None) -> None:
    right = quantities(3.0, 2.0)
    found = posterior(a=right, b=quantities(mean, sd, chains=1).reshape(4, -1))
    table = compare_with_reference(found, posterior(a=right, b=quantities(0.0, 1.0)))
    said = reference_sentence(table, nuts())
    assert said is not None
    assert said[1] == (words is None)
    assert (words or "agrees with NUTS (R-hat 1.00") in said[0]


def test_a_point_and_what_is_not_finite_do_not_agree() -> None:
    reference = posterior(b=quantities(0.0, 1.0))
    for value in (0.0, np.nan, np.inf):
        table = compare_with_reference(posterior(b=np.full((1, 100), value)), reference)
        said = reference_sentence(table, nuts())
        assert said is not None
        assert not said[1]


def test_a_distance_within_the_reference_s_error_is_no_distance() -> None:
    """Off by a little more than is usable: many draws can tell, few cannot."""
    shift, random = AGREEMENT.distance + 0.06, np.random.default_rng(0)
    for draws, agrees in ((EFFECTIVE, True), (20 * EFFECTIVE, False)):
        few = random.normal(size=(4, draws // 4))
        few = (few - few.mean()) / few.std()
        table = compare_with_reference(posterior(b=few + shift), posterior(b=few))
        said = reference_sentence(table, nuts())
        assert said is not None
        assert said[1] == agrees


def test_a_reference_that_has_not_converged_says_nothing() -> None:
    right = quantities(0.0, 1.0)
    apart = right + np.array([0.0, 0.0, 1.0, 1.0])[:, None]
    for unreliable in (apart, right[:, :80], right[:, :0]):
        table = compare_with_reference(posterior(b=right), posterior(b=unreliable))
        assert reference_sentence(table, nuts()) is None
    table = compare_with_reference(posterior(b=right), posterior(b=right))
    assert reference_sentence(table, nuts(divergences=DRAWS // 50)) is None
    few = reference_sentence(table, nuts(divergences=3))
    assert few is not None
    assert "3 divergences" in few[0]


def test_without_a_quantity_in_common_both_are_listed() -> None:
    one = np.ones((4, 10))
    with pytest.raises(DataError, match=r"posterior \(a, c\) and the reference \(b, d\)"):
        compare_with_reference(posterior(a=one, c=one), posterior(b=one, d=one))
    with pytest.raises(DataError, match=r"posterior \(empty\) and the reference \(b\)"):
        compare_with_reference(posterior(), posterior(b=one))
    with pytest.raises(DataError, match=r"posterior \(a\) and the reference \(empty\)"):
        compare_with_reference(posterior(a=one), posterior())


@pytest.mark.parametrize(("draws", "known"), [(3, False), (4, True)])
def test_what_has_no_error_to_be_told_adds_none(draws: int, known: bool) -> None:
    """A point, and a few draws: the error is the reference's alone."""
    reference = posterior(b=quantities(0.0, 1.0))
    alone = line(compare_with_reference(posterior(b=np.zeros((1, 100))), reference))
    assert alone["mean_shift_error"] == pytest.approx(DRAWS**-0.5, rel=0.2)
    few = np.resize([-1.0, 1.0, 0.5, 2.0], (1, draws))
    found = line(compare_with_reference(posterior(b=few), reference))
    assert (found["mean_shift_error"] > 1.5 * alone["mean_shift_error"]) == known
    assert (found["log_ratio_error"] > 1.5 * DRAWS**-0.5) == known
    if not known:
        assert found["mean_shift_error"] == alone["mean_shift_error"]
        assert np.isfinite(found["log_ratio_error"])


AGREES: dict[str, Any] = {
    "quantity": "b", "mean_shift": 0.1, "mean_shift_error": 0.0, "sd_ratio": 1.0,
    "log_ratio_error": 0.0, "coverage": 0.9, "wasserstein": 0.0, "r_hat": 1.0,
    "effective": 1000.0,
}  # fmt: skip


def said_of(*lines: dict[str, Any], divergences: int = 0) -> tuple[str, bool] | None:
    """What is said of quantities in the lines, with 400 draws of three coordinates."""
    table = pd.DataFrame([{**AGREES, **line} for line in lines], columns=COLUMNS)
    run = replace(nuts(divergences), points=np.zeros((4, 100, 3)))
    return reference_sentence(table, run)


@pytest.mark.parametrize(
    ("changed", "reliable"),
    [
        ({}, True),
        ({"r_hat": 1.01}, True),
        ({"r_hat": 1.011}, False),
        ({"r_hat": np.nan}, False),
        ({"effective": 400.0}, True),
        ({"effective": 399.0}, False),
        ({"effective": np.nan}, False),
    ],
)
def test_each_quantity_of_the_reference_has_to_be_reliable(
    changed: dict[str, Any], reliable: bool
) -> None:
    assert (said_of({}, changed) is not None) == reliable
    assert (said_of(changed, {}) is not None) == reliable


def test_one_divergence_of_a_hundred_draws_is_the_most() -> None:
    said = said_of({}, divergences=4)
    assert said is not None
    assert "(R-hat 1.000, 1,000 effective draws, 4 divergences)" in said[0]
    assert said_of({}, divergences=5) is None


def test_constants_are_not_asked_for_convergence_unless_they_have_moved() -> None:
    fixed = {"quantity": "c", "mean_shift": 0.0, "sd_ratio": 1.0, "r_hat": np.nan,
             "effective": np.nan}  # fmt: skip
    assert said_of(fixed) is None  # nothing varies
    said = said_of(fixed, {"mean_shift": -0.25, "sd_ratio": 0.8})
    assert said is not None
    assert said[1]
    assert "its means are within 0.25 sds of NUTS, and its sds within a factor of 1.25." in said[0]
    for moved in ({"mean_shift": np.inf}, {"sd_ratio": np.inf}):
        assert said_of({}, {**fixed, **moved}) is None


@pytest.mark.parametrize(
    ("changed", "agrees"),
    [
        ({"mean_shift": 0.3}, True),
        ({"mean_shift": -0.31}, False),
        ({"mean_shift": 0.69, "mean_shift_error": 0.2}, True),
        ({"mean_shift": 0.71, "mean_shift_error": 0.2}, False),
        ({"sd_ratio": 1.349}, True),
        ({"sd_ratio": 1.351}, False),
        ({"sd_ratio": 0.742}, True),
        ({"sd_ratio": 0.740}, False),
        ({"sd_ratio": np.exp(0.69), "log_ratio_error": 0.2}, True),
        ({"sd_ratio": np.exp(-0.71), "log_ratio_error": 0.2}, False),
        ({"mean_shift": np.nan}, False),
    ],
)
def test_what_is_beyond_three_tenths_and_two_errors_differs(
    changed: dict[str, Any], agrees: bool
) -> None:
    said = said_of({"quantity": "a"}, changed)
    assert said is not None
    assert said[1] is agrees
    assert agrees or " of b is " in said[0]


def test_the_one_that_is_most_beyond_its_error_is_named() -> None:
    said = said_of(
        {"quantity": "unsure", "mean_shift": 2.0, "mean_shift_error": 0.8},
        {"quantity": "sure", "mean_shift": -0.9, "mean_shift_error": 0.1, "sd_ratio": 0.25},
        {"quantity": "wide", "sd_ratio": 3.0},
    )
    assert said is not None
    assert said[0].partition("): ")[2] == (
        "the mean of sure is too low by 0.9 sds of NUTS and the sd of sure is 0.25 times that of "
        "NUTS."
    )
