"""Draws of rows in parts: each draw of each row once, weighed as the model and the guide say."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from scipy import stats
from torch import Tensor

from elbowroom.draws import row_runs
from elbowroom.draws.row_runs import RowRuns, _Run
from elbowroom.draws.row_weights import moments_of_rows, plate_of_rows, serves_few_rows, weigh_rows
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.guides.space import FixedRows, Plate, of_each_row
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.row_batches import in_batches

ROWS, COUNT = 23, 17
X = np.random.default_rng(0).normal(size=(ROWS, 2))
CACHED, BATCHED = 60, 40
"""Numbers of a part, of which a row has four: 9 draws of one row, or 5 of 3; or 1 draw of 10."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = replace(row_runs.PARTS, cached=CACHED, batched=BATCHED)
    monkeypatch.setattr(row_runs, "PARTS", parts)


def model(x: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        top = pyro.sample("top", dist.Normal(torch.zeros(()), 1.0))
        z = pyro.sample("z", dist.Normal(top, 2.0))
        mean = torch.stack([z, top - z], -1)
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=pyro.subsample(x, event_dim=1))


def guide(x: Tensor, batch_size: int | None = None) -> None:
    """The lower latents depend on the upper ones, as draws have them."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen = pyro.subsample(x, event_dim=1)
        top = pyro.sample("top", dist.Normal(seen.sum(-1), 0.7))
        pyro.sample("z", dist.Normal(0.5 * top + seen[:, 0], 0.3))


def one_by_one(x: Tensor, batch_size: int | None = None) -> None:
    float(torch.rand(()))  # which no batch of draws has
    guide(x, batch_size)


def branching(x: Tensor, batch_size: int | None = None) -> None:
    """Python asks a row: a recording of some rows is none of others."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen = pyro.subsample(x, event_dim=1)
        if seen[0, 0] > 1.5:
            seen = seen * 1.0
        top = pyro.sample("top", dist.Normal(seen.sum(-1), 0.7))
        pyro.sample("z", dist.Normal(0.5 * top + seen[:, 0], 0.3))


def without_minibatches(x: Tensor) -> None:
    guide(x)


SLICED = in_batches(without_minibatches, Plate("rows", -1, ROWS), {"x": torch.as_tensor(X)})


class Counted(Messenger):
    """How often the guide is run, or the model: a replay is no run."""

    runs = 0

    def _pyro_sample(self, msg: Any) -> None:
        self.runs += msg["name"] == "z"


def bound(function: Callable[..., Any] = model) -> Problem:
    return bind_model(function, {"x": torch.as_tensor(X)}, {})[0]


def weighed(called: Callable[..., Any], count: int = COUNT) -> WeightedDraws:
    problem = bound()
    with problem.session(0):
        return weigh_rows(
            problem.function, called, problem.arguments, problem.space, count, ("top", "z")
        )


@pytest.mark.parametrize(
    ("called", "count"), [(guide, 17), (guide, 5), (one_by_one, 17), (branching, 5), (SLICED, 5)]
)
def test_each_draw_of_each_row_is_weighed_by_its_own_numbers(called: Any, count: int) -> None:
    """Recorded, with the last parts smaller than the others; batched; and one by one."""
    found = weighed(called, count)
    top, z = (found.sites[name].numpy() for name in ("top", "z"))
    assert top.shape == z.shape == (count, ROWS)
    log_q = stats.norm.logpdf(top, X.sum(1), 0.7) + stats.norm.logpdf(z, 0.5 * top + X[:, 0], 0.3)
    log_p = (
        stats.norm.logpdf(top)
        + stats.norm.logpdf(z, top, 2.0)
        + stats.norm.logpdf(X[:, 0], z, 0.5)
        + stats.norm.logpdf(X[:, 1], top - z, 0.5)
    )
    np.testing.assert_allclose(found.log_q, log_q, rtol=1e-9)
    np.testing.assert_allclose(found.log_p, log_p, rtol=1e-9)
    noise = np.stack([(top - X.sum(1)) / 0.7, (z - 0.5 * top - X[:, 0]) / 0.3])
    assert len(np.unique(noise)) == noise.size  # no draw stands for another one
    assert abs(noise.mean()) < 4 / noise.size**0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.size) ** 0.5


def test_a_part_that_is_replayed_gives_what_it_gives_as_it_stands() -> None:
    problem = bound()
    with problem.session(0):
        plate = plate_of_rows(guide, problem.arguments, problem.space)
        runs = RowRuns(problem.function, guide, problem.arguments, problem.space, plate)
        run = _Run(runs, lambda drawn, given: {"z": drawn.nodes["z"]["value"]})
        recorded = run.recorded(5, 4)
        assert recorded is not None
        for begin in (0, 7, ROWS - 4):
            rows = torch.arange(begin, begin + 4)
            torch.manual_seed(begin)
            found = recorded(rows)["z"]
            torch.manual_seed(begin)
            torch.testing.assert_close(found, run.batched(5)(rows)["z"], rtol=0, atol=0)


def test_model_and_guide_are_run_a_few_times_whatever_the_draws() -> None:
    runs = []
    for count in (20, 400):
        with Counted() as counted:
            weighed(guide, count=count)
        runs.append(counted.runs)
    assert runs[0] == runs[1]  # for the plates, to see rows apart, and for a recording
    assert runs[0] < 1.5 * ROWS


def test_a_function_without_minibatches_is_run_for_some_rows_of_its_arguments() -> None:
    """The log density is scaled to all rows; indices of the plate are those of the rows taken."""

    def plain(x: Tensor, n: int) -> None:
        with pyro.plate("rows", n) as index:
            pyro.sample("top", dist.Normal(x[index, 0], 1.0))

    x = torch.as_tensor(X)
    batched = in_batches(plain, Plate("rows", -1, ROWS), {"x": x, "n": ROWS})
    rows, top = torch.tensor([20, 3, 7]), torch.zeros(3, dtype=torch.float64)
    with FixedRows({"rows": rows}):
        trace: Any = poutine.trace(poutine.condition(batched, data={"top": top})).get_trace(
            x=x, n=ROWS, batch_size=3
        )
    expected = stats.norm.logpdf(X[[20, 3, 7], 0])
    np.testing.assert_allclose(of_each_row(trace, Plate("rows", -1, ROWS)), expected)
    assert trace.log_prob_sum().item() == pytest.approx(expected.sum() * ROWS / 3)
    whole: Any = poutine.trace(batched).get_trace(x=x[:5], n=5)  # of new rows
    assert whole.nodes["top"]["value"].shape == (5,)


def test_a_guide_is_seen_to_serve_other_rows_or_not() -> None:
    def of_places(x: Tensor, batch_size: int | None = None) -> None:
        """With parameters of the first rows, whichever rows these are."""
        means = pyro.param("means", torch.arange(float(ROWS), dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("top", dist.Normal(means[: len(x)], 0.7))
            pyro.sample("z", dist.Normal(x[:, 0], 0.3))

    problem = bound()
    for called, expected in ((guide, True), (one_by_one, True), (of_places, False)):
        with problem.session(0):
            found = serves_few_rows(called, problem.arguments, problem.space)
        assert found is expected


def test_rows_that_depend_on_each_other_are_run_together() -> None:
    """As a normalisation over the minibatch makes them."""

    def normalised(x: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            seen = pyro.subsample(x, event_dim=1)
            pyro.sample("top", dist.Normal(seen.sum(-1) - seen.sum(-1).mean(), 0.7))
            pyro.sample("z", dist.Normal(seen[:, 0], 0.3))

    found = weighed(normalised)
    top, z = (found.sites[name].numpy() for name in ("top", "z"))
    centre = X.sum(1) - X.sum(1).mean()
    log_q = stats.norm.logpdf(top, centre, 0.7) + stats.norm.logpdf(z, X[:, 0], 0.3)
    np.testing.assert_allclose(found.log_q, log_q, rtol=1e-9)


def test_means_and_sds_are_those_of_the_guides_distributions_or_of_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_runs, "PARTS", row_runs.Parts())
    problem = bound()
    given = problem.function, guide, problem.arguments, problem.space
    with problem.session(0):
        exact = moments_of_rows(*given, ["top"], 10)
        drawn = moments_of_rows(*given, ["top", "z"], 4000)
    np.testing.assert_allclose(exact["top"][0], X.sum(1), rtol=1e-12)
    np.testing.assert_allclose(exact["top"][1], 0.7, rtol=1e-12)
    # Of a site whose distribution depends on another's draw, all draws count.
    sd = math.hypot(0.35, 0.3)
    np.testing.assert_allclose(drawn["z"][0], 0.5 * X.sum(1) + X[:, 0], atol=5 * sd / 4000**0.5)
    np.testing.assert_allclose(drawn["z"][1], sd, rtol=5 / 8000**0.5)
    np.testing.assert_allclose(drawn["top"][1], 0.7, rtol=5 / 8000**0.5)


def test_a_distribution_without_moments_is_described_by_its_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_runs, "PARTS", row_runs.Parts())

    def skewed(x: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            seen = pyro.subsample(x, event_dim=1)
            base = dist.Normal(seen[:, 0], 0.4)
            exp = [dist.transforms.ExpTransform()]
            pyro.sample("top", dist.TransformedDistribution(base, exp))
            pyro.sample("z", dist.Cauchy(seen[:, 1], 1.0))  # whose mean is no number

    problem = bound()
    with problem.session(0):
        found = moments_of_rows(
            problem.function, skewed, problem.arguments, problem.space, ["top", "z"], 4000
        )
    mean = np.exp(X[:, 0] + 0.08)
    np.testing.assert_allclose(found["top"][0].numpy() / mean, 1.0, atol=5 * 0.42 / 4000**0.5)
    assert torch.isfinite(found["z"][0]).all()
