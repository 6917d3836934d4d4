"""A recorded log density is the model's own: its value, its gradient and its Jacobians."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.special import gammaln
from torch import Tensor, tensor

import elbowroom as er
from elbowroom.density.density import Density
from elbowroom.draws import adaptive
from elbowroom.errors import ModelError
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated
from elbowroom.sizes import SIZES

VALUE, GRADIENT = 1e-10, 1e-8
"""Relative and absolute: the same sums in another order, far from where they were recorded."""
QUADRATURE = 1e-8
"""The trapezoidal rule on a smooth density that vanishes at both ends errs by rounding alone."""

Model = Callable[..., Any]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def density_of(model: Model, arguments: Mapping[str, Any]) -> Density:
    return Density(model, arguments, LatentSpace.of(model, arguments))


def log_integral(density: Density, low: float, high: float, count: int) -> float:
    """Log of the integral of the density over a box, by the trapezoidal rule."""
    axis = np.linspace(low, high, count)
    grid = np.stack(np.meshgrid(*[axis] * density.dimension, indexing="ij"), -1)
    values = density.value(grid.reshape(-1, density.dimension))
    width = density.dimension * np.log(axis[1] - axis[0])
    return float(np.logaddexp.reduce(values) + width)


# The Jacobian: what is integrated over the unconstrained coordinates is the evidence, in closed
# form. Without the Jacobian it would be something else.


def gamma_poisson(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(tensor(2.0), 3.0))
    pyro.sample("y", dist.Poisson(rate), obs=y)


def dirichlet_multinomial(y: Tensor) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(tensor([2.0, 3.0, 1.5])))
    pyro.sample("y", dist.Multinomial(probs=shares, total_count=6), obs=y)


def ordered_normals(y: Tensor) -> None:
    cuts = pyro.sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.factor("prior", dist.Normal(0.0, 1.0).log_prob(cuts).sum())
    pyro.sample("y", dist.Normal(cuts.sum(), 1.0), obs=y)


def correlation(y: Tensor) -> None:
    """A flat correlation, and a chance of success (1 + r) / 2 that its beta function integrates."""
    factor = pyro.sample("factor", dist.LKJCholesky(2, tensor(1.0)))
    r = (factor @ factor.mT)[0, 1]
    pyro.sample("y", dist.Binomial(4, (1 + r) / 2), obs=y)


def log_beta(a: float, b: float) -> float:
    return float(gammaln(a) + gammaln(b) - gammaln(a + b))


COUNTS, DIRICHLET = np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 1.5])
DIRICHLET_MULTINOMIAL = gammaln(7) + gammaln(6.5) - gammaln(12.5)
DIRICHLET_MULTINOMIAL += (gammaln(DIRICHLET + COUNTS) - gammaln(DIRICHLET)).sum()
DIRICHLET_MULTINOMIAL -= gammaln(COUNTS + 1).sum()

EVIDENCE = {
    # Negative binomial with 2 successes at chance 3/4: Gamma(2, 3) is conjugate.
    gamma_poisson: (tensor(4.0), np.log(5) + 2 * np.log(0.75) + 4 * np.log(0.25)),
    dirichlet_multinomial: (tensor(COUNTS), DIRICHLET_MULTINOMIAL),
    # Half of the plane: the sum of two standard Normals and noise has variance 3.
    ordered_normals: (tensor(1.0), np.log(0.5) - 0.5 * np.log(6 * np.pi) - 1 / 6),
    # Four tosses of a uniform chance: each of 0..4 successes has chance 1/5.
    correlation: (tensor(3.0), np.log(4) + log_beta(4, 2)),
}


@pytest.mark.parametrize("model", EVIDENCE)
def test_the_integral_over_unconstrained_coordinates_is_the_evidence(model: Model) -> None:
    y, wanted = EVIDENCE[model]
    density = density_of(model, {"y": y.double()})
    assert density.how == "recorded"
    count = 2001 if density.dimension == 1 else 501
    assert log_integral(density, -30.0, 30.0, count) == pytest.approx(wanted, abs=QUADRATURE)


def test_the_jacobian_is_counted_in_closed_form() -> None:
    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.Gamma(tensor(2.0), 3.0))
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    y, u = 1.2, np.array([[0.4], [-3.0], [2.0]])
    s = np.exp(u[:, 0])
    prior = 2 * np.log(3) + np.log(s) - 3 * s
    likelihood = -0.5 * np.log(2 * np.pi) - np.log(s) - 0.5 * (y / s) ** 2
    slope = 2 - 3 * s - 1 + (y / s) ** 2  # of prior + likelihood + u with respect to u
    values, gradients = density_of(model, {"y": tensor(y)}).value_and_gradient(u)
    np.testing.assert_allclose(values, prior + likelihood + u[:, 0], rtol=1e-13)
    np.testing.assert_allclose(gradients[:, 0], slope, rtol=1e-12)


# The recording against the model itself.


def crossed_plates(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(tensor(1.0)))
    columns = pyro.plate("column", 4, dim=-1)
    with pyro.plate("group", 3, dim=-2):
        group = pyro.sample("group_mean", dist.Normal(mean, spread))  # (3, 1)
        with columns:
            pyro.sample("y", dist.StudentT(4.0, group, spread), obs=y)


def with_factor(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("quartic", -x.pow(4))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def improper(y: Tensor) -> None:
    rates = pyro.sample("rates", dist.ImproperUniform(constraints.positive, (), (2,)))
    pyro.sample("y", dist.Gamma(2.0, rates).to_event(1), obs=y)


def masked_prior(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
    with pyro.plate("row", 2):
        pyro.sample("y", dist.Normal(x, 1.0).mask(tensor([True, False])), obs=y)


def ordered_levels(y: Tensor) -> None:
    """Pyro's OrderedLogistic fills its probabilities in place, which `vmap` refuses."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    support = dist.constraints.ordered_vector
    cuts = pyro.sample("cuts", dist.ImproperUniform(support, (), (3,)))
    pyro.factor("prior", dist.Normal(0.0, 3.0).log_prob(cuts).sum())
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.OrderedLogistic(slope * torch.arange(len(y)) - 1, cuts), obs=y)


def lkj(y: Tensor) -> None:
    factor = pyro.sample("factor", dist.LKJCholesky(3, tensor(2.0)))
    scales = pyro.sample("scales", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        fn = dist.MultivariateNormal(torch.zeros(3), scale_tril=scales[:, None] * factor)
        pyro.sample("y", fn, obs=y)


def two_components(y: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(tensor(2.0), 2.0))
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("row", len(y)):
        which = pyro.sample("which", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(means[which.long()], 1.0), obs=y)


def hidden_states(y: Tensor) -> None:
    stay = pyro.sample("stay", dist.Beta(tensor([2.0, 2.0]), 2.0).to_event(1))
    state = tensor(0)
    for t in pyro.markov(range(len(y))):
        fn = dist.Bernoulli(stay[state.long()])
        state = pyro.sample(f"state_{t}", fn, infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(2.0 * state, 1.0), obs=y[t])


def with_deterministic(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    twice = pyro.deterministic("twice", 2 * x.exp())
    pyro.sample("y", dist.Normal(twice, 1.0), obs=y)


def gaussian_process(y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(tensor(0.0), 1.0))
    at = torch.linspace(0.0, 1.0, len(y), dtype=torch.float64)
    covariance = (-0.5 * ((at[:, None] - at) / length) ** 2).exp() + 0.1 * torch.eye(len(y))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(y)), covariance), obs=y)


RANDOM = torch.Generator().manual_seed(3)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM, dtype=torch.float64)


DATA: dict[Model, Tensor] = {
    crossed_plates: numbers(3, 4),
    with_factor: numbers(),
    improper: numbers(2).exp(),
    masked_prior: numbers(2),
    ordered_normals: numbers(),
    dirichlet_multinomial: tensor(COUNTS),
    lkj: numbers(5, 3),
    two_components: numbers(6),
    hidden_states: numbers(4),
    with_deterministic: numbers(),
    gaussian_process: numbers(6),
    ordered_levels: tensor([0.0, 1.0, 3.0, 2.0, 2.0]),
}


def check_against_autograd(density: Density) -> None:
    points = 2.0 * np.random.default_rng(0).normal(size=(5, density.dimension))
    values, gradients = density.value_and_gradient(points)
    np.testing.assert_array_equal(density.value(points), values)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        u = tensor(point, requires_grad=True)
        wanted = density(u)
        assert value == pytest.approx(wanted.item(), rel=VALUE, abs=VALUE)
        (slope,) = torch.autograd.grad(wanted, u)
        np.testing.assert_allclose(gradient, slope.numpy(), rtol=GRADIENT, atol=GRADIENT)


@pytest.mark.parametrize("model", DATA)
def test_recorded_value_and_gradient_are_the_model_s_own(model: Model) -> None:
    density = density_of(model, {"y": DATA[model]})
    assert density.how == "recorded"
    assert density.note is None
    check_against_autograd(density)


def test_discrete_sites_are_summed_out() -> None:
    y = tensor([-1.0, 0.3, 2.5])
    u = tensor([0.7, -0.5, 1.5])
    share, means = u[0].sigmoid(), u[1:]
    total = tensor(0.0)
    for row in y:
        parts = dist.Normal(means, 1.0).log_prob(row) + torch.stack([1 - share, share]).log()
        total = total + parts.logsumexp(0)
    prior = dist.Beta(2.0, 2.0).log_prob(share) + dist.Normal(0.0, 3.0).log_prob(means).sum()
    jacobian = (share * (1 - share)).log()
    (found,) = density_of(two_components, {"y": y}).value(u.numpy()[None])
    assert found == pytest.approx(float(total + prior + jacobian), rel=VALUE)


def test_hidden_states_are_summed_over_all_paths() -> None:
    y = DATA[hidden_states]
    u = tensor([0.4, -0.9])
    stay = u.sigmoid()
    paths = []
    for path in itertools.product([0, 1], repeat=len(y)):
        before, total = 0, tensor(0.0)
        for state, row in zip(path, y, strict=True):
            total = total + dist.Bernoulli(stay[before]).log_prob(tensor(float(state)))
            total = total + dist.Normal(2.0 * state, 1.0).log_prob(row)
            before = state
        paths.append(total)
    prior = dist.Beta(2.0, 2.0).log_prob(stay).sum() + (stay * (1 - stay)).log().sum()
    (found,) = density_of(hidden_states, {"y": y}).value(u.numpy()[None])
    assert found == pytest.approx(float(torch.stack(paths).logsumexp(0) + prior), rel=VALUE)


def test_a_masked_prior_counts_for_nothing() -> None:
    y = tensor([0.4, 9.0])
    density = density_of(masked_prior, {"y": y})
    values, gradients = density.value_and_gradient(np.array([[1.0, 2.0], [1.0, -7.0]]))
    assert values[0] == pytest.approx(float(dist.Normal(1.0, 1.0).log_prob(y[0])), rel=VALUE)
    assert values[0] == values[1]
    np.testing.assert_allclose(gradients, [[-0.6, 0.0], [-0.6, 0.0]], atol=VALUE)


# What cannot be recorded.


def far_branch(y: Tensor) -> None:
    """A branch that no point near the origin takes."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = 1.0 if x.item() < 3 else 2.0
    pyro.sample("y", dist.Normal(x, scale), obs=y)


def near_branch(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x if x > 0 else -2 * x, 1.0), obs=y)


def through_numpy(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    shift = float(np.round(x.detach().numpy() / 100))
    pyro.sample("y", dist.Normal(x + shift, 1.0), obs=y)


@pytest.mark.parametrize("model", [far_branch, near_branch, through_numpy])
def test_a_branch_on_a_value_is_run_as_it_stands(model: Model) -> None:
    density = density_of(model, {"y": tensor(0.5)})
    assert density.how == "one by one"
    assert "depend on the values" in str(density.note)
    check_against_autograd(density)
    sd = 2.0 if model is far_branch else 1.0
    mean = 71.0 if model is through_numpy else 70.0
    wanted = dist.Normal(0.0, 1.0).log_prob(tensor(70.0))
    wanted = wanted + dist.Normal(mean, sd).log_prob(tensor(0.5))
    assert density.value(np.array([[70.0]]))[0] == pytest.approx(float(wanted), rel=VALUE)


@pytest.mark.slow
def test_a_fit_says_that_its_model_is_run_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "ADAPTATION", replace(adaptive.ADAPTATION, rounds=1))
    fit = er.fit(far_branch, data={"y": tensor(0.5)}, guide="laplace", seed=1, draws=100)
    assert any("could not be recorded, so the fit was slower" in note for note in fit.notes)


def random_mean(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x + torch.randn(()), 1.0), obs=y)


def random_features(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    kept = torch.nn.functional.dropout(x, 0.5, training=True)
    pyro.sample("y", dist.Normal(kept.sum(), 1.0), obs=y)


def evaluated(message: str) -> Density:
    """A density of one number, which the model raises in place of."""

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if not y.isnan():
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return
        raise RuntimeError(message)

    space = LatentSpace.of(model, {"y": tensor(0.5)})
    return Density(model, {"y": tensor(torch.nan)}, space)


@pytest.mark.parametrize(
    ("message", "of_types"),
    [
        ("expected m1 and m2 to have the same dtype, but got: double != float", True),
        ("expected scalar type Double but found Float", True),
        ("no such level", False),
        ("no such level: tensor([0.], dtype=torch.float64)", False),
    ],
)
def test_a_density_that_cannot_be_evaluated_says_the_line_and_types_where_they_are_to_blame(
    message: str, of_types: bool
) -> None:
    with pytest.raises(ModelError) as found:
        evaluated(message)
    said, _, advice = str(found.value).partition("; ")
    began = f"the model's log density cannot be evaluated: RuntimeError: {message} (line "
    assert said.startswith(began)
    assert said.endswith("test_density.py: raise RuntimeError(message))")
    assert ("network.double()" in advice) is of_types
    assert ("float64" in advice) is of_types


@pytest.mark.parametrize("model", [random_mean, random_features])
def test_a_random_density_is_an_error(model: Model) -> None:
    with pytest.raises(ModelError, match="random"):
        density_of(model, {"y": tensor(0.5)})


def test_a_matrix_without_a_factor_has_no_density_there_and_spares_the_other_points() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        covariance = torch.eye(2) * (1 + x)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)

    density = density_of(model, {"y": torch.ones(2)})
    assert density.how == "recorded"
    values, gradients = density.value_and_gradient(np.array([[0.2], [-3.0], [1.0]]))
    assert values[1] == -np.inf
    assert np.isnan(gradients[1]).all()
    x = np.array([0.2, 1.0])
    wanted = -1.5 * np.log(2 * np.pi) - 0.5 * x**2 - np.log(1 + x) - 1 / (1 + x)
    np.testing.assert_allclose(values[[0, 2]], wanted, rtol=VALUE)


def test_a_model_s_nan_is_no_density() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal((x + 2).sqrt(), 1.0), obs=y)

    values = density_of(model, {"y": tensor(1.0)}).value(np.array([[0.0], [-2.5]]))
    assert np.isfinite(values[0])
    assert values[1] == -np.inf


def test_many_points_are_evaluated_in_batches_and_counted() -> None:
    density = density_of(crossed_plates, {"y": DATA[crossed_plates]})
    density.width = 20_000
    points = np.random.default_rng(0).normal(size=(3 * density.batch + 1, density.dimension))
    before = density.evaluations
    whole = density.value(points)
    assert density.evaluations - before == len(points)
    single = np.concatenate([density.value(point[None]) for point in points])
    np.testing.assert_allclose(whole, single, rtol=VALUE)


def test_fewer_points_are_evaluated_at_once_where_matrices_are_factorised() -> None:
    """In even parts: a few points that are left take nearly as long as all."""

    def model(y: Tensor) -> None:
        size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
        covariance = size * torch.eye(30) + 1.0
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(30), covariance), obs=y)

    density = density_of(model, {"y": torch.ones(30)})
    assert density.batch == SIZES.cache // 30**2
    parts = [len(part) for part in density._chunks(np.zeros((density.batch + 2, 1)))]
    assert parts == [-(-sum(parts) // 2), sum(parts) // 2]
    assert sum(parts) == density.batch + 2


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("validate", [False, True])
def test_a_fit_puts_the_defaults_back(broken: bool, validate: bool) -> None:
    """The fixture puts back what is changed here."""
    torch.set_default_dtype(torch.float32)
    pyro.enable_validation(validate)
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    model = random_mean if broken else with_deterministic
    try:
        er.fit(model, data={"y": torch.tensor(0.5)}, guide="laplace", seed=1, draws=100)
    except ModelError:
        assert broken
    else:
        assert not broken
    assert torch.get_default_dtype() == torch.float32
    assert torch.distributions.Distribution._validate_args is validate
    assert pyro.infer.util.is_validation_enabled() is validate
    assert pyro.poutine.util.is_validation_enabled() is validate
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(pyro.get_param_store().keys()) == ["mine"]
