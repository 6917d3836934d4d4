"""Models side by side: ranks and weights beside ArviZ, sentences, and observations that differ."""

from dataclasses import replace
from typing import Any

import arviz_stats
import numpy as np
import pandas as pd
import pytest
import xarray
from scipy.stats import norm

from elbowroom.assess.compare_models import (
    Candidate,
    Observed,
    check_same_observations,
    models_table,
    remarks_on,
    rows_table,
    which_model,
)
from elbowroom.assess.measures import rows_left_out
from elbowroom.assess.verdict import CORRECTED, NOT_TRUSTED, TRUSTED
from elbowroom.errors import DataError

Y = np.random.default_rng(0).normal(size=120)


def tree(mean: float = 0.0, sd: float = 1.0, seed: int = 1) -> xarray.DataTree:
    """Draws of a level about a mean, and the log densities of the rows."""
    level = np.random.default_rng(seed).normal(mean, 0.1, size=(1, 1000))
    log_likelihood = norm.logpdf(Y, level[..., None], sd)
    return xarray.DataTree.from_dict({
        "/posterior": xarray.Dataset({"level": (("chain", "draw"), level)}),
        "/log_likelihood": xarray.Dataset({"y": (("chain", "draw", "rows"), log_likelihood)}),
    })  # fmt: skip


def model(name: str, verdict: str = TRUSTED, **given: Any) -> Candidate:
    found = rows_left_out(tree(**given))
    assert found is not None
    return Candidate(name, found, verdict)


def high(candidate: Candidate, **rows: float) -> Candidate:
    """The same with other values of Pareto's k, by row."""
    k = candidate.loo.pareto_k.copy(deep=True)
    for row, value in rows.items():
        k[int(row.removeprefix("row"))] = value
    loo = rows_left_out(tree())
    assert loo is not None
    loo.pareto_k = k
    return replace(candidate, loo=loo)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, which ArviZ uses
def test_numbers_are_those_of_arviz() -> None:
    given: dict[str, Any] = {"right": {}, "wide": {"sd": 1.5}, "off": {"mean": 0.4}}
    table, said = models_table([model(name, **each) for name, each in given.items()])
    found = arviz_stats.compare({name: tree(**each) for name, each in given.items()})
    assert table["model"].tolist() == found.index.tolist()
    assert table["rank"].tolist() == [1, 2, 3]
    for own, theirs in (
        ("elpd_loo", "elpd"), ("elpd_loo_se", "se"), ("elpd_diff", "elpd_diff"),
        ("elpd_diff_se", "dse"), ("p_loo", "p"),
    ):  # fmt: skip
        assert table[own].to_numpy() == pytest.approx(found[theirs].to_numpy(), rel=1e-9)
    assert table["weight"].to_numpy() == pytest.approx(found["weight"].to_numpy(), abs=1e-4)
    assert not said


def test_rows_whose_densities_float64_has_as_zero_have_weights() -> None:
    """Of a thousand nats each, as of images."""
    models = [model("a"), model("b", mean=0.3)]
    usual = models_table(models)[0]["weight"]
    for each in models:
        each.loo.elpd_i = each.loo.elpd_i - 1000.0
    assert models_table(models)[0]["weight"].to_numpy() == pytest.approx(usual.to_numpy(), abs=1e-6)


def test_a_model_that_is_not_trusted_is_never_first() -> None:
    poor = model("poor", NOT_TRUSTED)
    table, _ = models_table([poor, model("off", mean=0.4), model("wide", CORRECTED, sd=1.5)])
    assert table["model"].iloc[-1] == "poor"
    assert table["elpd_diff"].iloc[-1] < 0
    assert table["rank"].isna().tolist() == table["weight"].isna().tolist() == [False, False, True]
    assert which_model(table).startswith(f"Take '{table['model'].iloc[0]}'")
    said = remarks_on([poor, model("off", mean=0.4)], table)
    assert said == [
        "'poor' is not trusted, so it has no rank and no weight; its elpd may be wrong, though it "
        f"is above that of '{table['model'].iloc[0]}'."
    ]


def test_where_no_model_is_trusted_none_is_to_be_taken() -> None:
    models = [model("a", NOT_TRUSTED), model("b", NOT_TRUSTED, mean=0.4)]
    table, _ = models_table(models)
    assert which_model(table) == "Take none of them: no model is trusted."
    assert remarks_on(models, table)[0] == "'a' is not trusted."


def table_of(*differences: tuple[float, float]) -> pd.DataFrame:
    names = "abcd"[: len(differences) + 1]
    below, errors = zip((0.0, 0.0), *differences, strict=True)
    return pd.DataFrame({
        "model": list(names), "elpd_diff": below, "elpd_diff_se": errors, "rows": 200,
        "verdict": TRUSTED,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([(10.0, 4.9)], "its elpd is 10.0 ± 4.9 nats above that of 'b', the next, which is more"),
        ([(10.0, 5.1)], "or 'b': 200 rows cannot tell them apart, as it is higher by 10.0 ± 5.1 "
                        "nats, less than twice the standard error."),
        ([(3.9, 0.1)], "higher by 3.9 ± 0.1 nats, less than 4 nats."),
        ([(1.0, 2.0), (20.0, 3.0)], "or 'b': 200 rows cannot tell them apart, as it is higher by "
                                    "1.0 ± 2.0 nats, less than twice the standard error."),
        ([(3.0, 0.1), (9.0, 6.0)], "or 'b' and 'c': 200 rows cannot tell them apart, as it is "
                                   "higher by 3.0 ± 0.1 and 9.0 ± 6.0 nats, less than 4 nats or "),
        ([], "it is the only one that is trusted."),
    ],
)  # fmt: skip
def test_the_sentence_says_whether_the_difference_is_more_than_its_error(
    differences: list[tuple[float, float]], said: str
) -> None:
    assert said in which_model(table_of(*differences))


def test_rows_that_are_unreliable_are_counted_until_they_are_refitted() -> None:
    doubtful = high(model("a"), row7=0.9, row2=1.1)
    table, _ = models_table([doubtful, model("b", mean=0.4)])
    assert table["high_k_rows"].tolist() == [2, 0]
    (said,) = remarks_on([doubtful], table)
    assert "above the limit 0.67 for 2 of 120 rows, 3 (1.10), 8 (0.90), so its elpd" in said
    assert said.endswith("--refit 2 leaves such rows out by fitting again.")
    before = doubtful.elpd_i
    again = replace(doubtful, refitted={2: before[2] - 3.0})
    table, _ = models_table([again, model("b", mean=0.4)])
    assert table[["high_k_rows", "refitted_rows"]].iloc[0].tolist() == [1, 1]
    assert table["elpd_loo"].iloc[0] == pytest.approx(before.sum() - 3.0)
    assert table["p_loo"].iloc[0] == pytest.approx(float(doubtful.loo.p) + 3.0)
    assert f"by importance weights alone its elpd is {before.sum():.1f}" in str(
        remarks_on([again], table)
    )
    rows = rows_table([again])
    assert rows.loc[rows["refitted"], ["row", "pareto_k"]].to_numpy().tolist() == [[3, 1.1]]
    assert rows["elpd"].sum() == pytest.approx(before.sum() - 3.0)


def observed(name: str = "a", **given: Any) -> Observed:
    usual = {"values": {"y": Y}, "beside": {}, "units": len(Y)}
    return Observed(name, **{**usual, **given})


SWAPPED = Y[np.r_[0, 2, 1, 3 : len(Y)]]
OTHER = np.r_[Y[:-1], 5.0]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"values": {"y": Y[:-1]}, "units": len(Y) - 1},
         "'a' was fitted to 120 rows and 'b' to 119; fit both to the same rows"),
        ({"units": 5}, "of the same 120 rows 'a' has 120 log densities and 'b' 5"),
        ({"values": {"y": SWAPPED}}, "in another order, as 'y' shows from row 2 on"),
        ({"values": {"y": OTHER}},
         f"'y' differs in 1 of 120 rows, such as 120 ({Y[-1]:g} and 5); fit both"),
        ({"values": {"log(y)": Y + 1}},
         "'a' predicts 'y', and 'b' 'log(y)'; after a transformation of the response densities"),
        ({"values": {"z": Y + 1}}, "predicts 'y', and 'b' 'z'; a density of one is none of"),
        ({"values": {"y": Y, "z": Y}}, "'a' predicts 'y', and 'b' 'y', 'z'; fit both to the same"),
        ({"beside": {"weights": Y}}, "'a' was fitted without weights; fit both alike."),
    ],
)  # fmt: skip
def test_observations_that_differ_are_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        check_same_observations([observed(), observed("b", **other)])
    assert said in str(error.value)
    assert str(error.value).startswith("'a' and 'b' cannot be compared: ")


def test_observations_that_differ_by_rounding_or_by_name_are_the_same() -> None:
    single = Y.astype(np.float32)
    missing = np.where(np.arange(len(Y)) == 3, np.nan, Y)
    check_same_observations([observed(), observed("b", values={"x": single})])
    check_same_observations([observed(values={"y": missing}), observed(values={"y": missing})])


def test_other_weights_of_the_same_rows_are_refused() -> None:
    given = [observed(beside={"weights": np.full(len(Y), float(k))}) for k in (1, 2)]
    with pytest.raises(DataError, match="fitted with different weights; fit both alike"):
        check_same_observations(given)
