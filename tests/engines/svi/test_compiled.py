"""Compiled steps: the same numbers as the recorded ones, dozens in one call."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom.engines.settings import Settings
from elbowroom.engines.svi import compiled
from elbowroom.engines.svi.compiled import RULES, Compiled, InPlace, Looped
from elbowroom.engines.svi.iterates import Iterates
from elbowroom.engines.svi.loop import Optimisation, Trained
from elbowroom.engines.svi.stepping import FlatParameters
from elbowroom.guides.space import LatentSpace
from elbowroom.objectives.elbo import make_objective
from elbowroom.options import make_options
from elbowroom.problem.isolation import isolated

X = torch.linspace(-1, 1, 40, dtype=torch.float64)
DATA = {"x": torch.stack([X, X.cos()], 1), "y": 2 * X + 0.3 * torch.sin(40 * X)}
FAST = {"schedule": "constant", "compile": True, "restarts": 1}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops of compiled steps without a compiler, which takes long."""
    monkeypatch.setattr(
        "torch.compile",
        lambda steps, **_: partial(steps, repeat=compiled._repeat),
    )


uncompiled = pytest.mark.usefixtures("_uncompiled")


def regression(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        rows, seen = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ slopes, 1.0), obs=seen)


def guide(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    location = pyro.param("location", torch.zeros(2).to(x))
    scale = pyro.param("log_scale", torch.full((2,), -1.0).to(x)).exp()
    pyro.sample("slopes", dist.Normal(location, scale).to_event(1))


def optimisation(
    model: Callable[..., Any] = regression, called: Callable[..., Any] = guide, **options: Any
) -> Optimisation:
    space = LatentSpace.of(model, DATA)
    return Optimisation(
        model, called, DATA, make_objective(options.pop("elbo", "trace"), 1, space),
        make_options(Settings, {**FAST, **options}), space.subsampled,
    )  # fmt: skip


def run(*pair: Callable[..., Any], **options: Any) -> Trained:
    return optimisation(*pair, **options).run()


def posterior() -> tuple[Tensor, Tensor]:
    """The mean of the slopes, and the scales of their best independent Normals."""
    precision = DATA["x"].T @ DATA["x"] + torch.eye(2, dtype=torch.float64)
    return torch.linalg.solve(precision, DATA["x"].T @ DATA["y"]), precision.diag().rsqrt()


def check_fit(tolerance: float) -> None:
    mean, scale = posterior()
    store = pyro.get_param_store()
    torch.testing.assert_close(store["location"].detach(), mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(store["log_scale"].exp().detach(), scale, rtol=tolerance, atol=0)


@pytest.mark.parametrize("batch_size", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_a_compiled_fit_is_the_posterior(batch_size: int | None) -> None:
    """Really compiled; in closed form."""
    trained = run(steps=3000, learning_rate=0.003, batch_size=batch_size)
    assert trained.uncompiled is None
    assert len(trained.elbo_history) == 3000
    check_fit(0.05 if batch_size is None else 0.12)


@uncompiled
def test_steps_in_place_are_the_steps_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large model each is made alone: the same numbers from the same random ones."""
    found = []
    for large in (10**9, 0):
        monkeypatch.setattr(compiled, "CALLS", replace(compiled.CALLS, large=large))
        monkeypatch.setattr(Looped, "longest", InPlace.longest)
        with isolated(2):
            made = optimisation(steps=250, batch_size=8, schedule="plateau")
            trained = made.run()
            assert trained.uncompiled is None
            assert made.rule.iterates is not None
            found.append([trained.elbo_history, *made.rule.iterates.average(-10)])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10)


@pytest.mark.parametrize("name", RULES)
def test_an_optimiser_is_torchs_own(name: str) -> None:
    parameter = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = getattr(torch.optim, name)([parameter], lr=0.1)
    rule = RULES[name](optimizer.param_groups[0])
    vector = parameter.detach().clone()
    state = [torch.zeros_like(vector) for _ in rule.names]
    for step in range(4):
        rate = 0.1 / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        parameter.grad = torch.randn(5, dtype=torch.float64)
        optimizer.step()
        numbers = rule.numbers(torch.tensor([rate]).double(), torch.tensor([1.0 + step]).double())
        vector, state = rule(vector, parameter.grad, state, [each[0] for each in numbers])
        torch.testing.assert_close(vector, parameter.detach(), rtol=1e-12, atol=1e-12)
    for part, own in zip(rule.names, state, strict=True):
        torch.testing.assert_close(own, optimizer.state[parameter][part])


@uncompiled
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_largest_norm_holds(clip_norm: float | None) -> None:
    """One step of gradient descent is as long as the gradient, or as its largest norm."""
    made = optimisation(optimizer="SGD", learning_rate=1.0, steps=1, clip_norm=clip_norm)
    before = made.parameters.copy()[0]
    made.run()
    length = float((torch.cat([v.detach() for v in stored()]) - before).norm())
    assert length == pytest.approx(0.5) if clip_norm else length > 1


def stored() -> list[Tensor]:
    store = pyro.get_param_store()
    return [store["location"], store["log_scale"]]


@pytest.mark.parametrize("cuts", [(7, 18), (25,), (1, 20, 4, 25, 50, 3)])
def test_steps_taken_in_at_once_are_those_taken_in_one_by_one(cuts: tuple[int, ...]) -> None:
    path = 1e3 + torch.randn(1 + sum(cuts), 3, dtype=torch.float64)
    states = []
    for at_once in (False, True):
        parameters = FlatParameters({"p": path[0].clone().requires_grad_()})
        iterates, place = Iterates(parameters), 0
        for count in cuts:
            part = path[place + 1 : place + 1 + count]
            deviation = part - path[place]
            parameters.assign([part[-1]])
            if at_once and count <= iterates.room:
                iterates.add_steps(count, path[place], deviation.sum(0), deviation.square().sum(0))
            else:
                for values in part:
                    parameters.assign([values])
                    iterates.add()
            place += count
        states.append(iterates.state())
    one, two = states
    assert one["count"] == two["count"]
    for name in ("means", "variances"):
        for first, second in zip(one[name], two[name], strict=True):
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one["latest"], two["latest"])
    torch.testing.assert_close(one["squares"], two["squares"], rtol=1e-9, atol=1e-9)


@uncompiled
@pytest.mark.parametrize("large", [10**9, 0])
def test_what_is_rare_is_as_rare_as_without_calls(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step in 100 takes a branch, whether in a loop or alone; four standard deviations."""
    steps, chance = 4000, 0.01
    taken = []
    monkeypatch.setattr(compiled, "CALLS", replace(compiled.CALLS, large=large))

    def rare(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
        guide(x, y, batch_size)
        if torch.rand((), dtype=torch.float64) < chance:
            pyro.sample("more", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    made = optimisation(called=rare, steps=steps, learning_rate=0.003, batch_size=8)
    alone = made.evaluate.as_it_stands
    made.evaluate.as_it_stands = lambda rows: taken.append(rows) or alone(rows)  # type: ignore
    trained = made.run()
    assert trained.uncompiled is None
    assert len(trained.elbo_history) == steps
    spread = (steps * chance * (1 - chance)) ** 0.5
    assert len(taken) == pytest.approx(steps * chance, abs=4 * spread)
    check_fit(0.12)


@uncompiled
@pytest.mark.parametrize("large", [10**9, 0])
def test_rows_that_a_call_did_not_come_to_are_the_next_ones(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch has every row once, though calls end early."""
    monkeypatch.setattr(compiled, "CALLS", replace(compiled.CALLS, large=large))
    seen: list[Tensor] = []
    whole = Compiled.__call__

    def noted(self: Compiled, rows: Any, *rest: Any) -> Any:
        made = whole(self, rows, *rest)
        seen.extend(each for (each,) in rows[: len(made.losses) + (made.stopped is not None)])
        return made

    def rare(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
        guide(x, y, batch_size)
        if torch.rand((), dtype=torch.float64) < 0.03:
            pyro.sample("more", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    monkeypatch.setattr(Compiled, "__call__", noted)
    trained = run(regression, rare, steps=1000, batch_size=8)
    assert trained.uncompiled is None
    epochs = torch.stack(seen).reshape(-1, 40)
    assert len(epochs) == 200
    assert all(epoch.sort().values.equal(torch.arange(40)) for epoch in epochs)


@uncompiled
def test_where_most_calls_cannot_be_made_there_are_no_more() -> None:
    def often(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
        guide(x, y, batch_size)
        if torch.rand(()) < 0.2:
            pyro.sample("more", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    trained = run(regression, often, steps=1000)
    assert trained.uncompiled is not None
    assert "another branch" in trained.uncompiled
    assert len(trained.elbo_history) == 1000


@uncompiled
def test_steps_that_are_not_finite_are_left_out_as_without_calls() -> None:
    """A logarithm of what is sometimes below zero."""

    def rough(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
        pyro.factor("rough", (0.02 * (slopes[0] + 0.5).log()))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    def wide(x: Tensor, y: Tensor) -> None:
        location = pyro.param("location", torch.zeros(2).to(x))
        pyro.param("log_scale", torch.full((2,), -1.0).to(x))
        pyro.sample("slopes", dist.Normal(location, 1.2).to_event(1))

    trained = run(rough, wide, steps=2000, learning_rate=0.01)
    assert trained.uncompiled is None or "not finite" in trained.uncompiled
    assert trained.skipped > 0
    assert int(np.isnan(trained.elbo_history).sum()) == trained.skipped
    assert len(trained.elbo_history) == 2000
    assert torch.isfinite(pyro.get_param_store()["location"]).all()


def gamma_guide(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    rate = pyro.param("rate", torch.ones(2).to(x))
    pyro.sample("slopes", dist.Gamma(rate.exp(), 1.0).to_event(1))


@uncompiled
@pytest.mark.parametrize(
    ("options", "pair", "why"),
    [
        ({"optimizer": "RMSprop"}, (), "only Adam, AdamW, SGD can be compiled, not RMSprop"),
        ({}, (regression, gamma_guide), "standard_gamma"),
    ],
)
def test_a_run_that_cannot_be_compiled_says_why(
    options: dict[str, Any], pair: tuple[Callable[..., Any], ...], why: str
) -> None:
    trained = run(*pair, steps=120, **options)
    assert trained.uncompiled is not None
    assert why in trained.uncompiled
    assert len(trained.elbo_history) == 120


def test_a_short_run_is_not_compiled() -> None:
    assert run(steps=50).uncompiled == "compiling does not pay for fewer than 100 steps"


@uncompiled
def test_a_look_that_a_step_left_out_has_passed_is_taken_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last step before a look is not finite: the next call would have no steps."""

    def rough(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
        pyro.factor("rough", 0.02 * (slopes[0] + 1).log())
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    def narrow(x: Tensor, y: Tensor) -> None:
        pyro.param("log_scale", torch.full((2,), -1.0).to(x))
        location = pyro.param("location", torch.zeros(2).to(x))
        pyro.sample("slopes", dist.Normal(location, 0.5).to_event(1))

    overdue = []
    advance = Optimisation._advance

    def noted(self: Optimisation, progress: Any, *given: Any) -> str:
        overdue.append(not given)
        return advance(self, progress, *given)

    monkeypatch.setattr(Optimisation, "_advance", noted)
    made = optimisation(rough, narrow, steps=600, learning_rate=1e-9)
    made.window = 7
    trained = made.run()
    assert any(overdue)
    assert len(trained.elbo_history) == 600


def test_without_a_compiler_a_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch.compile", failing)
    assert run(steps=150).uncompiled == "torch.compile failed (RuntimeError)"


@uncompiled
def test_compiled_steps_that_differ_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, vector: Tensor, gradient: Tensor, *rest: Any) -> Any:
        monkeypatch.setattr(RULES["Adam"], "__call__", right)
        found = right(self, 2 * vector, gradient, *rest)
        return found

    right = RULES["Adam"].__call__
    monkeypatch.setattr(RULES["Adam"], "__call__", wrong)
    assert run(steps=150).uncompiled == "the compiled steps give other numbers"
