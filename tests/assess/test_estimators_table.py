"""The table of estimators shows what is known of them, and sees a bias."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

import elbowroom as er
from elbowroom.assess.estimators import SAMPLING
from elbowroom.errors import OptionError
from elbowroom.objectives import estimators
from elbowroom.report.pictures import picture_of_estimators

X = torch.linspace(-1, 1, 40, dtype=torch.float64)
DATA = {"x": X, "y": 2 * X + 0.5}


def line(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 3.0))
    level = pyro.sample("level", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(level + slope * x, 0.5), obs=y)


def switches(y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("y", dist.Normal(2 * on, 1.0), obs=y)


def switches_guide(y: Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(len(y)))
    with pyro.plate("rows", len(y)):
        pyro.sample("on", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return er.estimators(line, DATA, "full_rank", seed=1, gradients=100)


def noise(table: pd.DataFrame, stage: str, name: str) -> float:
    return float(table.query("stage == @stage and estimator == @name")["noise"].iloc[0])


def test_every_estimator_is_there_at_three_stages_and_none_is_biased(table: pd.DataFrame) -> None:
    assert list(table["stage"].unique()) == ["start", "middle", "end"]
    names = set(table["estimator"])
    assert {"trace", "sticking_the_landing", "iwae, 8 draws", "dreg, 8 draws"} < names
    assert {"score_function, no baseline", "score_function, neural baseline"} < names
    assert not {"trace_enum", "trace_graph", "trace_mean_field"} & names
    assert not table["biased"].any()
    assert table.loc[table["estimator"].str.contains("draws"), "bias"].isna().all()


def test_the_table_shows_score_functions_against_reparameterisation(table: pd.DataFrame) -> None:
    plain = noise(table, "end", "score_function, no baseline")
    pathwise = noise(table, "end", "trace")
    landed = noise(table, "end", "sticking_the_landing")
    assert plain > 5 * pathwise > 25 * landed  # the posterior is Normal


def test_the_evidence_by_the_prior_and_by_the_guide(table: pd.DataFrame) -> None:
    prior, guide = table.attrs["evidence"]
    assert (prior["drawn_from"], guide["drawn_from"]) == ("prior", "guide")
    assert prior["draws"] == guide["draws"] == SAMPLING.evidence_draws
    design = np.stack([np.ones(40), X.numpy()])
    covariance = 9 * design.T @ design + 0.25 * np.eye(40)
    truth = multivariate_normal(np.zeros(40), covariance).logpdf(DATA["y"].numpy())
    assert abs(guide["log_evidence"] - truth) < max(4 * guide["log_evidence_se"], 1e-3)
    assert abs(prior["log_evidence"] - truth) < 4 * prior["log_evidence_se"]
    assert guide["wasted"] < 0.05 < 0.95 < prior["wasted"]
    # The attributes do not stand in the way.
    assert len(pd.concat([table, table])) == 2 * len(table)


@pytest.mark.slow
def test_what_is_discrete_has_the_estimators_that_take_it() -> None:
    table = er.estimators(
        switches, {"y": DATA["y"]}, switches_guide, seed=1, gradients=100, steps=300
    )
    names = set(table["estimator"])
    assert {"trace", "trace_graph", "trace_enum", "score_function, running baseline"} <= names
    assert not {"sticking_the_landing", "iwae, 8 draws"} & names
    assert noise(table, "start", "trace_enum") < 1e-6 * noise(table, "start", "trace")


@pytest.mark.slow
def test_a_biased_estimator_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimators.Sampled.estimate

    def wrong(self: Any, *traces: Any) -> Any:
        elbo, surrogate = whole(self, *traces)
        return elbo, 1.5 * surrogate

    monkeypatch.setattr(estimators.Sampled, "estimate", wrong)

    def guide(x: Tensor, y: Tensor) -> None:
        for name in ("slope", "level"):
            pyro.sample(name, dist.Normal(pyro.param(f"{name}_", torch.zeros(())), 0.1))

    options: dict[str, Any] = {"seed": 1, "gradients": 100, "elbo": "sticking_the_landing"}
    table = er.estimators(line, DATA, guide, steps=10, **options)
    biased = table.query("stage == 'start'").set_index("estimator")["biased"]
    assert biased["trace"]
    assert not biased["sticking_the_landing"]


@pytest.mark.slow
def test_minibatches_add_to_the_noise() -> None:
    options: dict[str, Any] = {"seed": 1, "gradients": 50, "steps": 20}
    whole = er.estimators("bayesian_regression", None, "mean_field", **options)
    some = er.estimators("bayesian_regression", None, "mean_field", batch_size=20, **options)
    assert noise(some, "start", "trace") > 2 * noise(whole, "start", "trace")


def test_a_point_has_no_noise_and_is_refused() -> None:
    with pytest.raises(OptionError, match="'map' is a point"):
        er.estimators(line, DATA, "map", seed=1)
    with pytest.raises(OptionError, match="--gradients 3"):
        er.estimators(line, DATA, "full_rank", seed=1, gradients=3)


def test_the_picture_is_drawn(table: pd.DataFrame, tmp_path: Path) -> None:
    picture_of_estimators(table, tmp_path / "e.png", "line")
    assert (tmp_path / "e.png").stat().st_size > 10_000
    assert np.isfinite(table["noise"]).all()
