"""InfoMax beside quadrature and enumeration: linear-Gaussian encoders of a few rows."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import elbowroom as er
from elbowroom.engines.svi.loop import unconstrained_parameters
from elbowroom.engines.svi.stepping import FlatParameters, Step
from elbowroom.errors import ModelError, OptionError
from elbowroom.guides.space import FixedRows, LatentSpace
from elbowroom.objectives.elbo import make_objective
from elbowroom.objectives.information import InfoMaxOptions, RowDensities, log_marginal
from elbowroom.objectives.warm_up import Weighed
from elbowroom.problem.isolation import isolated

X = torch.tensor([-1.3, -0.4, 0.1, 0.3, 2.0], dtype=torch.float64)
SLOPE, SHIFT, LOG_WIDTH = 0.8, 0.2, -0.7
WEIGHT = 0.6
DRAWS = 120
"""Of the objective, each with a latent of every row."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def model(x: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(0.7 * z, 0.5), obs=pyro.subsample(x, event_dim=0))


def guide(x: Tensor, batch_size: int | None = None) -> None:
    """Not the posterior."""
    slope = pyro.param("slope", torch.tensor(SLOPE))
    shift = pyro.param("shift", torch.tensor(SHIFT))
    log_width = pyro.param("log_width", torch.tensor(LOG_WIDTH))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen = pyro.subsample(x, event_dim=0)
        pyro.sample("z", dist.Normal(slope * seen + shift, log_width.exp()))


def objective(weight: float = WEIGHT, of: Callable[..., None] = model) -> Any:
    space = LatentSpace.of(of, {"x": X})
    return make_objective("info_max", 1, space, InfoMaxOptions(weight))


def by_quadrature(slope: Tensor, shift: Tensor, log_width: Tensor) -> Tensor:
    """I(row; z): the entropy of the mixture less that of a Normal, ()."""
    z = torch.linspace(-8, 8, 4001)
    each = torch.distributions.Normal(slope * X + shift, log_width.exp())
    log_q = each.log_prob(z[:, None]).logsumexp(1) - math.log(len(X))
    entropy = -(log_q.exp() * log_q).sum() * (z[1] - z[0])
    return entropy - 0.5 * math.log(2 * math.pi * math.e) - log_width


def told(batch: Tensor | None = None, count: int = DRAWS) -> np.ndarray:
    """Estimates of the information of a row."""
    found, given = objective(), {"x": X}
    rows = {} if batch is None else {"rows": batch}
    size = {} if batch is None else {"batch_size": len(batch)}
    estimates = []
    with torch.no_grad():
        for _ in range(count):
            state = torch.get_rng_state()
            with FixedRows(rows):
                goal = found.goal(model, guide, {**given, **size})
                torch.set_rng_state(state)  # the same draws
                loss = found.loss(model, guide, **given, **size)
            estimates.append((float(goal) + loss) / (WEIGHT * len(X)))
    return np.array(estimates)


def close(found: np.ndarray, exact: float) -> None:
    assert abs(found.mean() - exact) < 4 * found.std(ddof=1) / len(found) ** 0.5


def test_of_all_rows_the_information_is_that_of_quadrature() -> None:
    exact = by_quadrature(*map(torch.tensor, (SLOPE, SHIFT, LOG_WIDTH)))
    assert 0.3 < exact < math.log(len(X)) - 0.3
    close(told(), float(exact))


def test_its_gradient_is_that_of_quadrature() -> None:
    """The gradient of the ELBO is taken off at the same draws: the rest is the information's."""
    names = ("slope", "shift", "log_width")
    values = [torch.tensor(v, requires_grad=True) for v in (SLOPE, SHIFT, LOG_WIDTH)]
    exact = torch.stack(torch.autograd.grad(by_quadrature(*values), values))
    assert abs(exact[1]) < 1e-9  # a shift of all latents tells nothing
    found = []
    for _ in range(DRAWS // 2):
        state, each = torch.get_rng_state(), []
        for weight in (WEIGHT, 0.0):
            torch.set_rng_state(state)
            loss, surrogate = objective(weight).loss_and_surrogate(model, guide, {"x": X})
            store = dict(pyro.get_param_store().named_parameters())
            of_each = torch.autograd.grad(surrogate, [store[name] for name in names])
            each.append((float(loss), torch.stack(of_each)))
        (one, with_it), (other, without) = each
        assert one == other  # what is recorded is the ELBO alone
        found.append((without - with_it) / (WEIGHT * len(X)))
    gradients = torch.stack(found)
    error = gradients.std(0) / len(found) ** 0.5
    assert (abs(gradients.mean(0) - exact) < 4 * error + 1e-9).all()


def of_minibatch(batch: tuple[int, ...]) -> float:
    """The mean of the estimate over draws of a minibatch, by quadrature."""
    z, width = np.linspace(-8, 8, 4001), math.exp(LOG_WIDTH)
    q = np.stack([stats.norm(SLOPE * x + SHIFT, width).pdf(z) for x in X.numpy()])
    n, total = len(X), 0.0
    for i in batch:
        others = np.mean([q[j] for j in batch if j != i], axis=0)
        estimate = q[i] / n + (n - 1) / n * others
        total += np.trapezoid(q[i] * (np.log(q[i]) - np.log(estimate)), z) / len(batch)
    return float(total)


def test_of_a_minibatch_it_is_what_the_stratified_sample_says() -> None:
    batch = (0, 2, 4)
    close(told(torch.tensor(batch)), of_minibatch(batch))


def test_of_minibatches_the_marginal_is_unbiased_and_the_information_too_high() -> None:
    exact = float(by_quadrature(*map(torch.tensor, (SLOPE, SHIFT, LOG_WIDTH))))
    means = {
        size: np.mean([of_minibatch(each) for each in itertools.combinations(range(5), size)])
        for size in (2, 3, 4, 5)
    }
    assert means[5] == pytest.approx(exact, abs=1e-6)
    assert math.log(5) > means[2] > means[3] > means[4] > exact
    # q(z) of row 0's draws, over every minibatch that has the row.
    log_q = torch.distributions.Normal(SLOPE * X + SHIFT, math.exp(LOG_WIDTH)).log_prob(
        torch.tensor([[-1.0], [0.7]])
    )
    found = []
    for rest in itertools.combinations(range(1, 5), 2):
        compared = log_q[:, [0, *rest]]
        found.append(log_marginal(compared, torch.tensor([0, 0]), 1 / 5).exp())
    torch.testing.assert_close(torch.stack(found).mean(0), log_q.exp().mean(1))


def two(x: Tensor, batch_size: int | None = None) -> None:
    """Latents of a row at two sites, the second given the first, and noise that is no latent."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        one = pyro.sample("one", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("two", dist.Normal(torch.zeros(()), 1.0))
        noise = pyro.sample("noise", dist.Normal(torch.ones(()), 1.0))
        pyro.sample("x", dist.Normal(one + noise, 0.5), obs=pyro.subsample(x, event_dim=0))


def two_guide(x: Tensor, batch_size: int | None = None) -> None:
    """The first latent tells nothing; the two of them do, since the second is beside it."""
    free = pyro.param("free", torch.zeros(()))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen = pyro.subsample(x, event_dim=0)
        one = pyro.sample("one", dist.Normal(free.expand(seen.shape), 1.0))
        pyro.sample("two", dist.Normal(one + SLOPE * seen, math.exp(LOG_WIDTH)))
        pyro.sample("noise", dist.Normal(seen, 1e-3))


def test_latents_at_several_sites_are_taken_together_and_noise_is_left_out() -> None:
    """I(row; one, two) is that of their difference; the noise alone would tell the row."""
    exact = float(by_quadrature(*map(torch.tensor, (SLOPE, 0.0, LOG_WIDTH))))
    found, each = objective(1.0, two), []
    with torch.no_grad():
        for _ in range(DRAWS):
            state = torch.get_rng_state()
            goal = found.goal(two, two_guide, {"x": X})
            torch.set_rng_state(state)
            each.append((float(goal) + found.loss(two, two_guide, x=X)) / len(X))
    close(np.array(each), exact)


def test_densities_given_other_rows_are_those_of_the_encoder_whatever_their_weight() -> None:
    plate = LatentSpace.of(model, {"x": X}).subsampled
    assert plate is not None
    rows, z = torch.tensor([4, 1, 2]), torch.tensor([-1.0, 0.5])
    densities = RowDensities(guide, {"x": X}, plate, ["z"], {"z": 0})
    with Weighed(torch.tensor(0.5)), torch.no_grad():
        found = densities.given_each({"z": z}, rows)
    each = torch.distributions.Normal(SLOPE * X[rows] + SHIFT, math.exp(LOG_WIDTH))
    torch.testing.assert_close(found, each.log_prob(z[:, None]))


def test_a_warm_up_of_the_divergence_leaves_the_information_as_it_is() -> None:
    found, given = objective(), {"x": X}
    differences = []
    for weight in (1.0, 0.25):
        torch.manual_seed(3)
        with Weighed(torch.tensor(weight)), torch.no_grad():
            goal = float(found.goal(model, guide, given))
        torch.manual_seed(3)
        with Weighed(torch.tensor(weight)):
            differences.append(goal + found.loss(model, guide, **given))
    assert differences[0] == pytest.approx(differences[1], rel=1e-9)


def test_held_out_rows_are_looked_at_for_the_objective_itself() -> None:
    """Else the run would end where the ELBO is largest."""
    found = objective()
    guide(X)
    parameters = FlatParameters(unconstrained_parameters())
    plate = LatentSpace.of(model, {"x": X}).subsampled
    step = Step(found, model, guide, {"x": X}, parameters, plate, 3)
    held = torch.tensor([1, 3, 4])
    loss = step.loss(held, 7)
    torch.manual_seed(7)
    with FixedRows({"rows": held}), torch.no_grad():
        goal = float(found.goal(model, guide, {"x": X, "batch_size": 3}))
    assert loss == pytest.approx(-goal)
    torch.manual_seed(7)
    with FixedRows({"rows": held}):
        elbo = -found.loss(model, guide, x=X, batch_size=3)
    assert goal > elbo + 0.1


def digits(rows: int) -> pd.DataFrame:
    return er.load_dataset("digits").head(rows)


SHORT: dict[str, Any] = {
    "latent": 12, "hidden": (60,), "batch_size": 75, "learning_rate": 0.01, "steps": 200,
    "draws": 100, "seed": 1,
}  # fmt: skip


def test_on_digits_the_information_rises_with_the_weight() -> None:
    weights: tuple[dict[str, Any], ...] = ({}, {"mutual_information": 0.8})
    plain, informed = (er.fit("vae", digits(150), **weight, **SHORT) for weight in weights)
    assert informed.trained.eager is None
    error = informed.measures["mutual_information_se"]
    rise = informed.measures["mutual_information"] - plain.measures["mutual_information_upper"]
    assert rise > 4 * error
    assert informed.objective == ("info_max", "as asked")
    said = str(informed.verdict)
    assert "The objective was the ELBO plus 0.8 times an estimate of the mutual inform" in said
    assert "no bound on log p(data)" in said
    assert "no bound" not in str(plain.verdict)
    # Its history is the ELBO, as is what is reported.
    ends = informed.elbo_history[-20:].mean() / 150
    assert ends == pytest.approx(informed.diagnostics["elbo"] / 150, abs=1.0)


@pytest.mark.slow
def test_on_digits_latents_become_active_with_the_weight() -> None:
    fits = [
        er.fit(
            "vae", digits(300), latent=12, epochs=150, draws=100, seed=1, mutual_information=weight
        )
        for weight in (0.0, 0.3, 0.9)
    ]
    active = [fit.measures["active_units"] for fit in fits]
    assert active[0] < active[1] < active[2]
    told = [fit.measures["mutual_information"] for fit in fits]
    assert told[0] < told[1] < told[2]


def test_guides_with_parameters_for_each_row_take_it() -> None:
    options = {**SHORT, "batch_size": 10, "hidden": (4,), "latent": 2}
    fit = er.fit("vae", digits(30), "local", mutual_information=0.5, **options)
    assert fit.trained.eager is None
    assert fit.objective[0] == "info_max"


@pytest.mark.parametrize(
    ("asked", "data", "options", "message"),
    [
        ("helmholtz_machine", "digits", {},
         "--mutual-information: --elbo info_max is for .*, with latents that are real numbers;"),
        ("bayesian_regression", "diabetes",
         {"formula": "progression ~ bmi", "engine": "svi", "guide": "mean_field"},
         "--elbo info_max is for models whose latents all belong to rows, such as autoencoders"),
        ("vae", "digits", {"batch_size": 1}, "a minibatch has only one; give a larger --batch-s"),
        ("vae", "digits", {"elbo": "iwae", "particles": 2}, "give --elbo info_max"),
        ("vae", "digits", {"mutual_information": -1.0}, "--mutual-information -1.0: give a number"),
    ],
)  # fmt: skip
def test_what_cannot_have_it_is_refused_by_its_option(
    asked: str, data: str, options: dict[str, Any], message: str
) -> None:
    given = {"mutual_information": 0.5, "steps": 5, "seed": 1, **options}
    table = er.load_dataset(data).head(40)
    with pytest.raises((OptionError, ModelError), match=message):
        er.fit(asked, table, **given)


def test_rows_without_standard_normal_latents_are_refused() -> None:
    def other(x: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            z = pyro.sample("z", dist.Normal(torch.ones(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=pyro.subsample(x, event_dim=0))

    with pytest.raises(ModelError, match=r"no latents with a standard Normal prior.*leave --mut"):
        objective(1.0, other).goal(other, guide, {"x": X})
