"""The stochastic runner: minibatches, bad steps, interrupts, and every setting it takes."""

import gc
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.engines.settings import Settings
from elbowroom.engines.svi.loop import RUN_LIMITS, Trained, run_svi
from elbowroom.engines.svi.stepping import KEEPS
from elbowroom.engines.svi.stopping import Stationary
from elbowroom.errors import ModelError, OptionError
from elbowroom.guides import Start, get_guide
from elbowroom.guides.space import LatentSpace
from elbowroom.objectives.elbo import make_objective, marked
from elbowroom.options import make_options
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated

STILL = 1e-13
"""A learning rate that moves nothing."""
nan_is_announced = pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
"""Pyro warns of every loss that is not a number; the runner counts them."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def settings(**given: Any) -> Settings:
    return make_options(Settings, {"restarts": 1, "schedule": "constant", **given})


def normal(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def normal_guide(y: Tensor) -> None:
    location = pyro.param("location", torch.zeros(()))
    pyro.sample("mean", dist.Normal(location, pyro.param("log_scale", torch.zeros(())).exp()))


DATA = {"y": torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)}
MODE = 9.0 / (3 + 1 / 100)


def run(model: Callable[..., Any] = normal, progress: Any = None, **given: Any) -> Trained:
    space = LatentSpace.of(normal, DATA)
    objective = make_objective("trace", 1, space)
    return run_svi(model, normal_guide, DATA, objective, settings(**given), progress=progress)


def location() -> float:
    return float(pyro.param("location").detach())


def regression_table(rows: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 2))
    y = 1 + x @ [1.0, -2.0] + random.normal(size=rows)
    return pd.DataFrame({"x": x[:, 0], "z": x[:, 1], "y": y})


def histories(
    problem: Problem, guide_name: str, objective_name: str, size: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """ELBO estimates at fixed parameters, from minibatches and from all rows."""
    with isolated(3):
        guide = get_guide(guide_name, problem.model_name, problem.space.local_continuous)
        start = Start(0.1 * torch.randn(problem.space.dimension))
        pair = marked(objective_name, problem.function, guide.build(problem.space, start))
        objective = make_objective(objective_name, 1, problem.space)
        found = []
        for batch_size in (size, None):
            chosen = settings(steps=steps, batch_size=batch_size, learning_rate=STILL)
            plate = problem.space.subsampled
            trained = run_svi(*pair, problem.arguments, objective, chosen, plate)
            found.append(trained.elbo_history)
    return found[0], found[1]


def test_an_epoch_of_minibatches_has_the_full_elbo_exactly() -> None:
    """The point guide draws nothing, so that the mean over an epoch has no Monte Carlo error."""
    problem, _, _ = bind_model("bayesian_regression", regression_table(60), {"response": "y"})
    small, full = histories(problem, "map", "trace", 12, 10)
    assert np.ptp(full) < 1e-8
    assert np.ptp(small) > 1.0
    assert small[:5].mean() == pytest.approx(full[0], rel=1e-9)
    assert small[5:].mean() == pytest.approx(full[0], rel=1e-9)


SPHERICAL = {"covariance_type": "spherical"}


@pytest.mark.parametrize(
    ("model", "guide", "objective", "options"),
    [
        ("bayesian_regression", "mean_field", "trace", {"response": "y"}),
        ("gaussian_mixture", "local", "trace_enum", {"components": 2, **SPHERICAL}),
        ("gaussian_mixture", "collapsed", "trace_enum", {"components": 2, **SPHERICAL}),
        ("vae", "local", "trace", {"likelihood": "normal", "hidden": (4,), "latent": 1}),
        ("vae", "encoder", "trace_mean_field", {"likelihood": "normal", "hidden": (4,)}),
    ],
)
def test_minibatches_estimate_the_full_elbo(
    model: str, guide: str, objective: str, options: dict[str, Any]
) -> None:
    options = {**options, "dtype": "float64"}
    problem, _, _ = bind_model(model, regression_table(40), options)
    small, full = histories(problem, guide, objective, 8, 200)
    # Successive minibatches of an epoch are drawn without replacement, which lowers the error.
    error = (small.var() / len(small) + full.var() / len(full)) ** 0.5
    assert abs(small.mean() - full.mean()) < 4 * error
    # A forgotten or doubled scale would be seen: rows weigh five times a minibatch's.
    assert 10 * error < abs(full.mean())


def occasionally_nan(every: int) -> Callable[..., Any]:
    """A model whose density is no number at one in so many steps, the check before them aside."""
    calls = iter(range(10**6))

    def model(y: Tensor) -> None:
        normal(y)
        bad = torch.rand(()) < (1 / every if next(calls) > 0 else 0.0)
        pyro.factor("bad", torch.where(bad, torch.nan, 0.0))

    return model


@nan_is_announced
def test_a_bad_step_is_left_out_and_counted() -> None:
    found = run(occasionally_nan(5), steps=400, learning_rate=0.05)
    assert abs(found.skipped - 80) < 4 * (400 * 0.2 * 0.8) ** 0.5
    assert np.isnan(found.elbo_history).sum() == found.skipped
    assert f"{found.skipped} steps with a non-finite" in found.reason
    assert location() == pytest.approx(MODE, abs=0.6)


@pytest.mark.parametrize(("share", "recorded"), [(0.05, True), (0.2, False)])
def test_a_matrix_that_cannot_be_factorised_costs_a_step(share: float, recorded: bool) -> None:
    """A share of the steps meet a matrix with a negative eigenvalue."""

    def model(y: Tensor) -> None:
        normal(y)
        noise = torch.rand(())
        pyro.factor("factor", 0 * torch.linalg.cholesky((noise - share) * torch.eye(2)).sum())

    found = run(model, steps=400, learning_rate=0.05)
    assert (found.eager is None) == recorded
    assert abs(found.skipped - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5
    assert np.isinf(found.elbo_history).sum() == found.skipped
    assert location() == pytest.approx(MODE, abs=0.6)


def test_a_matrix_that_never_can_be_factorised_is_named() -> None:
    def model(y: Tensor) -> None:
        normal(y)
        left = MODE / 2 - pyro.param("location").detach()
        pyro.factor("factor", 0 * torch.linalg.cholesky(left * torch.eye(2)).sum())

    found = run(model, steps=2000, learning_rate=0.1)
    assert found.status == "diverged"
    assert "not positive-definite. Add a larger number to the diagonal" in found.reason


def test_what_a_model_keeps_in_python_is_seen_though_its_steps_are_recorded() -> None:
    """It moves by ten after the runs that a recording is made of."""
    calls = iter(range(10**6))

    def moving(y: Tensor) -> None:
        normal(y + (10.0 if next(calls) > 5 else 0.0))

    found = run(moving, steps=1500, learning_rate=0.05)
    assert location() == pytest.approx(10 + MODE, abs=0.6)
    assert found.eager == KEEPS


def test_what_changes_near_the_end_of_a_run_is_seen_at_its_end() -> None:
    """The steps since the last comparison are made again, from the parameters of that."""
    far = [0.0]

    def moving(y: Tensor) -> None:
        normal(y + far[0])

    def change(step: int, *_: object) -> None:
        far[0] = 10.0 if step >= 1450 else far[0]

    found = run(moving, change, steps=1500, learning_rate=0.1)
    assert found.eager == KEEPS
    assert len(found.elbo_history) == 1500
    assert location() == pytest.approx(10 + MODE, abs=0.6)


@nan_is_announced
def test_a_run_that_is_never_finite_ends_diverged_with_its_first_parameters() -> None:
    found = run(occasionally_nan(1), steps=500)
    assert found.status == "diverged"
    assert not found.converged
    assert found.skipped == RUN_LIMITS.unusable_steps * (1 + RUN_LIMITS.returns)
    assert "--learning-rate" in found.reason
    assert "The model's log density of site 'bad' is not finite" in found.reason
    assert location() == 0.0


def test_a_density_that_is_no_number_from_the_start_is_an_error() -> None:
    def model(y: Tensor) -> None:
        normal(y)
        pyro.factor("bad", torch.tensor(float("nan")))

    with pytest.raises(ModelError, match=r"cannot be evaluated at the start"):
        run(model, steps=10)


@nan_is_announced
def test_parameters_that_run_away_are_put_back() -> None:
    """A step far too long makes the scale overflow; the parameters kept are finite."""
    found = run(steps=500, learning_rate=1e4, optimizer="SGD")
    assert found.status == "diverged"
    assert np.isfinite(location())
    assert np.isfinite(float(pyro.param("log_scale").detach()))


@nan_is_announced
def test_a_whole_fit_that_diverges_is_a_value() -> None:
    options: dict[str, Any] = {"steps": 500, "learning_rate": 1e4, "optimizer": "SGD", "draws": 100}
    fit = er.fit(normal, DATA, guide=normal_guide, seed=0, **options)
    assert fit.trained.status == "diverged"
    assert not fit.converged
    assert np.isfinite(fit.posterior["posterior"]["mean"].values).all()


@pytest.mark.parametrize("objective", ["trace", "trace_graph"])
def test_no_tensor_is_left_behind_by_a_step(objective: str) -> None:
    """Recorded or not: the tensors that live after 1,700 steps are those after 850.

    Then the iterates are kept as 17 blocks each time, of 50 steps and of 100.
    """
    alive = []

    def count(step: int, budget: int, elbo: float, rate: float) -> None:
        if step in (850, 1700):
            gc.collect()
            alive.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))

    space = LatentSpace.of(normal, DATA)
    chosen = settings(steps=1750, schedule="constant")
    run_svi(normal, normal_guide, DATA, make_objective(objective, 1, space), chosen, progress=count)
    assert alive[0] == alive[1]


def test_an_interrupt_while_a_step_is_recorded_leaves_a_network_as_it_was() -> None:
    network = torch.nn.Linear(1, 1).double()
    calls = iter(range(10**6))

    def model(y: Tensor) -> None:
        pyro.module("network", network)
        normal(y)
        pyro.factor("used", -(network.weight**2).sum() - (network.bias**2).sum())
        if next(calls) == 2:
            raise KeyboardInterrupt

    found = run(model, steps=500)
    assert found.status == "interrupted"
    storages = {value.untyped_storage().data_ptr() for value in network.parameters()}
    assert len(storages) == 2
    assert all(value.grad is None for value in network.parameters())


def test_an_interrupt_keeps_what_was_fitted() -> None:
    def stop(step: int, budget: int, elbo: float, rate: float) -> None:
        if step == 150:
            raise KeyboardInterrupt

    found = run(progress=stop, steps=1000, learning_rate=0.05)
    assert found.status == "interrupted"
    assert not found.converged
    assert "interrupted after 150 steps" in found.reason
    assert location() > 1.0


def test_an_interrupted_fit_has_a_posterior() -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    fit = er.fit(normal, DATA, guide="mean_field", engine="svi", seed=0, draws=100, progress=stop)
    assert fit.trained.status == "interrupted"
    assert len(fit.elbo_history) == 1
    assert fit.posterior["posterior"].sizes["draw"] == 100


@pytest.mark.parametrize(("optimizer", "rate"), [("SGD", 0.02), ("RMSprop", 0.02), ("Adam", 0.05)])
def test_every_optimizer_reaches_the_mode_by_its_name(optimizer: str, rate: float) -> None:
    found = run(optimizer=optimizer, learning_rate=rate, steps=800, schedule="cosine")
    # The last steps of a cosine schedule average the gradient noise away.
    assert location() == pytest.approx(MODE, abs=0.15)
    assert found.learning_rates[0] == rate
    assert found.learning_rates[-1] < 0.01 * rate


def test_the_plateau_schedule_converges_to_the_posterior() -> None:
    found = run(schedule="plateau", learning_rate=0.05)
    assert found.status == "converged"
    assert found.converged
    rates = np.unique(found.learning_rates)
    np.testing.assert_allclose(rates, [0.0125, 0.05])
    sd = (3 + 1 / 100) ** -0.5
    assert location() == pytest.approx(MODE, abs=0.1 * sd)
    assert float(pyro.param("log_scale").detach().exp()) == pytest.approx(sd, rel=0.1)


def test_clip_norm_bounds_a_step() -> None:
    run(optimizer="SGD", learning_rate=1.0, steps=1, clip_norm=0.25)
    moved = torch.stack([pyro.param("location"), pyro.param("log_scale")]).norm()
    assert float(moved.detach()) == pytest.approx(0.25, rel=1e-6)


def test_one_step_is_a_run() -> None:
    found = run(steps=1)
    assert found.status == "budget"
    assert found.reason == "stopped at the budget of 1 step: the parameters still moved."
    assert len(found.elbo_history) == len(found.learning_rates) == 1


def test_a_guide_without_parameters_is_exact_at_once() -> None:
    fit = er.fit(normal, DATA, guide="laplace", seed=0, draws=100)
    assert fit.trained.status == "exact"
    assert fit.converged
    assert fit.trained.parameters == 0


def test_epochs_count_passes_over_the_rows() -> None:
    table = regression_table(50)
    options: dict[str, Any] = {"response": "y", "batch_size": 20, "epochs": 3, "draws": 100}
    fit = er.fit("bayesian_regression", table, "mean_field", seed=0, **options)
    assert len(fit.elbo_history) == 6  # two whole minibatches a pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"learning_rate": -0.1}, "--learning-rate"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"steps": 0}, "--steps"),
        ({"clip_norm": 0.0}, "--clip-norm"),
        ({"particles": 0}, "--particles"),
        ({"schedule": "cosin"}, "--schedule"),
        ({"steps": 5, "epochs": 5}, "--steps and --epochs"),
        ({"optimizer": "RMSProp"}, "did you mean 'RMSprop'"),
        ({"optimizer": "LBFGS"}, "no optimizer 'LBFGS'"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        make_options(Settings, given)


def test_minibatches_that_cannot_be_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--batch-size: the model takes no minibatches"):
        run(batch_size=2)
    table = regression_table(50)
    with pytest.raises(OptionError, match=r"--batch-size 51: there are only 50 rows"):
        er.fit("bayesian_regression", table, response="y", batch_size=51, guide="map", seed=0)


def test_an_elbo_that_cannot_be_evaluated_is_an_error_before_the_run() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        pyro.sample("y", dist.Normal(mean, -1.0), obs=y[0])

    with pytest.raises(ModelError, match=r"cannot be evaluated at the start"):
        run(model, steps=10)


def test_a_seed_gives_a_fit_whatever_ran_before_and_beside_it() -> None:
    """Other fits, other random states, other numbers of threads, and threads that load data."""
    options: dict[str, Any] = {
        "steps": 200,
        "batch_size": 20,
        "seed": 3,
        "response": "y",
        "draws": 100,
    }

    def numbers() -> list[np.ndarray]:
        fit = er.fit("bayesian_regression", regression_table(), "mean_field", **options)
        found = fit.posterior["posterior"].data_vars.values()
        return [fit.trained.elbo_history, *(values.to_numpy() for values in found)]

    expected = numbers()
    ended = threading.Event()

    def load() -> None:
        while not ended.wait(0.01):  # else they hold the interpreter nearly all the time
            regression_table(100).to_csv().splitlines()

    threads = torch.get_num_threads()
    loaders = [threading.Thread(target=load) for _ in range(2)]
    try:
        for loader in loaders:
            loader.start()
        torch.set_num_threads(2)
        torch.manual_seed(99)
        er.fit("bayesian_regression", regression_table(30), "map", steps=150, response="y")
        for one, two in zip(numbers(), expected, strict=True):
            np.testing.assert_array_equal(one, two)
    finally:
        ended.set()
        torch.set_num_threads(threads)
        for loader in loaders:
            loader.join()


def test_weights_that_are_drawn_are_not_the_noise_of_the_first_steps() -> None:
    """They were, and held-out bounds of autoencoders were half a nat worse."""
    noise = []

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(400), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        centre = pyro.param("centre", lambda: torch.randn(400))
        z = pyro.sample("z", dist.Normal(centre, 1.0).to_event(1))
        noise.append((z - centre).detach())

    with isolated(0):
        objective = make_objective("trace", 1, LatentSpace.of(model, {}))
        run_svi(model, guide, {}, objective, Settings(steps=3, learning_rate=1e-9))
        centre = pyro.param("centre").detach()
    for each in noise[1:]:
        correlation = float(torch.corrcoef(torch.stack([centre, each]))[0, 1])
        assert abs(correlation) < 5 / 400**0.5


def test_what_a_run_saw_in_its_warm_up_is_no_elbo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule begins at the first look with no step of the warm-up before it."""
    begun: list[int] = []
    looked: list[int] = []
    begin, look = Stationary.begin, Stationary.look

    def begins(rule: Stationary, elbo: Any) -> None:
        begun.append(len(elbo))
        begin(rule, elbo)

    def looks(rule: Stationary, elbo: Any) -> Any:
        looked.append(len(elbo))
        return look(rule, elbo)

    monkeypatch.setattr(Stationary, "begin", begins)
    monkeypatch.setattr(Stationary, "look", looks)
    y = torch.linspace(4.0, 6.0, 20)
    er.fit(normal, {"y": y}, "mean_field", seed=1, engine="svi", kl_warm_up=450, steps=2000)
    window = begun[0]
    assert begun == [window * (i + 1) for i in range(len(begun))]
    assert begun[-1] - window < 450 <= begun[-1]
    assert looked[0] - begun[-1] == window
