"""The table of a comparison and the differences of posteriors, from made rows."""

from typing import Any

import numpy as np
import pytest
import xarray

from elbowroom.assess.compare import (
    DIFFERENCES,
    Row,
    best_reference,
    comparison_table,
    posterior_differences,
    which_to_take,
)
from elbowroom.assess.reference import labelled_scalars


def posterior(**quantities: Any) -> xarray.Dataset:
    return xarray.Dataset(
        {name: (("chain", "draw"), np.array([draws])) for name, draws in quantities.items()}
    )


def test_the_best_bound_comes_first_and_failures_last() -> None:
    rows = [
        Row("failed", {}, None, "no optimum."),
        Row("low", {"elbo": -9.0, "verdict": "not trusted"}, posterior()),
        Row("point", {"objective": "map"}, posterior()),
        Row("high", {"elbo": -2.0, "seconds": 3.0, "test_spread": 0.5}, posterior()),
        Row("other point", {"elbo": None}, posterior()),
        Row("as high", {"elbo": -2.0, "parameters": 7}, posterior()),
    ]
    table: Any = comparison_table(rows)
    assert table["guide"].tolist() == ["high", "as high", "low", "point", "other point", "failed"]
    assert table.index.tolist() == list(range(6))
    assert table["best"].tolist() == [True, True, False, False, False, False]  # a tie is a tie
    assert table["error"].tolist() == ["", "", "", "", "", "no optimum."]
    assert table["elbo"].tolist()[:3] == [-2.0, -2.0, -9.0]
    assert table["elbo"][3:].isna().all()
    assert table.columns.tolist() == [
        "guide", "best", "objective", "elbo", "elbo_se", "expected_log_likelihood", "kl_to_prior",
        "log_likelihood", "k_hat", "elpd_loo", "elpd_loo_se", "seconds", "parameters", "converged",
        "verdict", "test_spread", "error",
    ]  # fmt: skip
    cells = table.set_index("guide")
    assert cells.loc["high", ["seconds", "test_spread"]].tolist() == [3.0, 0.5]
    assert cells.loc["as high", "parameters"] == 7
    assert np.isnan(cells.loc["as high", "test_spread"])
    assert cells.loc["low", "verdict"] == "not trusted"


def test_a_column_that_no_method_has_is_left_out() -> None:
    table = comparison_table([Row("a", {"elbo": -1.0}, posterior()), Row("b", {}, None, "no.")])
    assert "test_spread" not in table
    assert "amortisation_gap" not in table


TRUSTED: dict[str, Any] = {"verdict": "trusted", "seconds": 2.0}
DOUBTFUL: dict[str, Any] = {"verdict": "not trusted", "seconds": 2.0}


def lines_of(*rows: tuple[str, dict[str, Any]]) -> list[Row]:
    return [Row(name, measures, posterior()) for name, measures in rows]


def test_the_star_goes_to_a_trusted_guide_although_another_has_a_higher_bound() -> None:
    high = ("high", {**DOUBTFUL, "elbo": -1.0, "elbo_se": 0.1})
    rows = lines_of(
        high,
        ("fair", {**TRUSTED, "verdict": "trusted after correction", "elbo": -5.0, "elbo_se": 0.3}),
        ("near", {**TRUSTED, "elbo": -5.9, "elbo_se": 0.4}),
        ("below", {**TRUSTED, "elbo": -6.1, "elbo_se": 0.4}),
        ("point", DOUBTFUL),
    )
    table: Any = comparison_table(rows)
    assert table["guide"].tolist() == ["fair", "near", "below", "high", "point"]
    # Two errors of the difference, twice √(0.3² + 0.4²) = 1: "near" ties, "below" does not.
    assert table["best"].tolist() == [True, True, False, False, False]
    assert best_reference(rows) == "fair"
    doubtful: Any = comparison_table(lines_of(high, ("low", {**DOUBTFUL, "elbo": -7.0})))
    assert doubtful["best"].tolist() == [True, False]
    points: Any = comparison_table(lines_of(("nuts", TRUSTED), high))
    assert points.set_index("guide")["best"].to_dict() == {"nuts": False, "high": True}


def test_bounds_known_exactly_tie_within_a_hundredth_of_a_nat() -> None:
    rows = lines_of(*((n, {**TRUSTED, "elbo": e}) for n, e in (("a", -1.0), ("b", -1.009))))
    assert comparison_table(rows)["best"].all()
    rows = lines_of(*((n, {**TRUSTED, "elbo": e}) for n, e in (("a", -1.0), ("b", -1.011))))
    assert comparison_table(rows)["best"].tolist() == [True, False]


def test_the_reference_is_nuts_or_a_trusted_guide_whose_draws_are_many() -> None:
    few = {**TRUSTED, "elbo": -1.0, "corrected_effective_sample_size": 399.0}
    many = {**TRUSTED, "elbo": -2.0, "corrected_effective_sample_size": 400.0}
    doubtful = {**DOUBTFUL, "elbo": 0.0, "corrected_effective_sample_size": 4000.0}
    rows = lines_of(("doubtful", doubtful), ("few", few), ("many", many))
    assert best_reference(rows) == "many"
    assert best_reference(rows[:2]) == "few"
    assert best_reference(rows[:1]) == "doubtful"
    assert best_reference([*rows, Row("nuts", TRUSTED, posterior())]) == "nuts"
    assert best_reference([*rows, Row("nuts", {}, None, "not mixed.")]) == "many"
    assert best_reference(lines_of(("map", DOUBTFUL))) is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((("a", {**TRUSTED, "elbo": -1.0}), ("b", DOUBTFUL)),
         "Take a: it is the only one that is trusted."),
        ((("a", {**TRUSTED, "elbo": -1.0}), ("b", {**TRUSTED, "elbo": -2.0})),
         "Take a: it is trusted, and its ELBO is the highest of the trusted guides."),
        ((("a", {**TRUSTED, "elbo": -1.0}), ("b", {**TRUSTED, "elbo": -1.0, "seconds": 0.5}),
          ("c", {**TRUSTED, "elbo": -1.0, "seconds": 3.0})),
         "Take b: it is trusted, a and c tie with it for the highest ELBO, and it was the fastest "
         "of these (0.5 s)."),
        ((("a", {**TRUSTED, "verdict": "trusted after correction", "elbo": -1.0}), ("b", DOUBTFUL)),
         "Take a: it is the only one that is trusted. Use its posterior, which is corrected, not "
         "the guide's own draws."),
        ((("nuts", TRUSTED), ("b", {**DOUBTFUL, "elbo": -1.0})),
         "Take nuts: its chains have mixed, and no guide is trusted."),
        ((("nuts", TRUSTED), ("b", {**TRUSTED, "elbo": -1.0})),
         "Take b: it is trusted, and its ELBO is the highest of the trusted guides."),
        ((("a", {**DOUBTFUL, "elbo": -1.0}), ("b", DOUBTFUL)),
         "Take none of them: no guide is trusted. Next: do this."),
        ((("a", {**DOUBTFUL, "test_log_density": -3.0}), ("b", DOUBTFUL),
          ("c", {**DOUBTFUL, "test_log_density": -2.5})),
         "No guide is trusted. c predicts the test rows best (-2.50 nats per row): take its "
         "predictions, not its posterior. Next: do this."),
    ],
)  # fmt: skip
def test_one_line_says_which_guide_to_take_and_why(rows: Any, said: str) -> None:
    assert which_to_take(comparison_table(lines_of(*rows)), "do this.") == said


def test_where_all_have_failed_there_is_nothing_to_take() -> None:
    assert which_to_take(comparison_table([Row("a", {}, None, "no.")])) == ""


def test_differences_are_of_quantities_that_both_have_in_the_best_one_s_sds() -> None:
    rows = [
        Row("wide", {}, posterior(a=[0.0, 8.0], own=[1.0, 2.0], still=[3.0, 3.0])),
        Row("failed", {}, None, "no."),
        Row("best", {}, posterior(a=[0.0, 4.0], still=[1.0, 1.0], never=[5.0, 7.0])),
    ]
    found: Any = posterior_differences(rows, "best")
    assert found[["guide", "quantity"]].to_numpy().tolist() == [
        ["wide", "a"], ["wide", "still"], ["best", "a"], ["best", "still"], ["best", "never"],
    ]  # fmt: skip
    assert found["mean"].tolist() == [4.0, 3.0, 2.0, 1.0, 6.0]
    assert found["sd"].tolist() == [4.0, 0.0, 2.0, 0.0, 1.0]
    # What the best one holds fixed has no sd to measure by.
    np.testing.assert_array_equal(found["mean_shift"], [1.0, np.nan, 0.0, np.nan, 0.0])
    np.testing.assert_array_equal(found["sd_ratio"], [2.0, np.nan, 1.0, np.nan, 1.0])
    # The share of the best one's two draws within the interval of the wide one's, 0.4 to 7.6.
    np.testing.assert_array_equal(found["coverage"], [0.5, np.nan, 0.0, np.nan, 0.0])
    assert found["lower"].tolist() == pytest.approx([0.4, 3.0, 0.2, 1.0, 5.1])
    assert found["upper"].tolist() == pytest.approx([7.6, 3.0, 3.8, 1.0, 6.9])
    assert found.columns.tolist() == DIFFERENCES
    assert found["corrected_mean"].isna().all()


def test_own_and_corrected_draws_are_beside_the_reference_s_corrected_ones() -> None:
    own, right = posterior(a=[-0.5, 0.5]), posterior(a=[-2.0, 2.0])
    rows = [
        Row("poor", {}, posterior(a=[1.0, 3.0]), corrected=posterior(a=[-3.0, 5.0])),
        Row("best", {}, own, corrected=right),
    ]
    found: Any = posterior_differences(rows, "best").set_index("guide")
    assert found["mean_shift"].to_dict() == {"poor": 1.0, "best": 0.0}
    assert found["sd_ratio"].to_dict() == {"poor": 0.5, "best": 0.25}
    assert found["corrected_mean_shift"].to_dict() == {"poor": 0.5, "best": 0.0}
    assert found["corrected_sd_ratio"].to_dict() == {"poor": 2.0, "best": 1.0}
    assert found["corrected_coverage"].to_dict() == {"poor": 1.0, "best": 0.0}
    assert found.loc["poor", ["corrected_mean", "corrected_sd"]].tolist() == [1.0, 4.0]


@pytest.mark.parametrize("best", ["none of them", "failed"])
def test_without_a_best_posterior_there_are_no_differences(best: str) -> None:
    rows = [Row("a", {}, posterior(x=[1.0, 2.0])), Row("failed", {}, None, "no.")]
    found = posterior_differences(rows, best)
    assert found.empty
    assert found.columns.tolist() == DIFFERENCES


def test_scalars_have_the_labels_of_all_their_dims_wherever_the_draws_are() -> None:
    values = np.arange(2 * 3 * 2 * 5).reshape(2, 3, 2, 5)
    whole = xarray.Dataset(
        {
            "w": (("row", "draw", "chain", "column"), values),
            "s": (("draw", "chain"), values[0, ..., 0]),
        },
        {"row": ["u", "v"], "column": [10, 20, 30, 40, 50]},
    )
    found = labelled_scalars(whole)
    assert list(found)[:6] == [
        "w[u, 10]",
        "w[u, 20]",
        "w[u, 30]",
        "w[u, 40]",
        "w[u, 50]",
        "w[v, 10]",
    ]
    assert len(found) == 11
    np.testing.assert_array_equal(found["w[v, 30]"], values[1, :, :, 2].T)  # (chains, draws)
    np.testing.assert_array_equal(found["s"], values[0, :, :, 0].T)


def test_nothing_to_compare_leaves_an_empty_table_of_differences() -> None:
    for row in (Row("failed", {}, None, "no."), Row("best", {}, posterior())):
        table = posterior_differences([row], "best")
        assert table.empty
        assert table.columns.tolist() == DIFFERENCES
