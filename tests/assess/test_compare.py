"""The table of a comparison and the differences of posteriors, from made rows."""

from typing import Any

import numpy as np
import pytest
import xarray

from elbowroom.assess.compare import (
    Row,
    comparison_table,
    labelled_scalars,
    posterior_differences,
)


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
    assert table["best"].tolist() == [True, False, False, False, False, False]
    assert table["error"].tolist() == ["", "", "", "", "", "no optimum."]
    assert table["elbo"].tolist()[:3] == [-2.0, -2.0, -9.0]
    assert table["elbo"][3:].isna().all()
    assert table.columns.tolist() == [
        "guide", "best", "objective", "elbo", "elbo_se", "log_likelihood", "k_hat", "elpd_loo",
        "elpd_loo_se", "seconds", "parameters", "converged", "verdict", "test_spread", "error",
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
    assert found.columns.tolist() == ["guide", "quantity", "mean", "sd", "mean_shift", "sd_ratio"]


@pytest.mark.parametrize("best", ["none of them", "failed"])
def test_without_a_best_posterior_there_are_no_differences(best: str) -> None:
    rows = [Row("a", {}, posterior(x=[1.0, 2.0])), Row("failed", {}, None, "no.")]
    found = posterior_differences(rows, best)
    assert found.empty
    assert found.columns.tolist() == ["guide", "quantity", "mean", "sd", "mean_shift", "sd_ratio"]


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
    names = ["guide", "quantity", "mean", "sd", "mean_shift", "sd_ratio"]
    for row in (Row("failed", {}, None, "no."), Row("best", {}, posterior())):
        table = posterior_differences([row], "best")
        assert table.empty
        assert table.columns.tolist() == names
