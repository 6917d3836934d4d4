"""Plates that draw their rows by themselves: the posterior is that of all rows."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import constraints

import elbowroom as er
from elbowroom import sizes
from elbowroom.errors import ModelError
from elbowroom.pipeline.fitting import bind_model, resolve_guide

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=60)
Y = 1.0 + 0.5 * X + 0.7 * RANDOM.normal(size=60)
SOME = 7

Rows = Callable[[int], Any]


def likelihood(x: Tensor, y: Tensor, size: int, **rows: Any) -> Any:
    slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0), 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(2.0)))
    with pyro.plate("data", size, **rows) as taken:
        if len(x) == size:
            x, y = x[taken], y[taken]
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def whole(x: Tensor, y: Tensor) -> None:
    likelihood(x, y, len(y))


def by_size(x: Tensor, y: Tensor) -> None:
    likelihood(x, y, len(y), subsample_size=SOME)


def by_default(x: Tensor, y: Tensor, batch_size: int = SOME) -> None:
    likelihood(x, y, len(y), subsample_size=batch_size)


def drawn_before(draw: Rows, early: bool) -> Callable[..., None]:
    """A model that draws the indices, and indexes the data before or in the plate."""

    def model(x: Tensor, y: Tensor) -> None:
        rows = draw(len(y))
        slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0), 5.0))
        scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(2.0)))
        seen = x[rows], y[rows]
        with pyro.plate("data", len(y), subsample=rows):
            seen_x, seen_y = seen if early else (x[rows], y[rows])
            pyro.sample("y", dist.Normal(slope * seen_x, scale), obs=seen_y)

    return model


def of_numpy(size: int) -> Tensor:
    return torch.as_tensor(np.random.choice(size, SOME, replace=False))


DRAWS: dict[str, Rows] = {
    "randperm": lambda size: torch.randperm(size)[:SOME],
    "split": lambda size: torch.randperm(size).split(SOME)[0],
    "randint": lambda size: torch.randint(0, size, (SOME,)),
    "multinomial": lambda size: torch.multinomial(torch.ones(size), SOME),
}


def log_density(model: Callable[..., Any], minibatches: int | None = None) -> Any:
    """A problem's log density at two points; of some of its rows, the mean of many."""
    problem = bind_model(model, {"x": X, "y": Y}, {"batch_size": minibatches})[0]
    given = {} if minibatches is None else {"batch_size": minibatches}
    found = []
    for values in ({"slope": 0.4, "scale": 0.9}, {"slope": -1.0, "scale": 2.0}):
        known = {name: torch.tensor(value).double() for name, value in values.items()}
        with problem.session(3):
            conditioned = pyro.condition(problem.function, data=known)
            runs = [
                pyro.poutine.trace(conditioned).get_trace(**problem.arguments, **given)
                for _ in range(1 if minibatches is None else 60)
            ]
            found.append([float(run.log_prob_sum()) for run in runs])
    return np.array(found)


MODELS = {"size": by_size, "default": by_default} | {
    f"{name}{' before' if early else ''}": drawn_before(draw, early)
    for name, draw in DRAWS.items()
    for early in (False, True)
}


@pytest.mark.parametrize("name", MODELS)
def test_the_density_is_that_of_all_rows_and_minibatches_estimate_it(name: str) -> None:
    expected = log_density(whole)
    assert log_density(MODELS[name]) == pytest.approx(expected, rel=1e-12)
    some = log_density(MODELS[name], SOME)
    error = some.std(1) / some.shape[1] ** 0.5
    assert (some.std(1) > 0.5).all()
    assert (np.abs(some.mean(1) - expected[:, 0]) < 4 * error).all()


@pytest.mark.parametrize("draw", [of_numpy, lambda size: random.sample(range(size), SOME)])
def test_indices_of_other_libraries_are_replaced_where_the_plate_takes_them(draw: Rows) -> None:
    assert log_density(drawn_before(draw, False)) == pytest.approx(log_density(whole), rel=1e-12)
    with pytest.raises(ModelError, match="Index the data by what the plate gives"):
        log_density(drawn_before(draw, True))


def test_rows_that_are_all_the_same_to_the_model_are_left_as_they_are() -> None:
    """A minibatch given as data of a larger whole, and a fixed part of the rows."""

    def given(x: Tensor, y: Tensor) -> None:
        likelihood(x, y, 600, subsample_size=len(y))

    def fixed(x: Tensor, y: Tensor) -> None:
        likelihood(x, y, len(y), subsample=torch.arange(0, 60, 2))

    prior = float(dist.Normal(0.0, 5.0).log_prob(torch.tensor(0.4)))
    prior += float(dist.HalfNormal(2.0).log_prob(torch.tensor(0.9)))
    of_rows = dist.Normal(0.4 * torch.tensor(X), 0.9).log_prob(torch.tensor(Y))
    for model, rows in ((given, of_rows), (fixed, of_rows[::2])):
        size = 600 if model is given else 60
        expected = prior + size / len(rows) * float(rows.sum())
        assert log_density(model)[0, 0] == pytest.approx(expected, rel=1e-7)


def groups(y: Tensor, rows: bool = True) -> None:
    """Groups and their rows, both subsampled; the groups have latents."""
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 3.0))
    some: Any = [{"subsample_size": 4}, {"subsample_size": 5}] if rows else [{}, {}]
    with pyro.plate("group", len(y), dim=-2, **some[0]) as group:
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        with pyro.plate("row", y.shape[1], dim=-1, **some[1]) as row:
            pyro.sample("y", dist.Normal(effect, 0.5), obs=y[group][:, row])


def test_nested_plates_are_fitted_to_the_exact_posterior() -> None:
    y = RANDOM.normal(size=(9, 1)) + 0.5 * RANDOM.normal(size=(9, 12))
    fit = er.fit(groups, {"y": y}, seed=1)
    assert (fit.engine, fit.verdict.trusted) == ("fixed_draws", True)
    # Group means are Normal(mean, 1 + 0.25 / 12).
    precision = 9 / (1 + 0.25 / 12) + 1 / 9
    expected = y.mean(1).sum() / (1 + 0.25 / 12) / precision
    drawn = fit.posterior["posterior"]["mean"].values[0]
    error = precision**-0.5 / 1000**0.5
    assert drawn.mean() == pytest.approx(expected, abs=4 * error)
    assert drawn.std() == pytest.approx(precision**-0.5, rel=0.08)
    assert fit.posterior["posterior"]["effect"].shape[2] == 9


def of_rows(y: Tensor) -> None:
    with pyro.plate("data", len(y), subsample_size=SOME) as rows:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def its_guide(y: Tensor) -> None:
    mean = pyro.param("mean", torch.zeros(len(y)))
    scale = pyro.param("scale", torch.ones(len(y)), constraint=constraints.positive)
    with pyro.plate("data", len(y), subsample_size=SOME) as rows:
        pyro.sample("z", dist.Normal(mean[rows], scale[rows]))


@pytest.mark.parametrize("guide", [its_guide, AutoNormal])
@pytest.mark.parametrize("size", [None, SOME])
def test_a_guide_takes_the_rows_that_the_model_takes(guide: Any, size: int | None) -> None:
    problem, _, _ = bind_model(of_rows, {"y": Y}, {"batch_size": size}, guide)
    declared = resolve_guide(guide, problem)
    with problem.session(0):
        given = {**problem.arguments} | ({} if size is None else {"batch_size": size})
        called = declared.build(problem.space, None)  # type: ignore[arg-type]
        trace: Any = pyro.poutine.trace(called).get_trace(**given)
        model = pyro.poutine.replay(problem.function, trace)
        replayed: Any = pyro.poutine.trace(model).get_trace(**given)
    assert replayed.nodes["z"]["value"].shape == (60 if size is None else SOME,)
    taken = replayed.nodes["data"]["value"]
    assert torch.equal(trace.nodes["data"]["value"], taken)
    assert (replayed.nodes["y"]["value"] == torch.tensor(Y)[taken]).all()


def test_minibatches_are_as_written_where_all_rows_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bind_model(by_size, {"x": X, "y": Y}, {})[1].batch_size is None
    monkeypatch.setattr("elbowroom.problem.bound.SIZES", sizes.Sizes(arguments=10))
    assert bind_model(by_size, {"x": X, "y": Y}, {})[1].batch_size == SOME


def test_latents_of_rows_that_are_a_minibatch_already_are_refused_with_the_edit() -> None:
    """Without latents of rows such data are fitted: their likelihood counts ten times."""

    def model(y: torch.Tensor, local: bool) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("rows", 100, subsample_size=len(y)):
            if local:
                mean = pyro.sample("x", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    data = {"y": torch.linspace(-1, 2, 10)}
    with pytest.raises(ModelError, match=r"'x' is a latent of the plate 'rows', which has 100 mem"):
        er.fit(model, {**data, "local": True}, seed=1)
    found = er.fit(model, {**data, "local": False}, seed=1).posterior["posterior"]["mean"]
    assert abs(float(found.mean()) - 10 * float(data["y"].sum()) / 101) < 0.02
    assert abs(float(found.std()) * 101**0.5 - 1) < 0.1
