"""Users' own models, right and then broken in the ways that users break them.

Each right model is taken without a word, and its log density is Pyro's own. Each break is refused
or flagged, with the site and the edit; or it is a model as well, and then its log density is
Pyro's own too. A break is one entry of `BREAKS`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import biject_to

import elbowroom as er
from elbowroom.errors import ElbowroomError
from elbowroom.inference.densities.landscape import density_of
from elbowroom.inference.problem import Problem, bind
from elbowroom.models._own import own_model

Data = Mapping[str, Any]
N = 40
random = np.random.default_rng(0)


def tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


# The right models

X = tensor(random.normal(size=N))
NOISE = tensor(random.normal(size=N))
EXPOSURE = tensor(random.uniform(1, 5, size=N))
GROUP = torch.arange(N) % 4
Y = 0.8 * X + 0.5 * NOISE
COUNT = tensor(random.poisson(EXPOSURE.numpy() * np.exp(0.3 * X.numpy())))
ANSWER = (X + NOISE > 0).double()
SHARE = torch.sigmoid(Y)
LABEL = torch.tensor(random.integers(0, 3, size=N))
PAIRS = torch.stack([Y, 0.5 * Y + NOISE], -1)
TRIALS = tensor(random.integers(5, 12, size=N))
HITS = (TRIALS * SHARE).round()
SPLITS = tensor(random.multinomial(10, [0.2, 0.3, 0.5], size=N))
SEEN = torch.arange(N) % 5 != 0


def line(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def without_plates(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(1), 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def as_an_event(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(slope * x, 1.0).to_event(1), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)


def poisson(x: Tensor, exposure: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(exposure * (slope * x).exp()), obs=y)


def gamma(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Gamma(shape, shape / (slope * x).exp()), obs=y)


def log_normal(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.LogNormal(level, 1.0), obs=y)


def beta(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    size = pyro.sample("size", dist.Gamma(2.0, 0.2))
    mean = torch.sigmoid(slope * x)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Beta(mean * size, (1 - mean) * size), obs=y)


def stretched_beta(y: Tensor) -> None:
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    stretched = [dist.transforms.AffineTransform(0.0, 10.0)]
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.TransformedDistribution(dist.Beta(shape, 2.0), stretched), obs=y)


def student(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.StudentT(freedom, slope * x, 1.0), obs=y)


def categorical(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Categorical(logits=x[:, None] * slopes), obs=y)


def one_hot(y: Tensor) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.OneHotCategorical(shares), obs=y)


def binomial(x: Tensor, trials: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Binomial(trials, logits=slope * x), obs=y)


def negative_binomial(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.NegativeBinomial(size, logits=slope * x), obs=y)


def zero_inflated(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.ZeroInflatedPoisson((slope * x).exp(), gate=gate), obs=y)


def multinomial(y: Tensor) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Multinomial(10, shares), obs=y)


def dirichlet_multinomial(y: Tensor) -> None:
    concentration = pyro.sample("concentration", dist.Gamma(2.0 * torch.ones(3), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.DirichletMultinomial(concentration, 10), obs=y)


def ordinal(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    first = pyro.sample("first", dist.Normal(-1.0, 1.0))
    step = pyro.sample("step", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        cuts = torch.stack([first, first + step])
        pyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=y)


def centred(group: Tensor, y: Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def not_centred(group: Tensor, y: Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", spread * standard)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def crossed(y: Tensor) -> None:
    """Rows by columns, (4, 10), each with an effect."""
    rows, columns = pyro.plate("row", 4, dim=-2), pyro.plate("column", 10, dim=-1)
    with rows:
        first = pyro.sample("first", dist.Normal(0.0, 1.0))
    with columns:
        second = pyro.sample("second", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("y", dist.Normal(first + second, 1.0), obs=y)


@config_enumerate
def mixture(y: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("parts", 2):
        means = pyro.sample("means", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        part = pyro.sample("part", dist.Bernoulli(share)).long()
        pyro.sample("y", dist.Normal(means[part], 1.0), obs=y)


def marginal_mixture(y: Tensor) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
    rates = pyro.sample("rates", dist.Gamma(2.0 * torch.ones(2), 1.0).to_event(1))
    parts = dist.MixtureSameFamily(dist.Categorical(shares), dist.Gamma(2.0, rates))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", parts, obs=y)


def correlated(y: Tensor) -> None:
    scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 1.0))
    with pyro.plate("rows", len(y)):
        tril = scales[:, None] * factor
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=y)


def autoregression(y: Tensor) -> None:
    keep = pyro.sample("keep", dist.Uniform(-1.0, 1.0))
    for t in range(1, len(y)):
        pyro.sample(f"y_{t}", dist.Normal(keep * y[t - 1], 1.0), obs=y[t])


def one_by_one(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(y)):
        pyro.sample(f"y_{i}", dist.Normal(slope * x[i], 1.0), obs=y[i])


def gaussian_process(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    kernel = (-0.5 * (x[:, None] - x).square() / length**2).exp()
    covariance = kernel + 0.3 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def network() -> Callable[..., None]:
    layer = PyroModule[torch.nn.Linear](1, 1).double()
    layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
    layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def model(x: Tensor, y: Tensor) -> None:
        mean = layer(x[:, None])[:, 0]
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model


def decoder() -> Callable[..., None]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(1, 1).double()

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("layer", layer)
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(level + layer(x[:, None])[:, 0], 1.0), obs=y)

    return model


def masked(x: Tensor, y: Tensor, seen: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def masked_counts(y: Tensor, seen: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rate).mask(seen), obs=y)


def survival(x: Tensor, time: Tensor, died: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    rate = (slope * x).exp()
    with pyro.plate("rows", len(time)):
        pyro.factor("times", died * rate.log() - rate * time)


def truncated(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)
        pyro.factor("above_0", -torch.special.log_ndtr(level).expand(len(y)))


def bounded(y: Tensor) -> None:
    """Its support depends on a latent: values beyond the limit have no density, and are right."""
    limit = pyro.sample("limit", dist.HalfNormal(10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Uniform(0.0, limit), obs=y)


def minibatches(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        u, v = pyro.subsample(x, event_dim=0), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(slope * u, 1.0), obs=v)


def flat(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0).mask(False))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def matrix(y: Tensor) -> None:
    """A rank-one matrix as one event."""
    left = pyro.sample("left", dist.Normal(torch.zeros(N), 1.0).to_event(1))
    right = pyro.sample("right", dist.Normal(torch.ones(2), 0.1).to_event(1))
    pyro.sample("y", dist.Normal(left[:, None] * right, 1.0).to_event(2), obs=y)


LINE: Data = {"x": X, "y": Y}
COUNTS: Data = {"x": X, "y": COUNT}
MODELS: dict[str, tuple[Callable[..., Any], Data]] = {
    "line": (line, LINE),
    "without plates": (without_plates, LINE),
    "as an event": (as_an_event, LINE),
    "logistic": (logistic, {"x": X, "y": ANSWER}),
    "poisson": (poisson, {"x": X, "exposure": EXPOSURE, "y": COUNT}),
    "gamma": (gamma, {"x": X, "y": Y.exp()}),
    "log normal": (log_normal, {"y": Y.exp()}),
    "beta": (beta, {"x": X, "y": SHARE}),
    "stretched beta": (stretched_beta, {"y": 10 * SHARE}),
    "student": (student, LINE),
    "categorical": (categorical, {"x": X, "y": LABEL}),
    "one hot": (one_hot, {"y": torch.nn.functional.one_hot(LABEL).double()}),
    "binomial": (binomial, {"x": X, "trials": TRIALS, "y": HITS}),
    "negative binomial": (negative_binomial, COUNTS),
    "zero inflated": (zero_inflated, COUNTS),
    "multinomial": (multinomial, {"y": SPLITS}),
    "dirichlet-multinomial": (dirichlet_multinomial, {"y": SPLITS}),
    "ordinal": (ordinal, {"x": X, "y": LABEL}),
    "centred": (centred, {"group": GROUP, "y": Y}),
    "not centred": (not_centred, {"group": GROUP, "y": Y}),
    "crossed": (crossed, {"y": Y.reshape(4, 10)}),
    "mixture": (mixture, {"y": Y}),
    "marginal mixture": (marginal_mixture, {"y": Y.exp()}),
    "correlated": (correlated, {"y": PAIRS}),
    "autoregression": (autoregression, {"y": Y[:12]}),
    "one by one": (one_by_one, {"x": X[:6], "y": Y[:6]}),
    "gaussian process": (gaussian_process, LINE),
    "network": (network(), LINE),
    "decoder": (decoder(), LINE),
    "masked": (masked, {**LINE, "seen": SEEN}),
    "masked counts": (masked_counts, {"y": torch.where(SEEN, COUNT, -9.0), "seen": SEEN}),
    "survival": (survival, {"x": X, "time": Y.exp(), "died": ANSWER}),
    "truncated": (truncated, {"y": Y.exp()}),
    "bounded": (bounded, {"y": 10 * SHARE}),
    "minibatches": (minibatches, LINE),
    "flat": (flat, {"y": Y}),
    "matrix": (matrix, {"y": PAIRS}),
}


# What becomes of a model


def bound(model: Callable[..., Any], data: Data) -> Problem:
    return bind(own_model(model), dict(data), None, torch.float64, torch.device("cpu"))


def by_pyro(problem: Problem, point: Tensor) -> float:
    """Pyro's log density at an unconstrained point, with validation on."""
    values, jacobian, parts = {}, torch.zeros(()), problem.space.split(point)
    for site in problem.space.sites:
        prior: Any = poutine.trace(poutine.condition(problem.function, data=values)).get_trace(
            **problem.arguments
        )
        transform = biject_to(prior.nodes[site.name]["fn"].support)
        unconstrained = parts[site.name]
        values[site.name] = transform(unconstrained)
        terms = transform.log_abs_det_jacobian(unconstrained, values[site.name])
        jacobian = jacobian + terms.sum()
    held: Any = poutine.condition(problem.function, data=values)
    with pyro.validation_enabled(True):
        if not problem.space.discrete:
            trace = poutine.trace(held).get_trace(**problem.arguments)
            return float(trace.log_prob_sum() + jacobian)
        nesting = problem.space.max_plate_nesting
        summed = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)
        loss = summed.loss(config_enumerate(held), lambda **_: None, **problem.arguments)
        return float(jacobian - loss)


def assert_pyros_own(model: Callable[..., Any], data: Data) -> None:
    problem = bound(model, data)
    with problem.session(0):
        density = density_of(problem) if not problem.space.parameters.size else None
        points = 0.7 * torch.randn(3, problem.space.dimension, dtype=torch.float64)
        for point in points:
            expected = by_pyro(problem, point)
            if density is None:
                values = problem.space.parameters.initial
                found = float(density_of(problem, values).value(point[None].numpy())[0])
            else:
                found = float(density.value(point[None].numpy())[0])
            if math.isnan(expected):
                expected = -math.inf
            assert found == pytest.approx(expected, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_a_right_model_is_taken_without_a_word(name: str) -> None:
    model, data = MODELS[name]
    assert bound(model, data).doubts == ()


@pytest.mark.parametrize("name", set(MODELS) - {"bounded"})
def test_the_log_density_of_a_right_model_is_pyros_own(name: str) -> None:
    assert_pyros_own(*MODELS[name])
