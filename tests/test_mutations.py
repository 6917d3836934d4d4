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
from elbowroom.density.landscape import density_of
from elbowroom.errors import ElbowroomError
from elbowroom.models._own import own_model
from elbowroom.problem.bound import Problem, bind

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
    rows: Any = pyro.plate("rows", len(y))
    for i in rows:
        pyro.sample(f"y_{i}", dist.Normal(slope * x[i], 1.0), obs=y[i])


def gaussian_process(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    kernel = (-0.5 * (x[:, None] - x).square() / length**2).exp()
    covariance = kernel + 0.3 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def network() -> Callable[..., None]:
    linear: Any = PyroModule[torch.nn.Linear]
    layer = linear(1, 1).double()
    layer.weight = PyroSample(dist.Normal(tensor([[0.0]]), 1.0).to_event(2))
    layer.bias = PyroSample(dist.Normal(tensor([0.0]), 1.0).to_event(1))

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


def masked(x: Tensor, y: Tensor, seen: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def masked_counts(y: Tensor, seen: Any) -> None:
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


def scale_of_a_pareto(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Pareto(scale, torch.tensor(2.0)), obs=y)


MODELS: dict[str, tuple[Callable[..., Any], Data]] = {
    "line": (line, LINE),
    "without plates": (without_plates, LINE),
    "as an event": (as_an_event, LINE),
    "logistic": (logistic, {"x": X, "y": ANSWER}),
    "poisson": (poisson, {"x": X, "exposure": EXPOSURE, "y": COUNT}),
    "gamma": (gamma, {"x": X, "y": Y.exp()}),
    "log normal": (log_normal, {"y": Y.exp()}),
    "beta": (beta, {"x": X, "y": SHARE}),
    "pareto": (scale_of_a_pareto, {"y": Y.exp() + 3}),
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


# The breaks


@dataclass(frozen=True)
class Break:
    """A right model with something changed.

    Attributes:
        name: What is wrong.
        model: A right model's name, or the changed model.
        data: What of the data is changed, or all of them.
        said: What the refusal or the warning says, as a pattern for each part; none where the
            change makes a model like any other.
        guide: The guide that it is checked with.
        fitted: Whether it takes a fit to see it.
        options: Of the check or the fit.
    """

    name: str
    model: str | Callable[..., Any]
    data: Data
    said: tuple[str, ...] = ()
    guide: Any = "mean_field"
    fitted: bool = False
    options: Data | None = None


def line_with(
    mean: Callable[..., Tensor] = lambda slope, x: slope * x,
    likelihood: Callable[..., Any] = dist.Normal,
    value: Callable[[Tensor], Tensor] = lambda y: y,
    scale: Callable[[], Any] = lambda: 1.0,
    **plate: Any,
) -> Callable[..., None]:
    """A line with one part changed."""

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        spread = scale()
        with pyro.plate("rows", len(y), **plate):
            pyro.sample("y", likelihood(mean(slope, x), spread), obs=value(y))

    return model


def latent(prior: dist.TorchDistribution) -> Callable[[], Any]:
    return lambda: pyro.sample("spread", prior)


def slopes_without_event(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Categorical(logits=x[:, None] * slopes), obs=y)


def effects_of_rows_in_groups(group: Tensor, y: Tensor) -> None:
    with pyro.plate("groups", 4, dim=-2):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def effects_beside_rows(group: Tensor, y: Tensor) -> None:
    """The plate of the groups was left open."""
    with pyro.plate("groups", 4, dim=-2):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), dim=-1):
            pyro.sample("y", dist.Normal(effect[group, 0], 1.0), obs=y)


def prior_below_zero(x: Tensor, y: Tensor) -> None:
    noise = pyro.sample("noise", dist.HalfNormal(-1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x, noise), obs=y)


def probability_of_a_normal(x: Tensor, y: Tensor) -> None:
    share = pyro.sample("share", dist.Normal(0.5, 0.3))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(share), obs=y)


def probability_without_a_link(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(probs=slope * x), obs=y)


def rate_without_a_link(x: Tensor, exposure: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(exposure * slope * x), obs=y)


def offset_left_out(x: Tensor, exposure: Tensor, y: Tensor) -> None:
    poisson(x, torch.ones_like(exposure), y)


def reversed_uniform(y: Tensor) -> None:
    limit = pyro.sample("limit", dist.HalfNormal(10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Uniform(limit, 0.0), obs=y)


def sum_within(x: Tensor, time: Tensor, died: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(time)):
        pyro.factor("times", (died * slope * x - (slope * x).exp() * time).sum())


def scaled_twice(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    with poutine.scale(scale=len(y) / (batch_size or len(y))):
        minibatches(x, y, batch_size)


def rows_not_taken(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def values_not_taken(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def not_symmetric(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    kernel = (-0.5 * (x[:, None] - x - 0.1).square() / length**2).exp() + torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=y)


def covariance_as_factor(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    covariance = scale * tensor([[1.0, 0.5], [0.5, 1.0]])
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=covariance), obs=y)


def all_each_time(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(y)):
        pyro.sample(f"y_{i}", dist.Normal(slope * x, 1.0).to_event(1), obs=y)


def two_for_two_parts(x: Tensor, y: Tensor, seen: Any) -> None:
    """The same values at two sites, each of them for the rows that the other leaves out."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        with poutine.mask(mask=seen):
            pyro.sample("near", dist.Normal(slope * x, 1.0), obs=y)
        with poutine.mask(mask=~seen):
            pyro.sample("far", dist.Normal(slope * x, 3.0), obs=y)


def times_within_a_factor(x: Tensor, time: Tensor, died: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    times = dist.Weibull((slope * x).exp(), 2.0)
    with pyro.plate("rows", len(time)):
        pyro.factor("times", died * times.log_prob(time))


def slopes_guide(x: Tensor, y: Tensor) -> None:
    pyro.sample("slope", dist.Normal(pyro.param("at", torch.zeros(3)), 0.1).to_event(1))
    pyro.sample("noise", dist.LogNormal(0.0, 0.1))


def guide_without_noise(x: Tensor, y: Tensor) -> None:
    pyro.sample("slope", dist.Normal(pyro.param("at", torch.zeros(())), 0.1))


def guide_with_another(x: Tensor, y: Tensor) -> None:
    guide_without_noise(x, y)
    pyro.sample("noise", dist.LogNormal(0.0, 0.1))
    pyro.sample("intercept", dist.Normal(0.0, 0.1))


def guide_below_zero(x: Tensor, y: Tensor) -> None:
    guide_without_noise(x, y)
    pyro.sample("noise", dist.Normal(0.0, 1.0))


COLUMN = X[:, None]
GAP = torch.where(torch.arange(N) == 16, 2.0, ANSWER)
Y_COLUMN = r"'y' has shape \[40, 1\], a single column"
X_COLUMN = r"'x' has shape \[40, 1\], a single column: write x\[:, 0\]"
BREAKS = [
    # shapes
    Break("a column of x", "line", {"x": COLUMN}, ("site 'y'", "40 times", X_COLUMN)),
    Break("a column of y", "line", {"y": Y[:, None]}, ("site 'y'", Y_COLUMN)),
    Break("both columns", "line", {"x": COLUMN, "y": Y[:, None]}, ("site 'y'", "a single column")),
    Break("no plate, x", "without plates", {"x": COLUMN}, ("site 'y'", X_COLUMN)),
    Break("no plate, y", "without plates", {"y": Y[:, None]}, ("site 'y'", Y_COLUMN)),
    Break("an event, x", "as an event", {"x": COLUMN}, ("site 'y'", X_COLUMN)),
    Break("an event, y", "as an event", {"y": Y[:, None]}, ("site 'y'", Y_COLUMN)),
    Break(
        "an event of both dims",
        line_with(likelihood=lambda m, s: dist.Normal(m, s).to_event(2)),
        {"x": COLUMN, "y": Y},
        ("site 'y'", "count", X_COLUMN),
    ),
    Break(
        "an event within the plate",
        line_with(likelihood=lambda m, s: dist.Normal(m, s).to_event(1)),
        LINE,
        ("site 'y'", "40 times"),
    ),
    Break("one value", "line", {"y": Y[0]}, ("len|0-d",)),
    Break(
        "one value in a plate",
        line_with(value=lambda y: y[0]),
        LINE,
        ("site 'y'", "40 times", r"obs=y.expand"),
    ),
    Break(
        "the mean of the values",
        line_with(value=lambda y: y.mean(0, keepdim=True)),
        LINE,
        ("site 'y'", "40 times"),
    ),
    Break("half of the values", "line", {"y": Y[:20]}, ("site y", "20", "same batch shape")),
    Break("half of x", "line", {"x": X[:20]}, ("site y", "40", "same batch shape")),
    Break("x with one row", "line", {"x": X[:1]}),
    Break("logistic, x", "logistic", {"x": COLUMN}, ("site 'y'", X_COLUMN)),
    Break(
        "poisson, exposure", "poisson", {"exposure": EXPOSURE[:, None]}, ("site 'y'", "exposure")
    ),
    Break("beta, x", "beta", {"x": COLUMN}, ("site 'y'", X_COLUMN)),
    Break("student, x", "student", {"x": COLUMN}, ("site 'y'", X_COLUMN)),
    Break("binomial, trials", "binomial", {"trials": TRIALS[:, None]}, ("site 'y'", "trials")),
    Break("groups in a column", "centred", {"group": GROUP[:, None]}, ("site 'y'", "group")),
    Break("mixture, y", "mixture", {"y": Y[:, None]}, ("site 'y'", Y_COLUMN)),
    Break("process, y", "gaussian process", {"y": Y[:, None]}, ("site 'y'", Y_COLUMN)),
    Break("pairs turned", "correlated", {"y": PAIRS.T}, ("site 'y'",)),
    Break("one of a pair", "correlated", {"y": PAIRS[:, :1]}, ("site 'y'", "event", "column")),
    Break("a table of too few columns", "crossed", {"y": Y[:10]}, ("site 'y'", "4 times")),
    Break("a table turned", "crossed", {"y": Y.reshape(10, 4)}, ("site 'y'", "do not match")),
    Break("matrix, one column", "matrix", {"y": PAIRS[:, :1]}, ("site 'y'", "more than once")),
    Break("network, x", "network", {"y": Y[:, None]}, ("site 'y'", Y_COLUMN)),
    Break("censoring in a column", "survival", {"died": ANSWER[:, None]}, ("site 'times'", "died")),
    Break("a sum within the plate", sum_within, MODELS["survival"][1], ("site 'times'", "out of")),
    # plates
    Break("a plate's dim", line_with(dim=-2), LINE, ("site 'y'", "dim -2", "write dim=-1")),
    Break(
        "slopes in no plate",
        slopes_without_event,
        MODELS["categorical"][1],
        ("site 'slopes'", r"to_event\(1\)"),
    ),
    Break(
        "groups in another dim",
        effects_of_rows_in_groups,
        MODELS["centred"][1],
        ("site 'y'", "shape"),
    ),
    Break("a plate left open", effects_beside_rows, MODELS["centred"][1], ("site 'y'", "4 times")),
    # masks
    Break(
        "a mask in a column", "masked", {"seen": SEEN[:, None]}, ("site 'y'", "mask", "40 times")
    ),
    Break("a short mask", "masked", {"seen": SEEN[:20]}, ("mask|size",)),
    Break("a mask of numbers", "masked", {"seen": SEEN.double()}, ("mask|Bool|bool",)),
    Break("a fn's mask in a column", "masked counts", {"seen": SEEN[:, None]}, ("site 'y'",)),
    Break(
        "a mask of rows for an event",
        line_with(likelihood=lambda m, s: dist.Normal(m, s).to_event(1).mask(SEEN)),
        LINE,
        ("site 'y'",),
    ),
    Break(
        "the mask the wrong way",
        "masked counts",
        {"seen": ~SEEN, "y": MODELS["masked counts"][1]["y"]},
        ("site 'y'", "row 1.* has -9", "counts"),
    ),
    Break("all rows masked", "masked", {"seen": torch.zeros(N, dtype=torch.bool)}),
    # supports and coding
    Break("answers 1 and 2", "logistic", {"y": ANSWER + 1}, ("site 'y'", "has 2", "y - 1")),
    Break(
        "one answer of 2",
        "logistic",
        {"y": GAP},
        ("site 'y'", "row 17.* has 2", "0 and 1"),
    ),
    Break("answers -1 and 1", "logistic", {"y": 2 * ANSWER - 1}, ("site 'y'", "-1", "0 and 1")),
    Break("shares as answers", "logistic", {"y": SHARE}, ("site 'y'", "0 and 1")),
    Break(
        "counts of halves", "poisson", {"y": COUNT + 0.5}, ("site 'y'", "whole numbers", "Gamma")
    ),
    Break("counts below 0", "poisson", {"y": COUNT - 3}, ("site 'y'", "has -", "from 0 on")),
    Break(
        "counts, negative binomial", "negative binomial", {"y": COUNT / 3}, ("site 'y'", "whole")
    ),
    Break("counts, zero inflated", "zero inflated", {"y": COUNT + 0.1}, ("site 'y'", "whole")),
    Break("gamma of real numbers", "gamma", {"y": Y}, ("site 'y'", "row", "positive")),
    Break("gamma with a zero", "gamma", {"y": Y.exp() * SEEN}, ("site 'y'", "row 1", "leave")),
    Break(
        "log normal with a zero",
        "log normal",
        {"y": Y.exp() * SEEN},
        ("site 'y'", "row 1.* has 0"),
    ),
    Break(
        "shares of 0", "beta", {"y": SHARE * SEEN}, ("site 'y'", "row 1", "limit of the support")
    ),
    Break("shares of 1", "beta", {"y": torch.where(SEEN, SHARE, 1.0)}, ("site 'y'", "row 1")),
    Break("percentages", "beta", {"y": 100 * SHARE}, ("site 'y'", "not percentages")),
    Break("beyond a stretched beta", "stretched beta", {"y": 12 * SHARE}, ("site 'y'", "row")),
    Break("mixture below 0", "marginal mixture", {"y": Y}, ("site 'y'", "row")),
    Break("labels from 1", "categorical", {"y": LABEL + 1}, ("site 'y'", "has 3", "y - 1")),
    Break("a label too many", "categorical", {"y": torch.arange(N) % 4}, ("site 'y'", "has 3")),
    Break("a missing label of -1", "categorical", {"y": LABEL - 1}, ("site 'y'", "has -1")),
    Break("grades from 1", "ordinal", {"y": LABEL + 1}, ("site 'y'", "has 3", "y - 1")),
    Break("labels for one-hot rows", "one hot", {"y": LABEL}, ("site 'y'",)),
    Break(
        "labels as numbers of one",
        "one hot",
        {"y": torch.eye(3)[LABEL] * 2.0},
        ("site 'y'", "one_hot"),
    ),
    Break("hits beyond trials", "binomial", {"y": TRIALS + 1}, ("site 'y'", "each row's limit")),
    Break("totals", "multinomial", {"y": SPLITS + 1}, ("site 'y'", "total_count")),
    Break(
        "totals, dirichlet",
        "dirichlet-multinomial",
        {"y": SPLITS + 1},
        ("site 'y'", "total_count|inf"),
    ),
    Break("shares for counts", "multinomial", {"y": SPLITS / 10}, ("site 'y'", "Give counts")),
    Break("below a bound", "bounded", {"y": -SHARE}, ("site 'y'", "row 1 .counted from 1. has -")),
    Break("not a number", "line", {"y": torch.where(SEEN, Y, torch.nan)}, ("NaN", "drop")),
    Break(
        "times of 0 within a factor",
        times_within_a_factor,
        {**MODELS["survival"][1], "time": SEEN.double()},
        ("site 'times'", "nan in row 1"),
    ),
    # arguments
    Break(
        "a scale below 0", line_with(scale=lambda: -1.0), LINE, ("site 'y'", "scale", "positive")
    ),
    Break(
        "a scale of 0",
        line_with(scale=lambda: 0.0),
        LINE,
        ("site 'y'", "scale is 0|scale of", "exp"),
    ),
    Break(
        "a scale of both signs",
        line_with(scale=latent(dist.Normal(0.0, 1.0))),
        LINE,
        ("site 'y'", "scale", "positive prior"),
    ),
    Break(
        "a scale of NaN",
        line_with(scale=lambda: torch.tensor(-1.0).sqrt()),
        LINE,
        ("site 'y'", "nan"),
    ),
    Break("a prior's scale", prior_below_zero, LINE, ("site 'noise'", "scale", "positive")),
    Break(
        "a probability beyond 1",
        probability_of_a_normal,
        MODELS["logistic"][1],
        ("site 'y'", "probs", "sigmoid"),
    ),
    Break(
        "no logistic link",
        probability_without_a_link,
        MODELS["logistic"][1],
        ("site 'y'", "probs", "logits"),
    ),
    Break("no log link", rate_without_a_link, MODELS["poisson"][1], ("site 'y'", "rate", "exp")),
    Break(
        "limits turned", reversed_uniform, MODELS["bounded"][1], ("of its Uniform|Uniform is not",)
    ),
    Break(
        "a matrix that is not symmetric",
        not_symmetric,
        LINE,
        ("symmetric|definite", "site 'y'|run"),
    ),
    Break(
        "a covariance for its factor",
        covariance_as_factor,
        {"y": PAIRS},
        ("site 'y'", "scale_tril", "cholesky"),
    ),
    Break("trials below 0", "binomial", {"trials": TRIALS - 12}, ("site 'y'", "total_count")),
    # minibatches
    Break("scaled twice", scaled_twice, LINE, ("site 'slope'", "subsample_size=batch_size")),
    Break("rows not taken", rows_not_taken, LINE, ("site y", "40")),
    Break("values not taken", values_not_taken, LINE, ("site 'y'", "rows")),
    # guides
    Break("a site forgotten", "line", {}, ("site 'noise'",), guide_without_noise),
    Break("a site too many", "line", {}, ("'intercept'",), guide_with_another),
    Break("a guide of another shape", "line", {}, ("site 'slope'", "shape"), slopes_guide),
    Break("a guide below 0", "line", {}, ("site 'noise'", "LogNormal"), guide_below_zero),
    # numbers of another type
    Break("answers of bool", "logistic", {"y": ANSWER.bool()}),
    Break("answers of int64", "logistic", {"y": ANSWER.long()}),
    Break("labels of float64", "categorical", {"y": LABEL.double()}),
    Break("counts of int64", "poisson", {"y": COUNT.long()}),
    Break("numbers of int64", "line", {"x": (3 * X).long(), "y": (3 * Y).long()}),
    Break("numbers of float32", "line", {"x": X.float(), "y": Y.float()}),
    Break("x of int64 in a layer", "decoder", {"x": (3 * X).long()}),
    Break("words", "line", {"x": np.array(["a"] * N)}, ("'x'", "numeric")),
    # twice
    Break("all values at each row", all_each_time, MODELS["one by one"][1], ("'y_0'", "6 times")),
    Break("two sites for two parts", two_for_two_parts, MODELS["masked"][1]),
    # gradients
    Break(
        "a detached slope",
        line_with(mean=lambda slope, x: slope.detach() * x),
        LINE,
        ("gradient", "detach"),
        "auto",
        fitted=True,
    ),
    Break("an offset left out", offset_left_out, MODELS["poisson"][1]),
]


# What becomes of a model


def bound(model: Callable[..., Any], data: Data) -> Problem:
    return bind(own_model(model), dict(data), None, torch.float64, torch.device("cpu"))


def by_pyro(problem: Problem, point: Tensor) -> float:
    """Pyro's log density at an unconstrained point, with validation on."""
    values: dict[str, Tensor] = {}
    jacobian, parts = torch.zeros(()), problem.space.split(point)
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
            try:
                return float((trace.log_prob_sum() + jacobian).detach())
            except ValueError:  # a value beyond a limit that is a latent
                return -math.inf
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


@pytest.mark.parametrize("name", [name for name in MODELS if name != "masked counts"])
def test_the_log_density_of_a_right_model_is_pyros_own(name: str) -> None:
    assert_pyros_own(*MODELS[name])


def said_of(model: Callable[..., Any], data: Data, broken: Break) -> str:
    """The refusal or the warnings; empty where there are none."""
    options: dict[str, Any] = {"seed": 1, **(broken.options or {})}
    try:
        if broken.fitted:
            verdict = er.fit(model, dict(data), broken.guide, **options).verdict
            return "" if verdict.trusted else str(verdict)
        found = er.check(model, dict(data), broken.guide, **options)
    except ElbowroomError as refusal:
        return str(refusal)
    return " ".join(each.text for each in found if each.level != "ok")


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_a_break_is_said_or_has_pyros_own_log_density(broken: Break) -> None:
    model, data = broken.model, broken.data
    if isinstance(model, str):
        model, own = MODELS[model]
        data = {**own, **data}
    if broken.said:
        said = said_of(model, data, broken)
        for part in broken.said:
            assert re.search(part, said), said or "nothing was said"
    else:
        assert_pyros_own(model, data)


class Scaled(PyroModule):
    """A model with a parameter of its own."""

    def __init__(self, fitted: bool) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(tensor(2.0), requires_grad=fitted)

    def forward(self, y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(level, self.scale), obs=y)


def layered(registered: bool, frozen: bool) -> Callable[..., None]:
    layer = torch.nn.Linear(1, 1).double()
    layer.weight.requires_grad_(not frozen)

    def model(x: Tensor, y: Tensor) -> None:
        if registered:
            pyro.module("layer", layer)
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(level + layer(x[:, None])[:, 0], 1.0), obs=y)

    return model


@pytest.mark.filterwarnings("ignore:weight was not registered")
@pytest.mark.parametrize(
    ("model", "data", "names"),
    [
        (Scaled(True), {"y": Y}, {"scale"}),
        (layered(True, False), LINE, {"layer$$$weight", "layer$$$bias"}),
        (layered(True, True), LINE, {"layer$$$bias"}),
        (Scaled(False), {"y": Y}, set()),
    ],
    ids=["free", "registered", "registered and frozen", "frozen"],
)
def test_a_parameter_is_fitted_where_it_requires_a_gradient(
    model: Any, data: Data, names: set[str]
) -> None:
    assert set(bound(model, data).space.parameters.initial) == names


def test_a_layer_that_is_not_registered_is_refused() -> None:
    with pytest.raises(ElbowroomError, match=r"pyro\.module"):
        bound(layered(False, False), LINE)
