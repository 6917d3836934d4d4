"""When a run is called converged: on series, iterates and models whose end is known."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import elbowroom as er
from elbowroom.engines.settings import Settings
from elbowroom.engines.svi import loop as svi
from elbowroom.engines.svi.iterates import ITERATES, Iterates
from elbowroom.engines.svi.loop import Optimisation, Trained, unconstrained_parameters
from elbowroom.engines.svi.movement import Movement
from elbowroom.engines.svi.stepping import FlatParameters, Step
from elbowroom.engines.svi.stopping import STOPPING, Stationary, Trend, trend
from elbowroom.guides.space import LatentSpace, Plate
from elbowroom.objectives.elbo import make_objective
from elbowroom.options import make_options
from elbowroom.problem.isolation import isolated

WINDOW = 200


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def test_the_standard_error_is_that_of_the_difference_of_means() -> None:
    series = np.random.default_rng(1).normal(size=20_000)
    found = trend(series.tolist(), 10_000)
    assert found is not None
    # A standard deviation from twenty batch means is known within a factor 1 ± 4 / √(2 · 18).
    assert 1 / 3 < found.standard_error / (2 / 10_000) ** 0.5 < 5 / 3
    assert abs(found.rise) < 4 * (2 / 10_000) ** 0.5


def test_a_rise_within_its_noise_is_level_and_one_beyond_it_is_not() -> None:
    noise = np.random.default_rng(3).normal(size=2 * WINDOW)
    for rise, level in ((0.0, True), (0.5, False)):
        found = trend((noise + rise * (np.arange(2 * WINDOW) >= WINDOW)).tolist(), WINDOW)
        assert found is not None
        assert found.level is level


def test_a_rise_that_nobody_would_notice_is_flat() -> None:
    def step(rise: float) -> list[float]:
        return [0.0] * WINDOW + [rise] * WINDOW

    small, large = (
        trend(step(STOPPING.negligible / 2), WINDOW),
        trend(step(STOPPING.negligible * 2), WINDOW),
    )
    assert small is not None
    assert small.level
    assert large is not None
    assert not large.level


def test_only_the_last_two_windows_count() -> None:
    found = trend([-1e6] * 300 + [1.0] * 2 * WINDOW, WINDOW)
    assert found is not None
    assert found.rise == 0.0


def test_too_few_estimates_say_nothing() -> None:
    assert trend([1.0] * (2 * WINDOW - 1), WINDOW) is None
    assert trend([1.0] * 100, 9) is None
    assert trend([float("nan")] * 2 * WINDOW, WINDOW) is None


def test_a_skipped_step_does_not_silence_the_rule() -> None:
    """One bad step in every window must not keep a fit from ever converging."""
    series = np.random.default_rng(2).normal(size=1000)
    series[::150] = np.nan
    assert trend(series.tolist(), WINDOW) is not None


def test_a_rise_is_level_up_to_two_standard_errors_and_a_hundredth_of_a_nat() -> None:
    assert Trend(2 * 0.3 + 0.009, 0.3).level
    assert not Trend(2 * 0.3 + 0.011, 0.3).level


@pytest.mark.parametrize(("moved", "converged"), [(1.4, True), (1.6, False)])
def test_a_run_has_converged_where_all_further_cuts_would_move_it_by_half_the_tolerance(
    moved: float, converged: bool
) -> None:
    """Each cut to a quarter moves the mean by a quarter as much: a third of the last move in all.

    So the last one may be of 1.5 tolerances.
    """
    parameters = FlatParameters({"p": torch.zeros(1, requires_grad=True)})
    near = [0.0, 0.0, 0.0, moved]  # the halves at each rate, and the means of the two rates

    def distance(*_: Any) -> float:
        return near.pop(0)

    rule: Any = Stationary(parameters, distance, 0.1)  # type: ignore[arg-type]
    random, said = torch.Generator().manual_seed(0), []
    del near[2]  # the first rate has no mean before it
    for _ in range(2):
        for _ in range(20 * ITERATES.block):
            parameters.assign([torch.randn(1, generator=random)])
            rule.iterates.add()
        said.append(rule.look([0.0] * 10))
        rule.restart()
    assert near == []
    assert said == [None, "converged" if converged else None]
    assert rule.moves is not converged


@pytest.mark.parametrize("warm", [True, False])
def test_a_run_does_not_go_back_beyond_its_warm_up(warm: bool) -> None:
    """In a warm-up a run is told more than the ELBO; a fall from that is no reason to go back."""
    parameters = FlatParameters({"p": torch.zeros(1, requires_grad=True)})
    rule: Any = Stationary(parameters, lambda *_: 1.0, 0.1)  # type: ignore[arg-type]
    told: list[float] = [0.0] * WINDOW
    parameters.assign([torch.ones(1)])
    if warm:
        rule.begin(told)
    else:
        rule.look(told)
    moved = []
    for _ in range(STOPPING.worse):
        told += [-50.0] * WINDOW
        rule.look(told)
        moved.append(rule.moves)
    assert moved == [False] * (STOPPING.worse - 1) + [not warm]
    assert float(rule.best_values[0]) == (1.0 if warm else 0.0)


def passed(path: np.ndarray) -> Iterates:
    """The iterates of parameters that took a path, (steps, P)."""
    parameters = FlatParameters({"p": torch.tensor(path[0], requires_grad=True)})
    iterates = Iterates(parameters)
    for values in path:
        parameters.assign([torch.tensor(values)])
        iterates.add()
    return iterates


@given(
    steps=st.integers(ITERATES.block, 5 * ITERATES.block * ITERATES.blocks), seed=st.integers(0, 99)
)
def test_blocks_have_the_means_and_variances_of_their_steps(steps: int, seed: int) -> None:
    path = 1e3 + np.random.default_rng(seed).normal(size=(steps, 3))
    iterates = passed(path)
    count = len(iterates.means)
    assert count < ITERATES.blocks
    assert 0 <= steps - iterates.steps < iterates.length
    blocks = path[: iterates.steps].reshape(count, iterates.length, 3)
    means = np.stack([mean.numpy() for (mean,) in iterates.means])
    variances = np.stack([variance.numpy() for (variance,) in iterates.variances])
    np.testing.assert_allclose(means, blocks.mean(1), rtol=1e-12)
    np.testing.assert_allclose(variances, blocks.var(1), rtol=1e-6)
    (average,) = iterates.average(-count)
    np.testing.assert_allclose(average.numpy(), blocks.mean((0, 1)), rtol=1e-12)


def autoregression(steps: int, correlation: float, count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    path = random.normal(size=(steps, count)) / (1 - correlation**2) ** 0.5
    for t in range(1, steps):
        path[t] = correlation * path[t - 1] + random.normal(size=count)
    return path


def test_iterates_that_wander_round_one_place_are_stationary() -> None:
    found = [passed(autoregression(4000, 0.98, 30, seed)).window() for seed in range(20)]
    assert sum(window is not None for window in found) >= 19


def test_one_of_many_parameters_that_still_drifts_is_seen() -> None:
    for seed in range(20):
        path = autoregression(4000, 0.98, 30, seed)
        assert passed(path).window() is not None or seed
        path[:, 7] = 0.01 * np.arange(4000)
        assert passed(path).window() is None


def test_an_approach_from_afar_is_not_stationary_but_what_comes_after_is() -> None:
    path = autoregression(4000, 0.9, 5)
    path += 100 * np.exp(-np.arange(4000) / 300)[:, None]
    assert passed(path[:1200]).window() is None
    whole = passed(path)
    window = whole.window()
    assert window is not None
    assert whole.steps - window * whole.length > 900  # the approach is left out
    (average,) = whole.average(-window)
    assert average.abs().max() < 4 * 10 / (window * whole.length) ** 0.5


def movement(guide: Callable[..., Any], model: Callable[..., Any] | None = None) -> Movement:
    def empty() -> None:
        pass

    def own() -> None:
        guide()

    guide()
    if model is not None:
        poutine.trace(model).get_trace()
    objective = make_objective("trace", 1, LatentSpace((), {}, ()))
    parameters = FlatParameters(unconstrained_parameters())
    return Movement(Step(objective, model or empty, own, {}, parameters))


def between(guide: Callable[..., Any], change: Any, **given: Any) -> float:
    """The distance of a guide from itself with its parameters changed, both ways."""
    found = movement(guide, **given)
    one = found.step.parameters.copy()
    two = [vector + torch.as_tensor(change, dtype=vector.dtype) for vector in one]
    there, back = found(one, two, 1.0), found(two, one, 1.0)
    assert there == pytest.approx(back, rel=0.5)
    for vector, value in zip(found.step.parameters.vectors, one, strict=True):
        assert torch.equal(vector.detach(), value)  # they are put back
    return there


SAMPLED = 0.4
"""Four relative standard errors of the root of a variance from 100 draws, and the second order."""


def normal_guide() -> None:
    location = pyro.param("location", torch.zeros(2))
    scale = pyro.param("scale", torch.tensor([0.5, 4.0]), constraint=constraints.positive)
    pyro.sample("x", dist.Normal(location, scale).to_event(0))


@pytest.mark.parametrize("by", [1e-6, 0.01, 0.3])
def test_the_distance_of_normals_is_that_of_their_means_in_standard_deviations(by: float) -> None:
    assert between(normal_guide, [0.5 * by, 0, 0, 0]) == pytest.approx(by, rel=SAMPLED)
    assert between(normal_guide, [0, 4.0 * by, 0, 0]) == pytest.approx(by, rel=SAMPLED)


def test_the_distance_of_scales_is_the_root_of_the_symmetrised_divergence() -> None:
    """It is 2 e² for a logarithm of the scale that differs by e."""
    assert between(normal_guide, [0, 0, 0.01, 0]) == pytest.approx(0.01 * 2**0.5, rel=SAMPLED)


def test_a_guide_that_did_not_move_is_at_no_distance() -> None:
    assert between(normal_guide, 0.0) == 0.0


def test_sites_that_only_some_runs_sample_are_left_out() -> None:
    def guide() -> None:
        normal_guide()
        if torch.rand(()) < 0.3:
            pyro.sample("more", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    pyro.set_rng_seed(0)
    assert between(guide, [0.05, 0, 0, 0]) == pytest.approx(0.1, rel=SAMPLED)


def test_draws_that_follow_from_noise_without_parameters_are_compared_themselves() -> None:
    def guide() -> None:
        noise = pyro.sample("noise", dist.Normal(torch.zeros(()), 1.0))
        location = pyro.param("location", torch.zeros(()))
        pyro.sample("x", dist.Delta(location + 3.0 * noise))

    assert between(guide, 0.3) == pytest.approx(0.1, rel=SAMPLED)


@pytest.mark.parametrize(("begin", "by"), [(0.0, 0.2), (-3.0, 1.0), (8.0, 4.0)])
def test_the_distance_of_discrete_sites_is_that_of_their_probabilities(
    begin: float, by: float
) -> None:
    """Logits of what is certain may move as far as they like."""

    def guide() -> None:
        pyro.sample("x", dist.Bernoulli(logits=pyro.param("logits", torch.tensor(begin))))

    before, after = 1 / (1 + np.exp(-begin)), 1 / (1 + np.exp(-begin - by))
    assert between(guide, by) == pytest.approx(2 * (after - before), rel=1e-5)


def test_points_are_compared_by_their_elbo() -> None:
    def guide() -> None:
        pyro.sample("x", dist.Delta(pyro.param("point", torch.tensor(1.0))))

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))

    by = 0.001
    expected = ((1 + by) ** 2 - 1) / 2 / STOPPING.negligible
    assert between(guide, by, model=model) == pytest.approx(expected, rel=1e-6)


def test_parameters_of_the_model_are_compared_by_their_elbo() -> None:
    def model() -> None:
        pyro.factor("far", -pyro.param("free", torch.tensor(3.0)).square())

    assert between(normal_guide, [0, 0, 0, 0, 0.1], model=model) > 10


def test_where_the_way_leads_to_no_density_nothing_rises() -> None:
    def model() -> None:
        size = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)).abs().max()
        if size > 30:
            raise RuntimeError("not positive definite")
        pyro.factor("x_", -size)

    found = movement(lambda: normal_guide(), model=model)
    one = found.step.parameters.copy()
    two = [vector + 0.1 for vector in one]
    assert not found.rises_beyond(one, two)


def fitted(
    guide: Callable[..., Any], model: Callable[..., Any], arguments: dict[str, Any], **given: Any
) -> tuple[Trained, Optimisation]:
    space = LatentSpace.of(model, arguments)
    run = Optimisation(
        model, guide, arguments, make_objective("trace", 1, space), make_options(Settings, given),
        space.subsampled, space.local_continuous,
    )  # fmt: skip
    return run.run(), run


def far_away(mean: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.tensor(mean), 1.0))
        pyro.factor("data", torch.zeros(()))

    def guide() -> None:
        location = pyro.param("location", torch.zeros(()))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(location, scale))

    return guide, model


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_converges_is_where_it_should_be(seed: int) -> None:
    torch.manual_seed(seed)
    found, _ = fitted(*far_away(10.0), {})
    assert found.status == "converged"
    assert "a cut of the learning rate no longer moved the guide" in found.reason
    assert float(pyro.param("location").detach()) == pytest.approx(10.0, abs=0.15)
    assert float(pyro.param("scale").detach()) == pytest.approx(1.0, rel=0.15)
    assert len(np.unique(found.learning_rates)) >= 2


def test_parameters_that_drift_for_ever_do_not_keep_a_run_from_its_end() -> None:
    """Logits of what is certain: they grow without an end, and the guide stays as it is."""

    def model() -> None:
        with pyro.plate("rows", 5):
            on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.5)))
            pyro.factor("data", 200 * on)

    def guide() -> None:
        with pyro.plate("rows", 5):
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("logits", torch.ones(5))))

    found, _ = fitted(guide, model, {}, learning_rate=0.1)
    assert found.status == "converged"
    assert float(pyro.param("logits").detach().min()) > 5


def test_a_run_that_is_still_on_its_way_is_not_called_converged() -> None:
    """Adam goes 0.02 a step: 1,000 are far more than the budget allows."""
    found, run = fitted(*far_away(1000.0), {}, steps=3000)
    assert found.status == "budget"
    assert not found.converged
    assert found.reason.startswith("stopped at the budget of 3,000 steps: the parameters still mov")
    assert run.rule.kept() is None


def test_a_rate_that_makes_the_elbo_worse_is_cut_and_the_run_goes_back() -> None:
    """Steps far too long for two hundred correlated parameters: it settles all the same."""
    size = 200

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.factor("data", torch.zeros(()))

    def guide() -> None:
        location = pyro.param("location", torch.zeros(size))
        scale = pyro.param("log_scale", torch.zeros(size)).exp()
        pyro.sample("x", dist.Normal(location, scale).to_event(1))

    found, _ = fitted(guide, model, {}, learning_rate=1.0, steps=6000)
    rates = np.unique(found.learning_rates)
    assert rates[0] < 0.1
    assert float(pyro.param("location").detach().abs().max()) < 0.3
    assert float(pyro.param("log_scale").detach().abs().max()) < 0.3


@pytest.mark.parametrize("rate", [1e-4, 1e-6])
def test_a_learning_rate_that_is_far_too_small_is_not_called_converged(rate: float) -> None:
    """The guide stands nearly still, and the ELBO is level within its noise: it has far to go."""
    y = 2 + torch.randn(1000)

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        location, scale = pyro.param("m", torch.zeros(())), pyro.param("s", torch.tensor(-3.0))
        pyro.sample("mean", dist.Normal(location, scale.exp()))

    found, _ = fitted(guide, model, {"y": y}, learning_rate=rate, steps=5000)
    assert found.status == "budget"


def test_a_smaller_tolerance_takes_longer() -> None:
    lengths = []
    for tolerance in (0.3, 0.02):
        pyro.clear_param_store()
        torch.manual_seed(0)
        found, _ = fitted(*far_away(1.0), {}, tolerance=tolerance)
        lengths.append(len(found.elbo_history))
    assert lengths[0] < lengths[1]


def overfitting(rows: int) -> tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]:
    """Two columns of noise, and a network for the latents that can learn them by heart."""
    x = torch.randn(rows, 2)

    def model(x: Tensor, batch_size: int | None = None) -> None:
        weights = pyro.param("weights", 0.1 * torch.randn(1, 2))
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            batch = pyro.subsample(x, event_dim=1)
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 1.0).to_event(1), obs=batch)

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        first = pyro.param("first", 0.1 * torch.randn(2, 1))
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            batch = pyro.subsample(x, event_dim=1)
            pyro.sample("z", dist.Normal(batch @ first, 0.5).to_event(1))

    return guide, model, {"x": x}


def test_rows_held_out_stop_an_amortised_guide_and_the_best_parameters_are_kept() -> None:
    found, run = fitted(*overfitting(200), batch_size=20, learning_rate=0.01)
    assert found.status == "converged"
    assert "the ELBO of the held-out rows no longer rose" in found.reason
    plate = run.evaluate.plate
    assert isinstance(plate, Plate)
    assert run.batches is not None
    assert run.batches.rows is not None
    held = torch.tensor(sorted(set(range(200)) - set(run.batches.rows.tolist())))
    assert len(held) == 20
    rule: Any = run.rule
    assert rule.evaluate() == pytest.approx(rule.best, rel=1e-12)


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many rows some were left out, for each fit that did so."""
    found: list[int] = []
    chosen = svi.held_out_rows

    def seen(rows: int, share: float) -> Tensor | None:
        found.append(rows)
        return chosen(rows, share)

    monkeypatch.setattr(svi, "held_out_rows", seen)
    return found


def test_a_guide_with_parameters_for_every_row_has_no_rows_held_out(left_out: list[int]) -> None:
    _, model, arguments = overfitting(50)

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        means = pyro.param("means", torch.zeros(50, 1))
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            batch = pyro.subsample(means, event_dim=1)
            pyro.sample("z", dist.Normal(batch, 0.5).to_event(1))

    data = {"x": arguments["x"].double()}
    er.fit(model, data, guide, steps=20, draws=100, seed=1)
    assert left_out == []
    amortised: Any = overfitting(50)[0]
    undeclared = er.fit(model, data, amortised, steps=20, draws=100, seed=1)
    assert left_out == []
    assert any("guide.amortised = True" in remark for remark in undeclared.remarks)
    amortised.amortised = True
    declared = er.fit(model, data, amortised, steps=20, draws=100, seed=1)
    assert left_out == [50]
    assert not any("guide.amortised" in remark for remark in declared.remarks)


@pytest.mark.parametrize("width", [29, 30, 31])
def test_a_hidden_width_that_is_the_number_of_rows_changes_nothing(
    width: int, left_out: list[int]
) -> None:
    """Rows are left out to stop an amortised guide; it is told from its declaration."""
    digits = er.load_dataset("digits").head(30)
    er.fit("vae", digits, hidden=(width,), latent=1, epochs=1, batch_size=10, draws=100, seed=1)
    assert left_out == [30]
