"""Models compared from their fits and folders: closed forms, ArviZ's numbers, and refusals."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz_base
import arviz_stats
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from scipy.stats import t

import elbowroom as er
from elbowroom import cli
from elbowroom.assess.measures import high_k, rows_left_out
from elbowroom.errors import DataError, ModelError, OptionError
from elbowroom.pipeline.reference import add_reference
from elbowroom.result import Fit

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, by ArviZ
ROWS = er.load_dataset("diabetes").head(120)


def fitted(formula: str, data: pd.DataFrame = ROWS, **given: Any) -> Fit:
    return er.fit("bayesian_regression", data, formula=f"progression ~ {formula}", seed=1, **given)


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    poor = fitted("bmi", guide="mean_field", engine="svi", steps=30, draws=400)
    sampled = add_reference(fitted("bmi", draws=400), draws=250, take=True)
    assert (poor.verdict.trusted, sampled.origin) == (False, "nuts")
    return {"two": fitted("bmi + s5", draws=1000), "one": sampled, "poor": poor}


@pytest.fixture(scope="module")
def folders(fits: dict[str, Fit], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    return {name: fit.save(place / name) for name, fit in fits.items()}


def call(*arguments: str) -> int:
    before, sys.argv = sys.argv, ["elbowroom", "compare-models", *arguments]
    try:
        cli.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main leaves by an exit code")


def test_rows_of_a_conjugate_regression_have_the_densities_of_the_closed_form() -> None:
    """Given the others a row is Student t, as the variance has an inverse Gamma posterior."""
    a, b, width = 3.0, 2.0, 4.0
    table = ROWS.head(40)[["bmi", "bp", "progression"]] / [10.0, 10.0, 50.0]
    fit = er.fit(
        "conjugate", table, likelihood="regression", response="progression", prior=(a, b),
        prior_scale=width, seed=1, draws=8000,
    )  # fmt: skip
    x = table[["bmi", "bp"]].to_numpy()
    design = np.column_stack([np.ones(40), (x - x.mean(0)) / x.std(0, ddof=1)])
    y, start = table["progression"].to_numpy(), np.array([table["progression"].mean(), 0.0, 0.0])
    exact = []
    for row in range(len(y)):
        kept = np.arange(len(y)) != row
        precision = design[kept].T @ design[kept] + np.eye(3) / width**2
        mean = np.linalg.solve(precision, design[kept].T @ y[kept] + start / width**2)
        square = y[kept] @ y[kept] + start @ start / width**2 - mean @ precision @ mean
        shape, scale = a + (len(y) - 1) / 2, b + square / 2
        wide = 1 + design[row] @ np.linalg.solve(precision, design[row])
        exact.append(t.logpdf(y[row], 2 * shape, design[row] @ mean, np.sqrt(wide * scale / shape)))
    found = rows_left_out(fit.posterior)
    assert found is not None
    assert found.elpd_i.to_numpy() == pytest.approx(np.array(exact), abs=0.04)
    assert fit.diagnostics["elpd_loo"] == pytest.approx(sum(exact), abs=0.1)
    assert fit.diagnostics["elpd_loo_se"] == pytest.approx(np.std(exact) * 40**0.5, abs=0.05)


def test_folders_give_what_fits_and_arviz_say(
    fits: dict[str, Fit], folders: dict[str, Path]
) -> None:
    """Corrected draws in one chain, and those of NUTS in four."""
    names = ("two", "one")
    found = er.compare_models([folders[name] for name in names])
    again = er.compare_models({name: fits[name] for name in names})
    pd.testing.assert_frame_equal(found.table, again.table)
    trees: Any = {name: xarray.open_datatree(folders[name] / "posterior.nc") for name in names}
    theirs = arviz_stats.compare(trees)
    assert found.table["model"].tolist() == theirs.index.tolist() == ["two", "one"]
    for own, column in (("elpd_loo", "elpd"), ("elpd_diff", "elpd_diff"), ("elpd_diff_se", "dse")):
        assert found.table[own].to_numpy() == pytest.approx(theirs[column].to_numpy(), abs=1e-6)
    for name, line in found.table.set_index("model").iterrows():
        measures = fits[str(name)].diagnostics
        assert measures["elpd_loo"] == pytest.approx(line["elpd_loo"], abs=1e-9)
        assert measures["elpd_loo_se"] == pytest.approx(line["elpd_loo_se"], abs=1e-9)
        rows = found.rows[found.rows["model"] == name]
        assert rows["elpd"].sum() == pytest.approx(line["elpd_loo"])
    assert found.best == "two"
    assert found.recommendation.startswith("Take 'two': its elpd is ")


def test_draws_of_a_guide_that_is_too_narrow_are_corrected_by_row() -> None:
    """As they are, they say that every row is reliable."""
    formula = "s1 + s2 + s3 + s4"
    fit = fitted(formula, guide="mean_field", engine="svi", steps=1500)
    stats = fit.posterior["sample_stats"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of high Pareto k
        theirs = arviz_stats.loo_approximate_posterior(
            fit.posterior, stats["log_p"], stats["log_q"], pointwise=True
        )
        plain = arviz_stats.loo(fit.posterior, pointwise=True)
    found = rows_left_out(fit.posterior)
    assert found is not None
    assert fit.origin == "raw"
    assert found.elpd_i.to_numpy() == pytest.approx(theirs.elpd_i.to_numpy(), abs=1e-9)
    assert fit.diagnostics["elpd_loo"] == pytest.approx(float(theirs.elpd), abs=1e-9)
    assert not high_k(plain).any()
    assert fit.diagnostics["high_k_rows"] > 0.5


def test_on_the_command_line_an_untrusted_run_is_last_and_files_have_every_row(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = [str(folders[name]) for name in ("poor", "two", "one")]
    assert call(*given, "--output", str(out)) == 0
    shown = capsys.readouterr().out
    assert "Take 'two'" in shown
    assert "'poor' is not trusted, so it has no rank and no weight" in shown
    assert pd.read_csv(out / "models.csv")["model"].tolist() == ["two", "one", "poor"]
    rows = pd.read_csv(out / "rows.csv")
    assert rows.columns.tolist() == ["model", "row", "elpd", "pareto_k", "refitted"]
    assert rows.groupby("model").size().to_dict() == {"one": 120, "poor": 120, "two": 120}


def test_rows_of_a_run_are_refitted_until_as_many_as_are_asked_for(tmp_path: Path) -> None:
    """A row far out: without it the fit is another, and it is as with ten fits of the others."""
    table = ROWS[["bmi", "bp", "progression"]].head(30).copy().astype(float)
    table.loc[4, ["bmi", "progression"]] = [45.0, 40.0]
    folders = [fitted(x, table).save(tmp_path / name) for x, name in (("bmi", "a"), ("bp", "b"))]
    lines: list[str] = []
    found = er.compare_models(folders, report=lines.append)
    assert lines == ["a: fitting without row 5 (1 of 1)"]
    assert found.table.set_index("model")["refitted_rows"].to_dict() == {"a": 1, "b": 0}
    assert found.table["high_k_rows"].sum() == 0
    none = er.compare_models(folders, refit=0).table.set_index("model")
    assert none["high_k_rows"].to_dict() == {"a": 1, "b": 0}
    left = fitted("bmi", table.drop(index=4))
    value = left.log_density(table.iloc[[4]])[0]
    refitted = found.rows.query("model == 'a' and row == 5")["elpd"].item()
    assert refitted == pytest.approx(value, abs=0.5)  # its priors are scaled to the others alone


def pair(data: dict[str, Any]) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(data["y"])):
        pyro.sample("y", dist.Normal(level, 1.0), obs=data["y"])
        pyro.sample("z", dist.Normal(level, 1.0), obs=data["z"])


def two_sites(y: torch.Tensor, z: torch.Tensor) -> None:
    pair({"y": y, "z": z})


def test_what_cannot_be_compared_is_said_in_a_sentence(
    fits: dict[str, Fit], folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    two = fits["two"]
    y = torch.tensor(ROWS["progression"].to_numpy() / 100.0)
    factors = er.fit("factor_analysis", "iris", seed=1, draws=200)
    for other, error, said in (
        (fitted("bmi", ROWS.head(100), draws=400), DataError, "fitted to 120 rows and 'b' to 100"),
        (fitted("bmi", ROWS.iloc[::-1], draws=400), DataError, "their rows are in another order"),
        (er.fit("bayesian_regression", ROWS, formula="log(progression) ~ bmi", seed=1,
                draws=400), DataError,
         "'a' predicts 'progression', and 'b' 'log(progression)'; after a transformation of the"),
        (fitted("bmi", weights="age", draws=400), DataError, "'a' was fitted without weights"),
        (er.fit(two_sites, {"y": y, "z": y}, seed=1, draws=200), ModelError,
         "'b' cannot be compared: it observes several sites (y, z)"),
        (fitted("bmi", guide="map"), ModelError, "it was fitted as one point"),
        (factors, ModelError, "its rows have latents of their own"),
        (two, OptionError, "'a' and 'b' are the same run, which is given twice; give it once."),
    ):  # fmt: skip
        with pytest.raises(error) as seen:
            er.compare_models({"a": two, "b": other})
        assert said in str(seen.value)
    with pytest.raises(OptionError, match=r"fits have no names; give them by name: er\.comp"):
        er.compare_models([two, fits["one"]])  # type: ignore[list-item]
    one = str(folders["one"])
    for arguments, said in (
        ([one], "one run is given, and a comparison needs two or more"),
        ([one, f"{one}/"], "one' is given twice; give it once."),
        ([one, f"{one}/nowhere"], "is not a run folder"),
    ):
        assert call(*arguments) == (1 if "folder" in said else 2)
        assert said in capsys.readouterr().err


def test_what_makes_a_comparison_doubtful_is_remarked(fits: dict[str, Fit]) -> None:
    remarks = er.compare_models({"a": fits["one"], "b": fits["poor"]}).remarks
    assert any(each.startswith("'a' and 'b' are fits of the same model") for each in remarks)
    table = er.load_dataset("linnerud")
    shared: dict[str, Any] = {"formula": "chins ~ waist", "seed": 1}
    counts = er.fit("bayesian_regression", table, family="poisson", **shared)
    found = er.compare_models({"a": counts, "b": er.fit("bayesian_regression", table, **shared)})
    assert any("'a' gives probabilities of whole numbers" in each for each in found.remarks)
    assert "With only 20 rows the standard errors are rough." in found.remarks


def test_where_no_run_is_trusted_the_exit_code_says_so(
    fits: dict[str, Fit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poor = fits["poor"]
    runs = [replace(poor, seed=k).save(tmp_path / str(k)) for k in range(2)]
    assert call(*map(str, runs)) == cli.NOT_TRUSTED
    assert "Take none of them: no model is trusted." in capsys.readouterr().out


def test_the_installed_arviz_says_the_same(folders: dict[str, Path]) -> None:
    assert arviz_base.__version__
    with np.errstate(all="ignore"):
        arviz = pytest.importorskip("arviz")
        given = {name: arviz.from_netcdf(folders[name] / "posterior.nc") for name in ("two", "one")}
        theirs = arviz.compare(given)
    found = er.compare_models([folders["two"], folders["one"]]).table.set_index("model")
    column = "elpd_loo" if "elpd_loo" in theirs else "elpd"
    for name in ("two", "one"):
        assert found.loc[name, "elpd_loo"] == pytest.approx(theirs.loc[name, column], abs=1e-3)
