"""Rows with missing cells: those of the columns that are used, counted as they were given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.data.missing import complete_rows
from elbowroom.errors import DataError
from elbowroom.pipeline.fitting import bind_model


@dataclass(frozen=True)
class Sizes:
    rows: int = 60


SIZES = Sizes()


def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    found = pd.DataFrame(random.normal(size=(SIZES.rows, 4)), columns=["x", "w", "idle", "y"])
    found["count"] = random.poisson(3, SIZES.rows).astype(float)
    found["group"] = np.resize(["a", "b", "c"], SIZES.rows).astype(object)
    found["y"] += found["x"]
    found.loc[[1, 4], "x"] = np.nan
    found.loc[4, "y"] = np.nan
    found.loc[7, "group"] = None
    found.loc[9, "w"] = np.nan
    found.loc[11:50, "idle"] = np.nan
    return found.set_axis(np.arange(SIZES.rows) // 2)  # an index is no number of a row


@pytest.mark.parametrize(
    ("options", "left", "named"),
    [
        ({"formula": "y ~ x"}, [1, 4], "'x' (2), 'y' (1)"),
        ({"formula": "y ~ center(x) + group"}, [1, 4, 7], "'x' (2), 'y' (1), 'group' (1)"),
        ({"formula": "y ~ 1 + (x | group)"}, [1, 4, 7], "'x' (2), 'y' (1), 'group' (1)"),
        ({"formula": "y ~ x", "weights": "count"}, [1, 4], "'x' (2), 'y' (1)"),
        ({"formula": "y ~ 1", "parameter": "sigma ~ w"}, [4, 9], "'w' (1), 'y' (1)"),
        ({"formula": 'group["a"] ~ w'}, [7, 9], "'w' (1), 'group' (1)"),
        ({"response": "y", "columns": "x"}, [1, 4], "'x' (2), 'y' (1)"),
        ({"response": "y", "exclude": "idle,group"}, [1, 4, 9], "'x' (2), 'w' (1), 'y' (1)"),
    ],
)
def test_rows_that_lack_a_cell_that_is_used_are_left_out_with_a_count(
    options: dict[str, Any], left: list[int], named: str
) -> None:
    given = table()
    problem, _, _ = bind_model("bayesian_regression", given, dict(options), "auto")
    rest = given[~np.isin(np.arange(SIZES.rows), left)]
    said = f"{len(left)} of {SIZES.rows} rows were left out: cells are missing in {named}."
    assert said in problem.prepared.doubts
    pd.testing.assert_frame_equal(problem.data, rest)
    again, _, _ = bind_model("bayesian_regression", rest, dict(options), "auto")
    assert not any("left out" in doubt for doubt in again.prepared.doubts)
    assert again.arguments.keys() == problem.arguments.keys()
    for name, value in again.arguments.items():
        assert not isinstance(value, Tensor) or torch.equal(problem.arguments[name], value)


def test_the_verdict_says_what_was_left_out_and_a_run_keeps_the_rest(tmp_path: Path) -> None:
    fit = er.fit("bayesian_regression", table(), formula="y ~ x", seed=1)
    assert "2 of 60 rows were left out" in str(fit.verdict)
    fit.save(tmp_path / "run")
    assert len(er.load(tmp_path / "run").problem.data) == SIZES.rows - 2


def test_missing_cells_are_an_error_that_names_the_columns_where_it_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"2 of 60 rows have missing cells, in 'x' \(2\)"):
        er.fit("bayesian_regression", table(), formula="y ~ x", missing="error")
    with pytest.raises(DataError, match="too few are left"):
        er.fit("bayesian_regression", table().assign(x=np.nan), formula="y ~ x")


def test_a_wrong_cell_is_named_by_the_row_that_was_given() -> None:
    given = table()
    given["count"] = np.where(np.arange(SIZES.rows) == 5, -2.0, given["count"])
    with pytest.raises(DataError, match="column 'count', row 6: -2"):
        er.fit("bayesian_regression", given, formula="count ~ x", family="poisson")
    with pytest.raises(DataError, match="column 'count', row 6: -2"):
        er.fit("negative_binomial", given, formula="count ~ x")


def test_complete_rows_are_left_as_they_are() -> None:
    given = table()
    assert complete_rows(given, ["count", "absent"]).table is given
