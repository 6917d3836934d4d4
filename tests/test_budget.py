"""A fit ends when its time is over, wherever that is, and says so."""

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom import budget
from elbowroom.density.density import Density
from elbowroom.density.mixtures import Mixture
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.engines.nuts.sampler import sample_nuts
from elbowroom.engines.settings import make_settings, seconds_allowed
from elbowroom.errors import OutOfTimeError
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated
from elbowroom.problem.mapping import map_draws

X = np.random.default_rng(0).normal(size=(30, 2))


def two_means(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def point(x: Tensor) -> None:
    mean = pyro.param("mean", torch.zeros(2))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean + shift, 1.0).to_event(1), obs=x)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Sets a clock that stands still until it was read so many times, when all time is over."""

    def until(reads: int) -> list[int]:
        read = count()
        now = [0]

        def monotonic() -> float:
            now[0] = next(read)
            return 0.0 if now[0] < reads else 1e9

        monkeypatch.setattr("elbowroom.budget.time", SimpleNamespace(monotonic=monotonic))
        return now

    return until


@pytest.mark.parametrize("reads", [4, 20, 60, 100, 150, 300])
@pytest.mark.parametrize(("model", "guide"), [(two_means, "auto"), (point, "auto")])
def test_wherever_the_time_is_over_the_fit_ends_with_what_it_has(
    clock: Callable[[int], list[int]], model: Any, guide: str, reads: int
) -> None:
    now = clock(reads)
    fit = er.fit(model, {"x": X}, guide, seed=1, draws=200, time=60)
    drawn = fit.posterior["posterior"].to_dataset()
    assert all(np.isfinite(values).all() for values in drawn.values())
    if now[0] > reads:
        assert not fit.verdict.trusted
        assert "ime" in str(fit.verdict)  # it was over
    else:
        assert fit.verdict.trusted


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "flow", "pathfinder"])
@pytest.mark.parametrize("engine", ["svi", "auto"])
@pytest.mark.parametrize("reads", [4, 60])
def test_a_guide_that_was_asked_for_ends_in_time_or_says_so(
    clock: Callable[[int], list[int]], guide: str, engine: str, reads: int
) -> None:
    if guide == "pathfinder":
        engine = "auto"
    clock(reads)
    with suppress(OutOfTimeError):
        fit = er.fit(two_means, {"x": X}, guide, engine=engine, seed=1, draws=200, time=60)
        assert not fit.verdict.trusted


def test_stochastic_steps_end_and_ask_for_more_time(clock: Callable[[int], list[int]]) -> None:
    clock(400)
    fit = er.fit(two_means, {"x": X}, "mean_field", engine="svi", seed=1, draws=200, time=60)
    assert fit.trained.status == "budget"
    assert "when the time was over" in fit.trained.reason
    assert fit.verdict.advice.startswith("give a longer --time")


def test_steps_begin_where_the_search_for_modes_found_nothing_in_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise OutOfTimeError("the time was over")

    monkeypatch.setattr("elbowroom.engines.svi.engine.explore", late)
    fit = er.fit(two_means, {"x": X}, guide="mean_field", engine="svi", steps=600, seed=1)
    assert np.abs(fit.posterior["posterior"]["mean"].values - X.mean(0)).mean() < 0.5


def test_nuts_ends_with_the_draws_it_has(clock: Callable[[int], list[int]]) -> None:
    arguments = {"x": torch.as_tensor(X)}
    with isolated(0):
        density = Density(two_means, arguments, LatentSpace.of(two_means, arguments))
    clock(12)
    with budget.limited(60.0):
        found = sample_nuts(density, np.zeros((2, 3)), draws=100_000, tune=100, seed=1)
    assert found.status == "interrupted"


def test_a_stage_has_a_share_of_what_the_stages_before_left() -> None:
    said: list[str] = []
    with budget.limited(100.0, said.append) as whole:
        end = whole.deadline
        with budget.stage("first", 0.5):
            assert whole.deadline == pytest.approx(end - 50, abs=1)
            with budget.stage("inner", 0.5):
                assert whole.deadline == pytest.approx(end - 75, abs=1)
            with budget.limited(1e6) as inner:
                assert inner.deadline == whole.deadline
                assert inner.say is not None
        assert whole.deadline == end
        assert not budget.over()
    assert said == ["first", "inner"]


def test_a_stage_without_time_is_noted_and_named() -> None:
    with (
        budget.limited(0.0) as whole,
        budget.stage("counting sheep"),
        pytest.raises(OutOfTimeError, match=r"over while counting sheep; give a longer --time"),
    ):
        budget.check()
    assert whole.cut == ["counting sheep"]
    assert not budget.over()  # outside there is no limit


@pytest.mark.parametrize(
    ("given", "seconds"),
    [({}, 300), ({"time": 7.5}, 7.5), ({"steps": 10}, None), ({"epochs": 1, "time": 9}, 9)],
)
def test_the_time_of_a_fit(given: dict[str, Any], seconds: float | None) -> None:
    assert seconds_allowed(make_settings(given)) == seconds


def test_what_was_cut_short_is_named(clock: Callable[[int], list[int]]) -> None:
    clock(20)
    fit = er.fit(two_means, {"x": X}, seed=1, draws=200, time=60)
    assert fit.evidence.out_of_time.startswith(
        "The time of the fit, 60 s, was over before the search for modes and"
    )


def test_draws_that_a_new_beginning_would_replace_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"x": torch.as_tensor(X)}
    with isolated(0):
        density = Density(two_means, arguments, LatentSpace.of(two_means, arguments))
    wide = Mixture.of(np.ones(1), np.zeros((1, 3)), 4 * np.eye(3)[None])  # needs adapting
    sampling = AdaptiveImportance(density, wide, np.random.default_rng(0))
    begin_anew = sampling.freeze

    def in_time() -> None:
        begin_anew()
        assert not len(sampling.points)
        monkeypatch.setattr("elbowroom.budget.time", SimpleNamespace(monotonic=lambda: 1e9))

    monkeypatch.setattr(sampling, "freeze", in_time)
    with isolated(0), budget.limited(60.0), pytest.raises(OutOfTimeError):
        sampling.run()
    assert sampling.rounds > 1
    assert len(sampling.points) == len(sampling.log_weights) > 1000


def test_what_was_spent_before_counts_up_to_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget.time, "monotonic", lambda: 100.0)
    for spent, left in ((0.0, 20.0), (3.0, 17.0), (50.0, 10.0)):
        with budget.limited(20.0, spent=spent):
            assert budget.left() == left
    with budget.limited(None, spent=5.0):
        assert budget.left() == np.inf


@pytest.mark.parametrize("chunk", [10, 1])
@pytest.mark.parametrize(("late", "made"), [(99.0, 40), (101.0, 20), (111.0, 10)])
def test_draws_end_with_those_they_have(
    monkeypatch: pytest.MonkeyPatch, late: float, made: int, chunk: int
) -> None:
    """The least are made, or a few where the time has long been over, each as among all of them.

    In a batch of one draw they are mapped one by one, since the function cannot be batched.
    """
    values = {"x": torch.arange(40.0)}

    def squared(given: dict[str, Tensor]) -> Tensor:
        x = given["x"]
        return x**2 if chunk > 1 else x * float(x)

    now = [0.0]
    monkeypatch.setattr("elbowroom.budget.time", SimpleNamespace(monotonic=lambda: now[0]))
    with budget.limited(100.0):
        now[0] = late
        some = map_draws(squared, values, chunk, 40, 20)
    assert torch.equal(some, values["x"][:made] ** 2)
