"""More families of `trust.py`: models such as users have, with few data or weak ones."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special, stats
from torch import Tensor

from benchmarks.trust_families import FAMILIES, Random, family, flat, tensors
from benchmarks.trust_truths import (
    DRAWS,
    Case,
    log_uniform,
    normal,
    on_line,
    on_lines,
    quadrature,
    rotation,
)

__all__ = ["FAMILIES"]  # all of them


def _picked(random: Random, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Draws from the points of a quadrature."""
    return points[random.choice(len(points), size=DRAWS, p=weights)]


# --- regressions whose posterior is skewed


@family
def separable_logistic(random: Random) -> Case:
    """A logistic regression, often of classes that a line separates, with correlated predictors."""
    dimension, rows = int(random.integers(2, 4)), int(random.integers(3, 25))
    wide, alike = log_uniform(random, 1, 10), log_uniform(random, 0.1, 2)
    x = np.ones((rows, dimension))
    x[:, 1:] = random.normal(size=(rows, 1)) + alike * random.normal(size=(rows, dimension - 1))
    steep = log_uniform(random, 0.5, 50)
    y = random.uniform(size=rows) < special.expit(steep * (x[:, 1] - random.normal()))

    def model(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(dimension), wide).to_event(1))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)

    sign = np.where(y, -1.0, 1.0)

    def log_density(points: np.ndarray) -> np.ndarray:
        likelihood = np.logaddexp(0.0, points @ (sign[:, None] * x).T).sum(axis=1)
        return normal(points, 0.0, wide**2).sum(axis=1) - likelihood

    sizes = (300, 600) if dimension == 2 else (70, 120)
    points, weights = quadrature(log_density, [(-8 * wide, 8 * wide)] * dimension, sizes)
    strength = {"dimension": dimension, "rows": rows, "wide": wide, "steep": steep}
    return Case(strength, model, tensors(x=x, y=y), {"slopes": points}, weights)


@family
def rare_counts(random: Random) -> Case:
    """A Poisson regression of counts that are mostly zero."""
    rows, wide = int(random.integers(2, 20)), log_uniform(random, 1, 8)
    x = random.normal(size=rows)
    y = random.poisson(np.exp(random.normal() - random.uniform(0, 3) + random.normal() * x))
    y = np.minimum(y, 40)

    def model(x: Tensor, y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, wide))
        slope = pyro.sample("slope", dist.Normal(0.0, wide))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Poisson(torch.exp(level + slope * x)), obs=y)

    def log_density(points: np.ndarray) -> np.ndarray:
        rate = points[:, :1] + points[:, 1:] * x
        with np.errstate(over="ignore"):
            likelihood = (y * rate - np.exp(rate)).sum(axis=1)
        return normal(points, 0.0, wide**2).sum(axis=1) + likelihood

    points, weights = quadrature(log_density, [(-8 * wide, 8 * wide)] * 2, (400, 600))
    sites = {"level": points[:, 0], "slope": points[:, 1]}
    strength = {"rows": rows, "wide": wide, "counts": int(y.sum())}
    return Case(strength, model, tensors(x=x, y=y), sites, weights)


@family
def lasso(random: Random) -> Case:
    """Laplace priors, whose density has kinks."""
    dimension, noise = int(random.integers(1, 6)), log_uniform(random, 0.3, 3)
    scale = log_uniform(random, 0.1, 2)
    y = noise * random.normal(size=dimension) + 2 * random.normal()

    def model(y: Tensor) -> None:
        with pyro.plate("rows", dimension):
            slopes = pyro.sample("slopes", dist.Laplace(0.0, scale))
            pyro.sample("y", dist.Normal(slopes, noise), obs=y)

    grid = np.linspace(-15 * noise - 20, 15 * noise + 20, 80_001)
    prior = -np.abs(grid) / scale
    slopes = [on_line(grid, prior + normal(each, grid, noise**2), random) for each in y]
    strength = {"dimension": dimension, "noise": noise, "scale": scale}
    return Case(strength, model, tensors(y=y), {"slopes": np.stack(slopes, axis=1)})


@family
def horseshoe(random: Random) -> Case:
    """Readings of quantities with a horseshoe prior."""
    count, overall = int(random.integers(2, 6)), log_uniform(random, 0.05, 1)
    y = random.normal(size=count) + 5 * (random.uniform(size=count) < 0.3)

    def model(y: Tensor) -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(overall))
        with pyro.plate("rows", count):
            local = pyro.sample("local", dist.HalfCauchy(1.0))
            slopes = pyro.sample("slopes", dist.Normal(0.0, tau * local))
            pyro.sample("y", dist.Normal(slopes, 1.0), obs=y)

    log_tau, log_local = np.linspace(-25, 15, 800), np.linspace(-25, 25, 2000)
    prior = stats.halfcauchy.logpdf(np.exp(log_local)) + log_local
    variance = 1 + np.exp(2 * (log_tau[:, None] + log_local))  # (tau, local)
    # Each reading given tau, its own scale summed out.
    given = np.stack([special.logsumexp(prior + normal(e, 0.0, variance), axis=1) for e in y])
    prior_tau = stats.halfcauchy.logpdf(np.exp(log_tau), scale=overall) + log_tau
    tau = on_line(log_tau, prior_tau + given.sum(axis=0), random)
    place = np.rint((tau - log_tau[0]) / (log_tau[1] - log_tau[0])).astype(int)
    along = [prior + normal(each, 0.0, variance) for each in y]
    local = np.stack([on_lines(log_local, each, place, random) for each in along], axis=1)
    tau, local = np.exp(tau), np.exp(local)
    share = (tau[:, None] * local) ** 2 / (1 + (tau[:, None] * local) ** 2)
    slopes = share * y + np.sqrt(share) * random.normal(size=(DRAWS, count))
    sites = {"tau": tau, "local": local, "slopes": slopes}
    strength = {"rows": count, "overall": overall, "largest": float(np.abs(y).max())}
    return Case(strength, model, tensors(y=y), sites, heavy=("tau", "local"))


@family
def relevance(random: Random) -> Case:
    """Automatic relevance determination: each slope has a precision of its own."""
    count, shape = int(random.integers(1, 7)), log_uniform(random, 0.1, 3)
    rate, noise = log_uniform(random, 0.1, 3), log_uniform(random, 0.1, 2)
    y = noise * random.normal(size=count) + 3 * (random.uniform(size=count) < 0.5)

    def model(y: Tensor) -> None:
        with pyro.plate("rows", count):
            precision = pyro.sample("precision", dist.Gamma(shape, rate))
            slopes = pyro.sample("slopes", dist.Normal(0.0, precision.rsqrt()))
            pyro.sample("y", dist.Normal(slopes, noise), obs=y)

    grid = np.linspace(-80, 10, 80_001)  # log precision
    prior = shape * grid - rate * np.exp(grid)
    drawn = [on_line(grid, prior + normal(e, 0.0, np.exp(-grid) + noise**2), random) for e in y]
    precision = np.exp(np.stack(drawn, axis=1))
    share = 1 / (1 + precision * noise**2)
    slopes = share * y + noise * np.sqrt(share) * random.normal(size=(DRAWS, count))
    strength = {"rows": count, "shape": shape, "rate": rate, "noise": noise}
    return Case(strength, model, tensors(y=y), {"precision": precision, "slopes": slopes})


@family
def hidden_unit(random: Random) -> Case:
    """One tanh unit: height tanh(steep x), the same where both signs are turned."""
    rows, wide = int(random.integers(2, 20)), log_uniform(random, 0.5, 4)
    noise = log_uniform(random, 0.05, 1)
    x = random.normal(size=rows)
    y = random.normal() * np.tanh(wide * random.normal() * x) + noise * random.normal(size=rows)

    def model(x: Tensor, y: Tensor) -> None:
        steep = pyro.sample("steep", dist.Normal(0.0, wide))
        height = pyro.sample("height", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal(height * torch.tanh(steep * x), noise), obs=y)

    # An odd grid: fine near zero.
    steep, height = _linear_given(
        random, 9 * wide * np.linspace(-1, 1, 40_001) ** 3, wide, x, y, noise, np.tanh
    )
    strength = {"rows": rows, "wide": wide, "noise": noise}
    return Case(strength, model, tensors(x=x, y=y), {"steep": steep, "height": height})


def _linear_given(
    random: Random, grid: np.ndarray, wide: float | None, x: np.ndarray, y: np.ndarray,
    noise: float, shape: np.ufunc,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Draws of bend and height, where y = height shape(bend x) + noise, and height ~ Normal(0, 2).

    The bend has the prior Normal(0, wide), or a uniform one over the grid.
    """

    def given(bend: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        curve = shape(bend[:, None] * x)
        total = 0.25 + (curve**2).sum(axis=1) / noise**2
        return (curve * y).sum(axis=1) / noise**2 / total, total

    mean, total = given(grid)
    evidence = 0.5 * mean**2 * total - 0.5 * np.log(total)
    prior = 0.0 if wide is None else normal(grid, 0.0, wide**2)
    bend = on_line(grid, prior + evidence, random)
    mean, total = given(bend)
    return bend, mean + random.normal(size=DRAWS) / np.sqrt(total)


@family
def sinusoid(random: Random) -> Case:
    """The frequency and the height of a noisy sine: uneven modes in a row."""
    rows, noise = int(random.integers(3, 20)), log_uniform(random, 0.1, 2)
    highest = log_uniform(random, 2, 10)
    x = np.sort(random.uniform(0, 5, size=rows))
    y = random.normal() * np.sin(random.uniform(0.1, highest) * x)
    y += noise * random.normal(size=rows)

    def model(x: Tensor, y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Uniform(0.1, highest))
        height = pyro.sample("height", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal(height * torch.sin(rate * x), noise), obs=y)

    grid = np.linspace(0.1, highest, 40_001)
    rate, height = _linear_given(random, grid, None, x, y, noise, np.sin)
    strength = {"rows": rows, "noise": noise, "highest": highest}
    return Case(strength, model, tensors(x=x, y=y), {"rate": rate, "height": height})


@family
def saturation(random: Random) -> Case:
    """Growth to a limit of which the data show the beginning alone: a curved ridge."""
    rows, noise = int(random.integers(2, 12)), log_uniform(random, 0.02, 0.5)
    latest = log_uniform(random, 0.2, 3)
    x = np.sort(random.uniform(0, latest, size=rows))
    y = np.exp(random.normal()) * -np.expm1(-np.exp(random.normal()) * x)
    y += noise * random.normal(size=rows)

    def model(x: Tensor, y: Tensor) -> None:
        limit = pyro.sample("limit", dist.LogNormal(0.0, 1.5))
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.5))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal(-limit * torch.expm1(-rate * x), noise), obs=y)

    def log_density(points: np.ndarray) -> np.ndarray:
        limit, rate = np.exp(points.T[..., None])
        curve = -limit * np.expm1(-rate * x)
        return normal(points, 0.0, 2.25).sum(axis=1) + normal(y, curve, noise**2).sum(axis=1)

    points, weights = quadrature(log_density, [(-12, 12)] * 2, (400, 700))
    strength = {"rows": rows, "noise": noise, "latest": latest}
    sites = {"limit": np.exp(points[:, 0]), "rate": np.exp(points[:, 1])}
    return Case(strength, model, tensors(x=x, y=y), sites, weights)


@family
def gaussian_process(random: Random) -> Case:
    """Length and noise of a Gaussian process: signal or noise, where the data do not tell."""
    rows = int(random.integers(4, 13))
    x = np.sort(random.uniform(0, 5, size=rows))
    distance = (x[:, None] - x) ** 2

    def covariance(length: Any, noise: Any) -> np.ndarray:
        own = (noise**2 + 1e-4) * np.eye(rows)
        return np.exp(-0.5 * distance / length**2) + own

    true = covariance(np.exp(random.normal()), log_uniform(random, 0.05, 1))
    y = random.multivariate_normal(np.zeros(rows), true)

    def model(distance: Tensor, y: Tensor) -> None:
        length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        own = (noise**2 + 1e-4) * torch.eye(rows)
        kernel = torch.exp(-0.5 * distance / length**2) + own
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(rows), kernel), obs=y)

    def log_density(points: np.ndarray) -> np.ndarray:
        length, noise = np.exp(points.T)[..., None, None]
        root = np.linalg.cholesky(covariance(length, noise))
        white = np.linalg.solve(root, np.broadcast_to(y[:, None], (*root.shape[:-1], 1)))[..., 0]
        likelihood = -0.5 * (white**2).sum(axis=1)
        likelihood -= np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        prior = normal(points[:, 0], 0.0, 1.0) - 0.5 * np.exp(2 * points[:, 1]) + points[:, 1]
        return prior + likelihood

    points, weights = quadrature(log_density, [(-8, 8), (-25, 3)], (100, 200))
    strength = {"rows": float(rows)}
    sites = {"length": np.exp(points[:, 0]), "noise": np.exp(points[:, 1])}
    return Case(strength, model, tensors(distance=distance, y=y), sites, weights)


# --- groups


@family
def variance_component(random: Random) -> Case:
    """A random intercept whose variance is zero or small, with the noise unknown."""
    groups, each = int(random.integers(2, 11)), int(random.integers(2, 8))
    spread, scale = float(random.choice([0.0, log_uniform(random, 0.05, 1)])), 2.0
    cauchy = bool(random.integers(2))
    y = spread * random.normal(size=(groups, 1)) + random.normal(size=(groups, each))

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        prior = dist.HalfCauchy(scale) if cauchy else dist.HalfNormal(scale)
        spread = pyro.sample("spread", prior)
        sigma = pyro.sample("sigma", dist.HalfNormal(5.0))
        with pyro.plate("groups", groups):
            effect = pyro.sample("effect", dist.Normal(mean, spread))
        with pyro.plate("columns", groups), pyro.plate("rows", each):
            pyro.sample("y", dist.Normal(effect, sigma), obs=y.T)

    means = y.mean(axis=1)
    within = ((y - means[:, None]) ** 2).sum()

    def log_density(points: np.ndarray) -> np.ndarray:
        log_spread, log_sigma = points.T
        spread, sigma = np.exp(log_spread), np.exp(log_sigma)
        variance = spread**2 + sigma**2 / each
        total = 0.01 + groups / variance
        centre = means.sum() / variance / total
        value = normal(means, centre[:, None], variance[:, None]).sum(axis=1)
        value += normal(centre, 0.0, 100.0) - 0.5 * np.log(total)
        value -= groups * (each - 1) * log_sigma + within / (2 * sigma**2)
        law = stats.halfcauchy if cauchy else stats.halfnorm
        value += law.logpdf(spread, scale=scale) + log_spread
        return value + stats.halfnorm.logpdf(sigma, scale=5.0) + log_sigma

    points, weights = quadrature(log_density, [(-25, 12), (-4, 4)], (200, 400))
    spread_at, sigma_at = np.exp(_picked(random, points, weights)).T
    variance = spread_at**2 + sigma_at**2 / each
    total = 0.01 + groups / variance
    mean = means.sum() / variance / total + random.normal(size=DRAWS) / np.sqrt(total)
    share = (spread_at**2 / variance)[:, None]
    effect = mean[:, None] + share * (means - mean[:, None])
    sd = np.sqrt(share) * sigma_at[:, None] / np.sqrt(each)
    effect += sd * random.normal(size=effect.shape)
    sites = {"mean": mean, "spread": spread_at, "sigma": sigma_at, "effect": effect}
    strength = {"groups": groups, "each": each, "spread": spread, "cauchy": cauchy}
    heavy = ("spread",) if cauchy and groups <= 3 else ()
    return Case(strength, model, tensors(y=y), sites, heavy=heavy)


@family
def group_shares(random: Random) -> Case:
    """Few trials in few groups, whose logits have a common mean and spread."""
    groups, trials = int(random.integers(2, 7)), int(random.integers(1, 15))
    spread = float(random.choice([0.0, 0.5, 2.0]))
    chance = special.expit(1.5 * random.normal() + spread * random.normal(size=groups))
    y = random.binomial(trials, chance)

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        spread = pyro.sample("spread", dist.HalfNormal(2.0))
        with pyro.plate("groups", groups):
            logit = pyro.sample("logit", dist.Normal(mean, spread))
            pyro.sample("y", dist.Binomial(trials, logits=logit), obs=y)

    z = np.linspace(-8, 8, 161)  # of the standardised logits

    def each_group(points: np.ndarray) -> np.ndarray:
        """The log density of each group's data and z, (groups, points, z)."""
        mean, log_spread = points.T[..., None]
        logit = mean + np.exp(log_spread) * z
        yes, no = special.log_expit(logit), special.log_expit(-logit)
        counts = y[:, None, None]
        return normal(z, 0.0, 1.0) + counts * yes + (trials - counts) * no

    def log_density(points: np.ndarray) -> np.ndarray:
        value = normal(points[:, 0], 0.0, 4.0) - 0.125 * np.exp(2 * points[:, 1]) + points[:, 1]
        return value + special.logsumexp(each_group(points), axis=2).sum(axis=0)

    points, weights = quadrature(log_density, [(-14, 14), (-25, 3)], (60, 100))
    picked = random.choice(len(points), size=DRAWS, p=weights)
    used, rows = np.unique(picked, return_inverse=True)
    drawn = [on_lines(z, along, rows, random) for along in each_group(points[used])]
    mean, spread_at = points[picked, 0], np.exp(points[picked, 1])
    logit = mean[:, None] + spread_at[:, None] * np.stack(drawn, axis=1)
    sites = {"mean": mean, "spread": spread_at, "logit": logit}
    strength = {"groups": groups, "trials": trials, "spread": spread}
    return Case(strength, model, tensors(y=y), sites)


@family
def beta_binomial(random: Random) -> Case:
    """Counts with a dispersion that may be anything: the concentration has a long tail."""
    rows, trials = int(random.integers(2, 16)), int(random.integers(2, 40))
    concentration = log_uniform(random, 0.5, 200)
    chance = random.beta(0.3 * concentration, 0.7 * concentration, size=rows)
    y = random.binomial(trials, chance)

    def model(y: Tensor) -> None:
        share = pyro.sample("share", dist.Uniform(0.0, 1.0))
        strong = pyro.sample("strong", dist.LogNormal(3.0, 2.0))
        with pyro.plate("rows", rows):
            counts = dist.BetaBinomial(share * strong, (1 - share) * strong, trials)
            pyro.sample("y", counts, obs=y)

    def log_density(points: np.ndarray) -> np.ndarray:
        share, strong = special.expit(points[:, 0]), np.exp(points[:, 1])
        # The logs of strong (strong + 1) ..., and of the same of its two parts.
        steps = np.arange(trials)
        parts = (share * strong, special.expit(-points[:, 0]) * strong, strong)
        yes, no, all_ = (
            np.pad(np.cumsum(np.log(part[:, None] + steps), axis=1), ((0, 0), (1, 0)))
            for part in parts
        )
        value = normal(points[:, 1], 3.0, 4.0)
        value += special.log_expit(points[:, 0]) + special.log_expit(-points[:, 0])
        return value + (yes[:, y] + no[:, trials - y]).sum(axis=1) - rows * all_[:, -1]

    points, weights = quadrature(log_density, [(-30, 30), (-13, 19)], (200, 300))
    sites = {"share": special.expit(points[:, 0]), "strong": np.exp(points[:, 1])}
    strength = {"rows": rows, "trials": trials, "concentration": concentration}
    return Case(strength, model, tensors(y=y), sites, weights)


# --- closed forms, edges and jumps


@family
def normal_gamma(random: Random) -> Case:
    """Mean and precision of a few readings, with the conjugate prior."""
    rows, shape, rate = int(random.integers(1, 12)), *random.uniform(0.3, 5, size=2)
    few = log_uniform(random, 0.01, 2)
    y = random.normal() * 3 + log_uniform(random, 0.1, 10) * random.normal(size=rows)

    def model(y: Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(shape, rate))
        mean = pyro.sample("mean", dist.Normal(0.0, (few * precision).rsqrt()))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)

    above = shape + rows / 2
    below = rate + 0.5 * ((y - y.mean()) ** 2).sum()
    below += 0.5 * few * rows * y.mean() ** 2 / (few + rows)
    precision = random.gamma(above, 1 / below, size=DRAWS)
    sd = 1 / np.sqrt((few + rows) * precision)
    mean = rows * y.mean() / (few + rows) + sd * random.normal(size=DRAWS)
    heavy = ("mean",) if 2 * above <= 4 else ()
    strength = {"rows": rows, "shape": shape, "rate": rate, "few": few}
    sites = {"precision": precision, "mean": mean}
    return Case(strength, model, tensors(y=y), sites, heavy=heavy)


@family
def plateau(random: Random) -> Case:
    """Flat within an ellipsoid, with steep sides, in 1 to 6 dimensions."""
    dimension, power = int(random.integers(1, 7)), log_uniform(random, 2.5, 12)
    scales, turn = np.exp(random.normal(size=dimension)), rotation(random, dimension)

    def model(turn: Tensor, scales: Tensor) -> None:
        z = flat(dimension) @ turn / scales
        pyro.factor("density", -((z.square().sum() + 1e-12) ** (power / 2)))

    direction = random.normal(size=(DRAWS, dimension))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    z = random.gamma(dimension / power, size=(DRAWS, 1)) ** (1 / power) * direction
    strength = {"dimension": dimension, "power": power}
    return Case(strength, model, tensors(turn=turn, scales=scales), {"x": (z * scales) @ turn.T})


@family
def broken_stick(random: Random) -> Case:
    """Two shares that sum to less than one, by a fraction of what the first one leaves."""
    noise, y = log_uniform(random, 0.03, 0.5), random.uniform(-0.2, 1.2)
    slope = random.uniform(-1, 2)

    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        part = pyro.sample("part", dist.Uniform(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + slope * part * (1 - a), noise), obs=y)

    def log_density(points: np.ndarray) -> np.ndarray:
        a, part = points.T
        return normal(y, a + slope * part * (1 - a), noise**2)

    points, weights = quadrature(log_density, [(0, 1)] * 2, (600, 800))
    sites = {"a": points[:, 0], "part": points[:, 1]}
    return Case({"noise": noise, "slope": slope, "y": y}, model, tensors(y=y), sites, weights)


@family
def change_point(random: Random) -> Case:
    """The time of a jump, along which the density is a staircase without a gradient."""
    rows, noise = int(random.integers(4, 20)), log_uniform(random, 0.2, 3)
    x = np.sort(random.uniform(size=rows))
    y = noise * random.normal(size=rows) + random.normal() * (x > random.uniform())

    def model(x: Tensor, y: Tensor) -> None:
        time = pyro.sample("time", dist.Uniform(0.0, 1.0))
        levels = pyro.sample("levels", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("rows", rows):
            level = torch.where(x < time, levels[0], levels[1])
            pyro.sample("y", dist.Normal(level, noise), obs=y)

    edges = np.concatenate([[0.0], x, [1.0]])
    before = np.tri(rows + 1, rows, -1)  # of each interval, the rows before it
    shares = np.stack([before, 1 - before])  # (2, intervals, rows)
    total = 0.25 + shares.sum(axis=2) / noise**2
    mean = shares @ y / noise**2 / total
    evidence = (0.5 * mean**2 * total - 0.5 * np.log(total)).sum(axis=0)
    chance = np.exp(evidence - evidence.max()) * np.diff(edges)
    at = random.choice(rows + 1, size=DRAWS, p=chance / chance.sum())
    time = edges[at] + random.uniform(size=DRAWS) * np.diff(edges)[at]
    levels = (mean[:, at] + random.normal(size=(2, DRAWS)) / np.sqrt(total[:, at])).T
    strength = {"rows": rows, "noise": noise}
    return Case(strength, model, tensors(x=x, y=y), {"time": time, "levels": levels})
