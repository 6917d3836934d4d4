"""Comparing guides: the same data and seed, a bound known exactly, and failures that say why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer.autoguide import AutoNormal

import elbowroom as er
from elbowroom.assess.compare import Row, comparison_table, posterior_differences
from elbowroom.errors import OptionError

Y = torch.linspace(-1.0, 2.0, 12)


def normal_mean(y: torch.Tensor) -> None:
    """Two equal Normal beliefs about the mean: its posterior and its evidence are closed forms."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y)


def by_guide(comparison: er.Comparison) -> Any:
    """The table by guide; untyped, for pandas' scalars may be anything."""
    return comparison.table.set_index("guide")


def log_evidence() -> float:
    covariance = torch.eye(12) + 2.0 * torch.ones(12, 12)
    normal = torch.distributions.MultivariateNormal(torch.zeros(12), covariance)
    return float(normal.log_prob(Y))


@pytest.fixture(scope="module")
def comparison() -> er.Comparison:
    def stuck(y: torch.Tensor) -> None:
        raise RuntimeError("no use")

    guides = ["laplace", "mean_field", "map", AutoNormal, stuck]
    return er.compare(normal_mean, {"y": Y}, guides, seed=3, steps=1500, draws=1000)


def test_the_bound_is_the_evidence_where_the_guide_is_the_posterior(
    comparison: er.Comparison,
) -> None:
    table = by_guide(comparison)
    assert comparison.best == "laplace"
    assert table.loc["laplace", "elbo"] == pytest.approx(log_evidence(), abs=1e-3)
    assert table.loc["laplace", "elbo_se"] < 1e-3


def test_the_mean_field_bound_is_below_by_the_divergence(comparison: er.Comparison) -> None:
    """KL(q || posterior) of the best factorised Normal: half of -log(1 - correlation²)."""
    table = by_guide(comparison)
    precision = torch.eye(2) + 12 * torch.ones(2, 2)
    divergence = 0.5 * float(precision.diagonal().log().sum() - torch.linalg.slogdet(precision)[1])
    for name in ("mean_field", "AutoNormal"):
        gap = log_evidence() - table.loc[name, "elbo"]
        assert abs(gap - divergence) < 4 * table.loc[name, "elbo_se"] + 0.05


def test_a_point_has_no_bound_and_a_failure_says_why(comparison: er.Comparison) -> None:
    table = comparison.table
    assert table["guide"].tolist()[-2:] == ["map", "stuck"]
    assert np.isnan(by_guide(comparison).loc["map", "elbo"])
    assert "no use" in by_guide(comparison).loc["stuck", "error"]
    assert "stuck" not in comparison.fits


def test_own_draws_are_compared_with_the_posterior_in_closed_form(
    comparison: er.Comparison,
) -> None:
    """Of a Normal with correlation r, the best factorised Normal has √(1 - r²) of each sd."""
    lines: Any = comparison.differences.set_index(["guide", "quantity"])
    assert comparison.baseline == "laplace"
    covariance = np.linalg.inv(np.eye(2) + 12)
    correlation = covariance[0, 1] / covariance[0, 0]
    exact = (1 - correlation**2) ** 0.5
    assert exact < 0.4
    error = 4 * (1 / 1000 + 1 / 1000) ** 0.5  # of the log of a ratio, each sd's being 1 / √(2 n)
    assert np.abs(np.log(lines.loc["mean_field", "sd_ratio"] / exact)).max() < error
    assert np.abs(np.log(lines.loc["laplace", "sd_ratio"])).max() < error
    # The same factor is the half-width of its 90% interval in the posterior's sds.
    normal = torch.distributions.Normal(0.0, 1.0)
    share = 2 * float(normal.cdf(torch.tensor(1.6449 * exact))) - 1
    np.testing.assert_allclose(lines.loc["mean_field", "coverage"], share, atol=0.05)
    assert lines.loc["mean_field", "mean_shift"].abs().max() < 0.2
    # By --steps it was fitted stochastically, and its weights are poor: nothing is corrected.
    assert lines.loc["mean_field", "corrected_sd_ratio"].isna().all()
    assert np.abs(np.log(lines.loc["laplace", "corrected_sd_ratio"])).max() < 1e-9
    assert lines.loc["map", "corrected_sd_ratio"].isna().all()
    assert (lines.loc["map", "sd_ratio"] < 1e-9).all()


def test_corrected_draws_have_the_right_sds_beside_the_guide_s_own() -> None:
    lines: Any = er.compare(normal_mean, {"y": Y}, ["mean_field", "laplace"], seed=3).differences
    own, corrected = (
        lines.set_index("guide").loc["mean_field", name].to_numpy()
        for name in ("sd_ratio", "corrected_sd_ratio")
    )
    covariance = np.linalg.inv(np.eye(2) + 12)
    exact = (1 - (covariance[0, 1] / covariance[0, 0]) ** 2) ** 0.5
    # Four errors of the log of a ratio of two sds, of 4000 draws each.
    assert np.abs(np.log(own / exact)).max() < 4 * (1 / 4000) ** 0.5
    assert np.abs(np.log(corrected)).max() < 4 * (1 / 8000 + 1 / (2 * 400)) ** 0.5


def test_one_line_says_which_guide_to_take(comparison: er.Comparison) -> None:
    assert comparison.recommendation.startswith("Take laplace: ")
    assert by_guide(comparison).loc["laplace", "best"]
    assert not by_guide(comparison).loc["mean_field", "best"]


def test_the_files_hold_the_table(comparison: er.Comparison, tmp_path: Path) -> None:
    folder = comparison.save(tmp_path / "comparison")
    table = pd.read_csv(folder / "comparison.csv")
    pd.testing.assert_frame_equal(table[["elbo"]], comparison.table[["elbo"]])
    content = json.loads((folder / "comparison.json").read_text())
    assert (content["seed"], content["best"]) == (3, "laplace")
    assert content["baseline"] == "laplace"
    assert content["recommendation"] == comparison.recommendation
    assert len(content["differences"]) == len(comparison.differences)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(comparison.fits)


def test_every_fitting_guide_is_compared_by_default() -> None:
    with pytest.raises(OptionError, match="twice"):
        er.compare(normal_mean, {"y": Y}, ["map", "map"])
    found = er.compare(normal_mean, {"y": Y}, seed=1, steps=20, draws=100)
    assert set(found.table["guide"]) == {
        "map", "mle", "mean_field", "full_rank", "low_rank", "linear_response", "laplace",
        "pathfinder", "flow", "markov",
    }  # fmt: skip


def test_a_table_of_failures_alone_has_no_best() -> None:
    table = comparison_table([Row("a", {}, None, "no"), Row("b", {}, None, "neither")])
    assert not table["best"].any()
    assert posterior_differences([Row("a", {}, None, "no")], "").empty


def test_auto_is_the_guide_that_a_fit_by_it_takes() -> None:
    found = er.compare(normal_mean, {"y": Y}, ["auto", "mean_field"], seed=1)
    alone = er.fit(normal_mean, {"y": Y}, seed=1)
    assert found.fits["auto"].guide.name == alone.guide.name == "linear_response"
    assert found.fits["auto"].verdict == alone.verdict


def test_nuts_is_what_the_others_are_compared_with(comparison: er.Comparison) -> None:
    found = er.compare(normal_mean, {"y": Y}, ["mean_field", "nuts", "laplace"], seed=1)
    table = by_guide(found)
    assert table.loc["nuts", "error"] == ""
    assert np.isnan(table.loc["nuts", "elbo"])
    assert table.loc["nuts", "verdict"] == "trusted"
    assert (found.best, found.baseline, comparison.baseline) == ("laplace", "nuts", "laplace")
    assert found.fits["nuts"].origin == "nuts"
    assert found.fits["nuts"].posterior["posterior"].sizes["chain"] == 4
    shifts = found.differences.set_index(["guide", "quantity"])["mean_shift"]
    assert (shifts["nuts"] == 0).all()
    # Six standard errors of the mean of NUTS's and the guide's draws.
    assert shifts["laplace"].abs().max() < 6 * (1 / 1000 + 1 / 1000) ** 0.5
    ratios = found.differences.set_index("guide")["sd_ratio"]
    assert ratios["laplace"].between(0.85, 1.15).all()


def test_where_there_is_no_density_nuts_says_so() -> None:
    found = er.compare("factor_analysis", "iris", ["exact", "nuts"], seed=1, steps=50)
    table = by_guide(found)
    assert "NUTS cannot be run" in table.loc["nuts", "error"]
    assert table.loc["exact", "error"] == ""


def test_a_shift_is_the_mean_less_that_of_the_best_in_its_sds() -> None:
    def row(name: str, mean: float, sd: float) -> Row:
        draws = mean + sd * np.array([[-1.0, 1.0]])
        return Row(name, {}, xarray.Dataset({"x": (("chain", "draw"), draws)}))

    found: Any = posterior_differences([row("best", 1.0, 2.0), row("other", 4.0, 1.0)], "best")
    assert found["guide"].tolist() == ["best", "other"]
    assert found["mean_shift"].tolist() == [0.0, 1.5]
    assert found["sd_ratio"].tolist() == [1.0, 0.5]
