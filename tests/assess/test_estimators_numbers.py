"""Each number of the table of estimators, from gradients whose moments are known."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.assess import estimators
from elbowroom.assess.estimators import Estimator, _Sampled, applicable
from elbowroom.engines.settings import Settings
from elbowroom.guides.sites import GuideSites
from elbowroom.objectives.score_function import ScoreFunctionOptions
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem

Y = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
START, NARROW = 2.0, 1e-6


def model(y: Tensor, batch_size: int | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        pyro.sample("y", dist.Normal(z, 1.0), obs=pyro.subsample(y, event_dim=0))


def guide(y: Tensor, batch_size: int | None = None) -> None:
    pyro.sample("z", dist.Normal(pyro.param("location", torch.tensor(START)), 1.0))


def narrow_guide(y: Tensor, batch_size: int | None = None) -> None:
    pyro.sample("z", dist.Normal(pyro.param("location", torch.tensor(START)), NARROW))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return bind_model(model, {"y": Y}, {})[0]


def sampled(problem: Problem, *given: Any, **changed: Any) -> _Sampled:
    """Gradients at a location of three; a row of the data has a gradient of 3 - y."""
    which, estimator, size, count, seed = given
    with problem.session(0):
        found = estimators._gradients(
            problem, which, estimator, size, [torch.tensor([3.0])], count, seed
        )
        assert list(pyro.get_param_store()) == ["location"]
    return found


def test_gradients_are_those_of_fresh_noise_at_the_given_parameters(problem: Problem) -> None:
    """By the location of a Normal of sd one: its draw and the sum of draw - y, of sd seven."""
    found = sampled(problem, guide, Estimator("trace"), None, 300, 1)
    assert found.gradients.shape == (300, 1)
    mean = 3 + float((3 - Y).sum())
    assert abs(found.gradients.mean() - mean) < 4 * 7 / 300**0.5
    assert found.gradients.std() == pytest.approx(7.0, rel=4 / 600**0.5)
    assert found.recorded
    again, other = (sampled(problem, guide, Estimator("trace"), None, 5, s) for s in (1, 2))
    np.testing.assert_allclose(again.gradients, found.gradients[:5])
    assert not np.isclose(other.gradients, again.gradients).any()
    several = sampled(problem, guide, Estimator("trace", particles=4), None, 300, 1)
    assert several.gradients.std() == pytest.approx(3.5, rel=4 / 600**0.5)


def test_gradients_of_minibatches_go_through_all_rows(problem: Problem) -> None:
    """Of two rows the gradients are scaled by three; an epoch's mean is that of all rows."""
    found = sampled(problem, narrow_guide, Estimator("trace"), 2, 6, 1).gradients[:, 0]
    sums = (found - 3) / 3  # of 3 - y over two rows
    pairs = {float(6 - a - b) for i, a in enumerate(Y) for b in Y[:i]}
    for each in sums:
        assert min(abs(each - pair) for pair in pairs) < 1e-3
    for epoch in (sums[:3], sums[3:]):
        assert epoch.sum() == pytest.approx(float((3 - Y).sum()), abs=1e-3)


def test_the_time_is_the_median_in_milliseconds(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 2, 2 and 50 ms, by a clock of our own."""
    began = iter(np.cumsum([1.0, 0.002, 1.0, 0.002, 1.0, 0.05]))
    clock = SimpleNamespace(perf_counter=lambda: float(next(began)))
    monkeypatch.setattr(estimators, "time", clock)
    found = sampled(problem, guide, Estimator("trace"), None, 3, 1)
    assert found.milliseconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("baseline", "learnt", "optimised"),
    [("none", 0, False), ("decaying", 7, False), ("neural", 7, True)],
)
def test_baselines_are_learnt_before_and_forgotten_after(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, baseline: str, learnt: int, optimised: bool
) -> None:
    steps = []
    learn = estimators._learn

    def counted(step: Any, rows: Any, optimizer: Any) -> None:
        steps.append(optimizer is not None)
        learn(step, rows, optimizer)

    monkeypatch.setattr(estimators, "SAMPLING", replace(estimators.SAMPLING, warm_up=7))
    monkeypatch.setattr(estimators, "_learn", counted)
    estimator = Estimator("score_function", ScoreFunctionOptions(baseline))
    found = sampled(problem, guide, estimator, None, 3, 1)
    assert found.gradients.shape == (3, 1)  # of the guide's parameter alone
    assert steps == [optimised] * learnt


def test_a_baseline_s_network_takes_a_step_of_each_gradient() -> None:
    seen: list[Any] = []
    optimizer = SimpleNamespace(
        zero_grad=lambda: seen.append("zero"), step=lambda: seen.append("step")
    )
    estimators._learn(lambda rows: seen.append(rows), None, optimizer)  # type: ignore[arg-type]
    assert seen == ["zero", None, "step"]


# What is told of gradients.

VALUES = [torch.zeros(2)]
TRACE = Estimator("trace")
SCORE = Estimator("score_function", ScoreFunctionOptions("none"), "no baseline")
IWAE = Estimator("iwae", particles=8)


def spread(mean: Any, *deviations: float, times: int = 8) -> np.ndarray:
    """Gradients, (times, P), of a mean and of sample deviations, half of them on either side."""
    sides = np.resize([-1.0, 1.0], (times, 1)) * np.array(deviations)
    return np.array(mean) + sides * ((times - 1) / times) ** 0.5


def table(
    monkeypatch: pytest.MonkeyPatch, exact: np.ndarray, found: dict[Estimator, _Sampled]
) -> dict[str, dict[str, Any]]:
    asked: list[Any] = []

    def gradients(*given: Any) -> _Sampled:
        asked.extend(given)
        return _Sampled(exact, 1.0, True)

    monkeypatch.setattr(estimators, "_gradients", gradients)
    given: Any = ("the problem", "the guide", 20, VALUES, 6)
    rows: Iterator[dict[str, Any]] = estimators._rows("end", 70, found, *given)
    lines = {row.pop("estimator"): row for row in rows}
    # The reference: five times as many of the least noisy one of the ELBO, at another seed.
    assert asked == ["the problem", "the guide", TRACE, 20, VALUES, 40, 7]
    assert all((line.pop("stage"), line.pop("step")) == ("end", 70) for line in lines.values())
    return lines


def test_noise_bias_and_cost_are_those_of_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean (3, 4); deviations 1 and 2, 4 and 0, and of another bound less than either."""
    lines = table(
        monkeypatch,
        spread([3.0, 4.0], 0.6, 0.8, times=40),
        {
            SCORE: _Sampled(spread([3.0, 6.0], 4.0, 0.0), 0.5, False),
            TRACE: _Sampled(spread([3.3, 4.4], 1.0, 2.0), 3.0, True),
            IWAE: _Sampled(spread([9.0, 9.0], 0.1, 0.1), 10.0, True),
        },
    )
    its_error = np.array([0.36, 0.64]) / 40
    error = (np.array([1.0, 4.0]) / 8 + its_error).sum() ** 0.5
    assert lines["trace"] == {
        "signal": pytest.approx(5.0), "noise": pytest.approx(5**0.5),
        "bias": pytest.approx(0.5 / error, rel=1e-6), "biased": False, "ms": 3.0,
        "recorded": True, "cost": pytest.approx(15 / 8),
    }  # fmt: skip
    error = (16 / 8 + its_error.sum()) ** 0.5
    assert lines["score_function, no baseline"] == {
        "signal": pytest.approx(5.0), "noise": pytest.approx(4.0),
        "bias": pytest.approx(2 / error, rel=1e-6), "biased": False, "ms": 0.5,
        "recorded": False, "cost": pytest.approx(1.0),
    }  # fmt: skip
    other = lines["iwae, 8 draws"]
    assert np.isnan([other["signal"], other["bias"]]).all()
    assert not other["biased"]
    assert other["noise"] == pytest.approx(0.02**0.5)
    assert other["cost"] == pytest.approx(0.2 / 8)


@pytest.mark.parametrize(("errors", "biased"), [(3.4, False), (3.6, True)])
def test_a_mean_beyond_three_and_a_half_errors_is_biased(
    monkeypatch: pytest.MonkeyPatch, errors: float, biased: bool
) -> None:
    found = {TRACE: _Sampled(spread([1.0 + errors * 0.5**0.5, 0.0], 2.0, 0.0), 1.0, True)}
    line = table(monkeypatch, np.tile([1.0, 0.0], (40, 1)), found)["trace"]
    assert line["bias"] == pytest.approx(errors, rel=1e-6)
    assert line["biased"] is biased


@pytest.mark.parametrize(
    ("size", "off"), [(2.0**20, 2.0**-14), (1.0, 2.0**-27), (2.0**-10, 2.0**-34)]
)
def test_rounding_of_a_gradient_without_noise_is_no_bias(
    monkeypatch: pytest.MonkeyPatch, size: float, off: float
) -> None:
    """Up to a billionth of the gradient or of one, whichever is more; powers of two have exact
    means, and so no noise."""
    found = {TRACE: _Sampled(np.tile([size + off, 0.0], (8, 1)), 1.0, True)}
    line = table(monkeypatch, np.tile([size, -0.5 * size], (40, 1)) * [1, 0], found)["trace"]
    assert line["noise"] == 0
    assert np.isnan(line["cost"])
    assert line["bias"] == pytest.approx(off / (1e-9 * max(1.0, size)))


# Which estimators there are, and when they are looked at.


def kinds(problem: Problem, settings: Settings, **changed: set[str]) -> dict[str, Estimator]:
    none: dict[str, set[str]] = {
        name: set() for name in ("auxiliary", "discrete", "enumerable", "rough")
    }
    whole = {"names": {"z"}, **none, **changed}
    guided: Any = GuideSites(**{name: frozenset(each) for name, each in whole.items()})  # type: ignore[arg-type]
    return {each.name: each for each in applicable(problem, guided, settings)}


def test_the_estimators_that_a_model_and_a_guide_can_have(problem: Problem) -> None:
    found = kinds(problem, Settings(particles=1, of_objectives={"alpha": 0.25}))
    assert {"trace", "sticking_the_landing", "iwae, 8 draws", "renyi, 8 draws"} <= set(found)
    assert {f"score_function, {kind} baseline" for kind in ("no", "running", "neural")} <= set(
        found
    )
    assert found["renyi, 8 draws"].options.alpha == 0.25
    assert found["score_function, no baseline"].options.baseline == "none"
    assert found["trace"].options is None
    # As trace, or not of the loss, or of what is not there to be summed over.
    names = {each.objective for each in found.values()}
    assert not {"trace_graph", "reweighted_wake_sleep", "trace_enum"} & names
    assert [found[name].of_the_elbo for name in ("trace", "iwae, 8 draws")] == [True, False]
    rough = {each.objective for each in kinds(problem, Settings(), rough={"z"}).values()}
    assert "trace_graph" in rough
    assert "sticking_the_landing" not in rough


def test_draws_are_those_that_are_asked_for_or_several(problem: Problem) -> None:
    few, many = kinds(problem, Settings(particles=3)), kinds(problem, Settings(particles=20))
    assert {"trace, 3 draws", "iwae, 8 draws", "score_function, no baseline, 3 draws"} <= set(few)
    assert {"trace, 20 draws", "iwae, 20 draws"} <= set(many)


class Counted:
    """Parameters whose value is the number of steps taken."""

    def __init__(self) -> None:
        self.steps = 0

    def copy(self) -> list[Tensor]:
        return [torch.tensor([float(self.steps)])]

    @property
    def groups(self) -> list[list[Tensor]]:
        return [[torch.full((1, 2), float(self.steps)), torch.ones(())], [torch.zeros(1)]]


@pytest.mark.parametrize(("steps", "middle"), [(30, 15), (44, 22), (2, 1), (0, 0)])
def test_the_stages_are_the_first_the_middle_and_the_last_step(steps: int, middle: int) -> None:
    run: Any = SimpleNamespace(parameters=Counted(), elbo=[0.0] * steps)
    stages = estimators._Stages(run)
    for step in range(1, steps + 1):
        run.parameters.steps = step
        stages(step, steps, 0.0, 0.1)
    chosen = stages.chosen()
    assert list(chosen) == ["start", "middle", "end"]
    assert {name: step for name, (step, _) in chosen.items()} == {
        "start": 0, "middle": middle, "end": steps
    }  # fmt: skip
    assert chosen["start"][1][0].item() == 0
    assert chosen["middle"][1][0].item() == middle
    assert [each.tolist() for each in chosen["end"][1]] == [[steps, steps, 1.0], [0.0]]
    assert len(stages.kept) <= 5 + 6 * np.log(steps + 1)  # few of many are kept


def test_each_stage_is_measured_where_the_fit_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps of plain descent, whose gradient at a location is seven times it less the sum."""
    monkeypatch.setattr(estimators, "applicable", lambda *_: [TRACE])
    rate, total = 0.01, float(Y.sum())
    found = er.estimators(
        model, {"y": Y}, narrow_guide, seed=1, gradients=50, steps=30, elbo="trace",
        optimizer="SGD", learning_rate=rate, schedule="constant",
    )  # fmt: skip
    assert found["stage"].tolist() == ["start", "middle", "end"]
    assert found["step"].tolist() == [0, 15, 30]
    begun = total - 7 * START
    signal = [begun * (1 - 7 * rate) ** step for step in (0, 15, 30)]
    np.testing.assert_allclose(found["signal"], signal, rtol=1e-3)
    assert (found["noise"] < 1e-3).all()


def test_the_parameters_of_a_fit_s_baseline_are_none_of_a_stage_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimators, "applicable", lambda *_: [TRACE])
    found = er.estimators(
        model, {"y": Y}, guide, seed=1, gradients=50, steps=2, elbo="score_function",
        baseline="neural",
    )  # fmt: skip
    assert found["noise"].between(5, 9).all()  # of the location alone, seven


def test_batches_of_all_rows_add_no_noise(problem: Problem) -> None:
    found = sampled(problem, narrow_guide, Estimator("trace"), 6, 4, 1)
    np.testing.assert_allclose(found.gradients, 3 + float((3 - Y).sum()), atol=1e-3)
