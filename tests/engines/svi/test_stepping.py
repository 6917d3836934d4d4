"""A step of SVI recorded: the same numbers at the same noise, unbiased as the step itself."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom import budget
from elbowroom.engines.settings import make_settings
from elbowroom.engines.svi.loop import unconstrained_parameters
from elbowroom.engines.svi.stepping import BFloat16Layers, FlatParameters, Step
from elbowroom.guides import Start, get_guide
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import LatentSpace, Plate
from elbowroom.objectives import baselines, objectives
from elbowroom.objectives.elbo import (
    choose_objective,
    make_objective,
    marked,
)
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import isolated

Y = torch.tensor([2.0, 3.0, 4.0, -1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def stored() -> FlatParameters:
    return FlatParameters(dict(pyro.get_param_store().named_parameters()))


def step_of(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    name: str = "trace",
    arguments: dict[str, Any] | None = None,
    plate: Plate | None = None,
    size: int | None = None,
    nesting: int = 1,
) -> Step:
    given = {"y": Y} if arguments is None else arguments
    objective = objectives()[name](1, nesting)
    extra = {} if size is None else {"batch_size": size}
    objective.loss(model, guide, **given, **extra)  # makes the parameters
    return Step(objective, model, guide, given, stored(), plate, size)


def normal(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def normal_guide(y: Tensor) -> None:
    location = pyro.param("location", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(location, scale))


CASES = [
    ("bayesian_regression", "diabetes", "mean_field", None),
    ("bayesian_regression", "diabetes", "full_rank", None),
    ("bayesian_regression", "diabetes", "structured", 50),
    ("bayesian_regression", "diabetes", "flow", None),
    ("gaussian_mixture", "iris", "collapsed", None),
    ("gaussian_mixture", "iris", "local", 30),
    ("vae", "digits", "encoder", 128),
    ("vae", "digits", "local", 64),
]


@pytest.mark.parametrize(("model", "data", "name", "size"), CASES)
def test_a_recorded_step_is_the_step_itself(
    model: str, data: str, name: str, size: int | None
) -> None:
    problem, _, _ = bind_model(model, data, {})
    with problem.session(0):
        guide = get_guide(name, problem.model_name, problem.space.local_continuous)
        called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
        sites = read_guide(called, problem.arguments, problem.space)
        objective, _ = choose_objective(None, guide.elbo, problem.space, sites)
        pair = marked(objective, problem.function, called)
        made = make_objective(objective, 1, problem.space)
        extra = {} if size is None else {"batch_size": size}
        made.loss(pair[0], pair[1], **{**problem.arguments, **extra})
        plate = problem.space.subsampled
        recorded, eager = (
            Step(made, *pair, problem.arguments, stored(), plate, size) for _ in range(2)
        )
        count = 0 if plate is None else plate.size
        draw = None if size is None else lambda: torch.randperm(count)[:size]
        recorded.record(draw)
        assert recorded.recorded, recorded.reason
        rows = None if draw is None else draw()
        for seed in range(3):
            pyro.set_rng_seed(seed)
            loss = recorded(rows)
            gradients = [gradient.clone() for gradient in recorded.parameters.gradients]
            after = torch.rand(())
            pyro.set_rng_seed(seed)
            assert eager(rows) == pytest.approx(loss, rel=1e-6)
            assert torch.rand(()) == after  # no random number more or less
            for one, two in zip(gradients, eager.parameters.gradients, strict=True):
                scale = float(two.abs().max())
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * scale)


def test_a_step_is_not_recorded_where_there_is_time_for_a_few_alone() -> None:
    for seconds, recorded in ((60.0, True), (0.0, False)):
        pyro.clear_param_store()
        step = step_of(normal, normal_guide)
        before = torch.random.get_rng_state()
        with budget.limited(seconds):
            step.record(None, pays_from=100)
        assert step.recorded == recorded
        assert torch.equal(torch.random.get_rng_state(), before)
    assert step.reason == "there is only time for a few of them"


def test_the_mean_of_recorded_steps_is_the_gradient_of_the_elbo() -> None:
    """In closed form, for all rows and for minibatches of two; four standard errors."""
    n, size = len(Y), 2

    def model(y: Tensor, batch_size: int | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        with pyro.plate("rows", len(y), subsample_size=batch_size):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))

    def guide(y: Tensor, batch_size: int | None = None) -> None:
        normal_guide(y)

    location, scale, draws = 0.5, 0.7, 4000
    exact = np.array([n * location - float(Y.sum()) + location / 100, n * scale + scale / 100])
    exact[1] = (exact[1] - 1 / scale) * scale  # of the logarithm
    plate = LatentSpace.of(model, {"y": Y}).subsampled
    for batch in (None, size):
        pyro.clear_param_store()
        step = step_of(model, guide, plate=plate, size=batch)
        order = None if batch is None else lambda: torch.randperm(n)[:size]
        step.record(order)
        assert step.recorded, step.reason
        found = np.empty((draws, 2))
        for i in range(draws):
            step(None if order is None else order())
            found[i] = step.parameters.gradients[0].numpy()
        error = found.std(0) / draws**0.5
        assert (np.abs(found.mean(0) - exact) < 4 * error).all()
        assert (error < 0.1).all()


def test_a_branch_on_a_value_is_seen_at_every_step() -> None:
    """The guide's draws lie on both sides of it, one in fifty on that where it was not recorded."""

    def branching(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        pyro.sample("y", dist.Normal(mean, 1.0 if mean > -1.0 else 9.0).to_event(0), obs=y.sum())

    step = step_of(branching, normal_guide)
    pyro.set_rng_seed(1)  # the draws of the recording are above
    step.record(None)
    assert step.recorded
    eager = step_of(branching, normal_guide)
    for seed in range(300):
        pyro.set_rng_seed(seed)
        low = float(pyro.distributions.Normal(0.5, 0.7).sample()) <= -1.0
        before = step.branches
        pyro.set_rng_seed(seed)
        loss = step()
        assert step.branches - before == low
        pyro.set_rng_seed(seed)  # the same noise on both sides
        assert eager() == pytest.approx(loss, rel=1e-12)
    assert step.branches > 0
    pyro.param("location").data.fill_(-9.0)  # where every step takes the other branch
    assert step.holds(None)


def test_a_number_read_out_and_a_count_in_python_are_not_recorded() -> None:
    def branching(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        pyro.sample("y", dist.Normal(mean, float(mean.detach()) ** 2 + 1).to_event(0), obs=y.sum())

    counter = iter(range(1000))

    def counting(y: Tensor) -> None:
        normal(y)
        pyro.factor("tempered", torch.tensor(float(next(counter))))

    for model in (branching, counting):
        pyro.clear_param_store()
        step = step_of(model, normal_guide)
        step.record(None)
        assert not step.recorded
        assert step.reason is not None
        step()  # as it stands


MASKED = torch.tensor([2.0, -99.0, 4.0, -1.0])


def by_counter(y: Tensor, calls: list[int] = [0]) -> None:  # noqa: B006
    """Warmed up by a number that the model counts."""
    calls[0] += 1
    normal(y)
    pyro.factor("warm", torch.tensor(0.0 if calls[0] < 300 else -1.0))


def by_numpy(y: Tensor) -> None:
    location = float(pyro.param("location").detach().numpy().sum())
    normal(y + location)


def by_buffer(y: Tensor) -> None:
    buffer = torch.zeros(1)
    buffer[0] = pyro.param("location").detach()
    normal(y + buffer.clone())


def by_equality(y: Tensor) -> None:
    x = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
    same = torch.equal(x.detach().sign(), torch.ones(()))
    pyro.sample("y", dist.Normal(x, 1.0 if same else 9.0), obs=y.sum())


def by_mask(y: Tensor) -> None:
    x = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
    kept = y[y > x.detach()]
    pyro.sample("y", dist.Normal(x, 1.0).expand(kept.shape).to_event(), obs=kept)


def by_seed(y: Tensor) -> None:
    torch.manual_seed(0)
    x = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
    pyro.sample("y", dist.Normal(x + torch.randn(()), 1.0), obs=y.sum())


@pytest.mark.parametrize("model", [by_counter, by_numpy, by_buffer, by_equality, by_mask, by_seed])
def test_what_a_recording_would_freeze_is_run_as_it_stands_or_followed(
    model: Callable[..., Any],
) -> None:
    step = step_of(model, normal_guide)
    step.record(None)
    if model is not by_buffer:
        assert not step.recorded
    step.parameters.assign([torch.full_like(v, 0.9) for v in step.parameters.vectors])
    eager = Step(step.objective, model, normal_guide, {"y": Y}, step.parameters)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        loss = step()
        pyro.set_rng_seed(seed)
        assert eager() == pytest.approx(loss, rel=1e-12)


def test_a_constant_mask_and_a_number_of_the_data_are_recorded() -> None:
    def model(y: Tensor) -> None:
        normal(MASKED[MASKED != -99.0][: int(y.max())])

    step = step_of(model, normal_guide)
    step.record(None)
    assert step.recorded, step.reason


def test_a_recording_of_float32_holds() -> None:
    x = torch.linspace(-1, 1, 3000)

    def model(y: Tensor) -> None:
        slope = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float32), 10.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(100 * slope * x.float(), 1.0), obs=x.float())

    def guide(y: Tensor) -> None:
        location = pyro.param("location", torch.tensor(0.5, dtype=torch.float32))
        pyro.sample("mean", dist.Normal(location, 0.1))

    step = step_of(model, guide)
    step.record(None)
    assert step.recorded, step.reason
    assert all(step.holds(None) for _ in range(20))


def test_a_parameter_under_two_names_is_one() -> None:
    shared = torch.nn.Linear(2, 1)
    pyro.module("first", shared)
    pyro.module("second", shared)
    parameters = stored()
    assert parameters.count == 3
    assert all(name.startswith("first") for name in parameters.named)


def switches(y: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("y", dist.Normal(2 * on, 1.0), obs=batch)


def switches_guide(y: Tensor, batch_size: int | None = None) -> None:
    logits = pyro.param("logits", torch.tensor([0.5, -0.2, 0.1, 0.0]))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        infer: Any = {"baseline": {"use_decaying_avg_baseline": True}}
        own = pyro.subsample(logits, event_dim=0)
        pyro.sample("on", dist.Bernoulli(logits=own), infer=infer)


LEARNING = [
    ("trace_graph", "none"), ("score_function", "running"), ("score_function", "decaying"),
    ("score_function", "neural"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "baseline"), LEARNING)
@pytest.mark.parametrize("size", [None, 2])
def test_baselines_learn_the_same_from_recorded_steps(
    name: str, baseline: str, size: int | None
) -> None:
    def runs(recorded: bool) -> tuple[Step, list[Tensor]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        objective = make_objective(
            name, 1, LatentSpace.of(switches, {"y": Y}),
            make_settings({"baseline": baseline}).of_objective(name),
        )  # fmt: skip
        extra = {} if size is None else {"batch_size": size}
        objective.loss_and_surrogate(switches, switches_guide, {"y": Y, **extra})
        parameters = FlatParameters(unconstrained_parameters())
        plate = Plate("rows", -1, len(Y))
        step = Step(objective, switches, switches_guide, {"y": Y}, parameters, plate, size)
        draw = None if size is None else lambda: torch.randperm(len(Y))[:size]
        if recorded:
            step.record(draw)
            assert step.recorded, step.reason
        pyro.set_rng_seed(1)
        for _ in range(20):
            step(None if draw is None else draw())
            (vector,), (gradient,) = parameters.vectors, parameters.gradients
            with torch.no_grad():
                vector.sub_(0.05 * gradient)
        assert step.holds(None if draw is None else draw())
        return step, [vector.detach(), *baselines.kept().values()]

    (step, one), (_, two) = runs(recorded=True), runs(recorded=False)
    assert step.memory
    torch.testing.assert_close(one, two)
    assert all(each.abs().max() > 0.1 for each in two)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_step_that_is_not_finite_teaches_a_baseline_nothing(recorded: bool) -> None:
    y = Y.clone()
    step = step_of(switches, switches_guide, "trace_graph", {"y": y})
    step.objective.loss_and_surrogate(switches, switches_guide, {"y": y})
    step.parameters = FlatParameters(unconstrained_parameters())
    if recorded:
        step.record(None)
        assert step.recorded, step.reason
    before = baselines.kept()
    y[0] = torch.nan
    assert not np.isfinite(step())
    torch.testing.assert_close(baselines.kept(), before)
    y[0] = 2.0
    assert np.isfinite(step())
    assert not torch.equal(*(each["__baseline_avg_downstream_cost_on"]
                             for each in (before, baselines.kept())))  # fmt: skip


def test_recording_leaves_the_random_state_and_the_parameters() -> None:
    step = step_of(normal, normal_guide)
    before, values = torch.random.get_rng_state(), step.parameters.copy()
    step.record(None)
    assert step.recorded
    assert torch.equal(before, torch.random.get_rng_state())
    torch.testing.assert_close(step.parameters.copy(), values)


def test_flat_parameters_are_the_store_s_own_until_they_are_released() -> None:
    pyro.param("a", torch.ones(2, 3))
    pyro.param("b", torch.zeros(()), constraint=dist.constraints.positive)
    pyro.param("c", torch.ones(2, dtype=torch.float32))
    parameters = stored()
    assert parameters.count == 9
    assert sorted(vector.numel() for vector in parameters.vectors) == [2, 7]
    parameters.assign([torch.full_like(vector, 2.0) for vector in parameters.vectors])
    assert (pyro.param("a") == 2.0).all()
    pyro.param("a").sum().backward()
    assert sorted(float(gradient.sum()) for gradient in parameters.gradients) == [0.0, 6.0]
    parameters.release()
    parameters.assign([torch.full_like(vector, 3.0) for vector in parameters.vectors])
    assert (pyro.param("a") == 2.0).all()


def test_layers_in_bfloat16_leave_densities_their_digits() -> None:
    """The loss of a network is off by its layers' rounding; of what is no layer, by nothing."""
    network = torch.nn.Linear(3, 1, dtype=torch.float32)
    x = torch.randn(200, 3, dtype=torch.float32)

    def model(layer: bool) -> None:
        pyro.module("network", network)
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        mean = (network(x) if layer else x @ network.weight.T)[:, 0] + x @ weight
        with pyro.plate("rows", 200):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=x.new_zeros(200))

    def guide(layer: bool) -> None:
        location = pyro.param("location", x.new_zeros(3))
        pyro.sample("weight", dist.Normal(location, 0.1).to_event(1))

    for layer in (True, False):
        with isolated(0):
            objective = make_objective("trace", 1, LatentSpace((), {}, ()))
            objective.loss(model, guide, layer=layer)
            losses = []
            for autocast in (True, False):
                arguments = {"layer": layer}
                step = Step(objective, model, guide, arguments, stored(), autocast=autocast)
                step.record(None)
                assert step.recorded, step.reason
                torch.manual_seed(0)
                losses.append(step())
                assert all(each.dtype == torch.float32 for each in step.parameters.gradients)
            difference = abs(losses[0] / losses[1] - 1)
            assert 1e-7 < difference < 0.01 if layer else difference == 0


def test_layers_called_by_keywords_are_layers_too() -> None:
    x, weight = torch.tensor([[1.0, 1e-3]]), torch.ones(1, 2)
    with BFloat16Layers():
        found = torch.nn.functional.linear(input=x, weight=weight)
    assert (found.dtype, found.item()) == (x.dtype, 1.0)


def test_a_gradient_and_its_transpose_both_have_their_place() -> None:
    """They are one result of the recording, which can be computed in one place alone."""
    size = 100
    x, y = torch.randn(50, size), torch.randn(50, size)

    def model() -> None:
        a, b = (pyro.param(name, torch.zeros(size, size)) for name in "ab")
        scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
        mean = x @ (a + b.t()) + scale
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=y)

    def guide() -> None:
        pyro.sample("scale", dist.Normal(pyro.param("location", torch.tensor(0.0)), 1.0))

    objective = make_objective("trace", 1, LatentSpace((), {}, ()))
    objective.loss(model, guide)
    step = Step(objective, model, guide, {}, stored())
    step.record(None)
    assert step.recorded, step.reason
    torch.manual_seed(0)
    step()
    found = [gradient.clone() for gradient in step.parameters.gradients]
    torch.manual_seed(0)
    step.as_it_stands()
    for one, two in zip(found, step.parameters.gradients, strict=True):
        torch.testing.assert_close(one, two)
