"""The families of `trust.py`: each makes a posterior of its kind at random, with its truth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special, stats
from torch import Tensor

from benchmarks.trust_truths import (
    DRAWS,
    Case,
    Sites,
    log_uniform,
    normal,
    on_line,
    quadrature,
    rotation,
    scalars,
)

Random = np.random.Generator
FAMILIES: dict[str, Callable[[Random], Case]] = {}


def family(make: Callable[[Random], Case]) -> Callable[[Random], Case]:
    FAMILIES[make.__name__] = make
    return make


def tensors(**arrays: Any) -> dict[str, Tensor]:
    return {name: torch.tensor(np.asarray(value, dtype=float)) for name, value in arrays.items()}


def flat(dimension: int) -> Tensor:
    """A site of that many numbers, without a prior."""
    return pyro.sample("x", dist.Normal(torch.zeros(dimension), 1.0).mask(False).to_event(1))


# --- bent ridges


@family
def banana(random: Random) -> Case:
    """A reading of b - bend a²."""
    bend, noise, wide = (log_uniform(random, *r) for r in ((0.1, 8), (0.05, 1), (3, 20)))

    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, wide))
        pyro.sample("y", dist.Normal(b - bend * a**2, noise), obs=y)

    grid = np.linspace(-8, 8, 40_001)
    ridge = bend * grid**2
    a = on_line(grid, normal(grid, 0, 1) + normal(0, ridge, wide**2 + noise**2), random)
    b = _given_reading(bend * a**2, noise, wide, random)
    strength = {"bend": bend, "noise": noise, "wide": wide}
    return Case(strength, model, tensors(y=0.0), {"a": a, "b": b})


def _given_reading(reading: np.ndarray, noise: float, wide: float, random: Random) -> np.ndarray:
    """Draws of a Normal(0, wide) quantity, given readings of it."""
    share = wide**2 / (wide**2 + noise**2)
    return reading * share + noise * np.sqrt(share) * random.normal(size=reading.shape)


@family
def rotated_banana(random: Random) -> Case:
    """Bananas along the first coordinate, all turned, in 2 to 10 dimensions."""
    dimension, bend = int(random.integers(2, 11)), log_uniform(random, 0.1, 4)
    width = log_uniform(random, 0.1, 1)
    bends = bend * random.normal(size=dimension - 1)

    def model(turn: Tensor, bends: Tensor) -> None:
        z = flat(dimension) @ turn
        ridge = bends * (z[0] ** 2 - 1)
        pyro.factor("density", -0.5 * z[0] ** 2 - 0.5 * (((z[1:] - ridge) / width) ** 2).sum())

    turn = rotation(random, dimension)
    z = random.normal(size=(DRAWS, dimension))
    z[:, 1:] = width * z[:, 1:] + bends * (z[:, :1] ** 2 - 1)
    strength = {"dimension": dimension, "bend": bend, "width": width}
    return Case(strength, model, tensors(turn=turn, bends=bends), {"x": z @ turn.T})


@family
def sine_ridge(random: Random) -> Case:
    """A reading of b - height sin(turns a)."""
    height, turns = log_uniform(random, 0.3, 8), log_uniform(random, 0.5, 5)
    noise, wide = log_uniform(random, 0.05, 1), log_uniform(random, 3, 20)

    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, wide))
        pyro.sample("y", dist.Normal(b - height * torch.sin(turns * a), noise), obs=y)

    grid = np.linspace(-8, 8, 40_001)
    ridge = height * np.sin(turns * grid)
    a = on_line(grid, normal(grid, 0, 1) + normal(0, ridge, wide**2 + noise**2), random)
    b = _given_reading(height * np.sin(turns * a), noise, wide, random)
    strength = {"height": height, "turns": turns, "noise": noise, "wide": wide}
    return Case(strength, model, tensors(y=0.0), {"a": a, "b": b})


@family
def twist(random: Random) -> Case:
    """A long Normal in two dimensions, turned by an angle that grows with the distance."""
    long, angle = log_uniform(random, 2, 15), log_uniform(random, 0.1, 4)

    def model(rate: Tensor) -> None:
        x = flat(2)
        turn = -rate * x.square().sum().clamp(min=1e-12).sqrt()
        first = torch.cos(turn) * x[0] - torch.sin(turn) * x[1]
        second = torch.sin(turn) * x[0] + torch.cos(turn) * x[1]
        pyro.factor("density", -0.5 * (first / long) ** 2 - 0.5 * second**2)

    z = random.normal(size=(DRAWS, 2)) * [long, 1.0]
    turn = angle / long * np.hypot(*z.T)
    x = np.stack(
        [
            np.cos(turn) * z[:, 0] - np.sin(turn) * z[:, 1],
            np.sin(turn) * z[:, 0] + np.cos(turn) * z[:, 1],
        ],
        axis=1,
    )
    return Case({"long": long, "angle": angle}, model, tensors(rate=angle / long), {"x": x})


def _ring(random: Random, centre: float, wide: float, radius: float, noise: float) -> Case:
    away = centre * rotation(random, 2)[0]

    def model(y: Tensor, away: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(away, wide).to_event(1))
        pyro.sample("y", dist.Normal(x.square().sum().clamp(min=1e-12).sqrt(), noise), obs=y)

    r = np.linspace(max(1e-6, radius - 10 * noise), radius + 10 * noise, 40_001)
    pull = r * centre / wide**2
    along = np.log(r) - r**2 / (2 * wide**2) + np.log(special.ive(0, pull)) + pull
    r = on_line(r, along + normal(radius, r, noise**2), random)
    angle = random.vonmises(0.0, r * centre / wide**2) + np.arctan2(*away[::-1])
    x = r[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    strength = {"centre": centre, "wide": wide, "radius": radius, "noise": noise}
    return Case(strength, model, tensors(y=radius, away=away), {"x": x})


@family
def ring(random: Random) -> Case:
    """The distance from the origin was read; the prior pulls a little to one side."""
    radius, wide = log_uniform(random, 1, 20), 10.0
    pull = random.choice([0.0, random.uniform(0, 1.5)])  # of the von Mises distribution
    noise = radius * log_uniform(random, 0.01, 0.3)
    return _ring(random, pull * wide**2 / radius, wide, radius, noise)


@family
def crescent(random: Random) -> Case:
    """The same with a prior that leaves a part of the ring."""
    radius, wide = log_uniform(random, 1, 20), 10.0
    noise = radius * log_uniform(random, 0.01, 0.3)
    return _ring(random, log_uniform(random, 1.5, 30) * wide**2 / radius, wide, radius, noise)


@family
def shell(random: Random) -> Case:
    """The distance from the origin was read, in 3 to 10 dimensions."""
    dimension, wide = int(random.integers(3, 11)), 10.0
    radius = log_uniform(random, 1, 40)
    noise = radius * log_uniform(random, 0.01, 0.3)

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(dimension), wide).to_event(1))
        pyro.sample("y", dist.Normal(x.square().sum().clamp(min=1e-12).sqrt(), noise), obs=y)

    r = np.linspace(max(1e-6, radius - 12 * noise), radius + 12 * noise, 40_001)
    along = (dimension - 1) * np.log(r) - r**2 / (2 * wide**2) + normal(radius, r, noise**2)
    r = on_line(r, along, random)
    direction = random.normal(size=(DRAWS, dimension))
    x = r[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    strength = {"dimension": dimension, "radius": radius, "noise": noise}
    return Case(strength, model, tensors(y=radius), {"x": x})


@family
def product(random: Random) -> Case:
    """A reading of a b: a cross or a hyperbola."""
    wide, noise = log_uniform(random, 0.5, 5), log_uniform(random, 0.05, 1)
    y = float(random.choice([0.0, random.normal() * wide**2]))

    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, wide))
        b = pyro.sample("b", dist.Normal(0.0, wide))
        pyro.sample("y", dist.Normal(a * b, noise), obs=y)

    # Where the noise is small, b given a is wide near a = 0 alone: an odd grid is finest there.
    grid = 8 * wide * np.linspace(-1, 1, 80_001) ** 3
    variance = (grid * wide) ** 2 + noise**2
    a = on_line(grid, normal(grid, 0, wide**2) + normal(y, 0, variance), random)
    precision = 1 / wide**2 + (a / noise) ** 2
    b = a * y / noise**2 / precision + random.normal(size=DRAWS) / np.sqrt(precision)
    strength = {"wide": wide, "noise": noise, "y": y}
    return Case(strength, model, tensors(y=y), {"a": a, "b": b})


# --- funnels and scales


@family
def funnel(random: Random) -> Case:
    """Neal's funnel as a user writes it, with a noisy reading of each effect."""
    count, deep = int(random.integers(1, 13)), log_uniform(random, 0.5, 4)
    noise = log_uniform(random, 0.1, 10)
    v = deep * random.normal()
    y = np.exp(v / 2) * random.normal(size=count) + noise * random.normal(size=count)

    def model(y: Tensor) -> None:
        v = pyro.sample("v", dist.Normal(0.0, deep))
        with pyro.plate("groups", count):
            x = pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))
            pyro.sample("y", dist.Normal(x, noise), obs=y)

    grid = np.linspace(-10 * deep, 10 * deep, 40_001)
    each = normal(y, 0.0, np.exp(grid)[:, None] + noise**2)
    drawn = on_line(grid, normal(grid, 0, deep**2) + each.sum(axis=1), random)[:, None]
    share = np.exp(drawn) / (np.exp(drawn) + noise**2)
    x = share * y + noise * np.sqrt(share) * random.normal(size=(DRAWS, count))
    strength = {"groups": count, "deep": deep, "noise": noise}
    return Case(strength, model, tensors(y=y), {"v": drawn[:, 0], "x": x})


@family
def rotated_funnel(random: Random) -> Case:
    """Neal's funnel without data, turned, in 2 to 10 dimensions."""
    dimension, deep = int(random.integers(2, 11)), log_uniform(random, 0.3, 3)

    def model(turn: Tensor) -> None:
        z = flat(dimension) @ turn
        v, effects = z[0], z[1:]
        spread = 0.5 * effects.square().sum() * torch.exp(-v) + 0.5 * (dimension - 1) * v
        pyro.factor("density", -0.5 * (v / deep) ** 2 - spread)

    turn = rotation(random, dimension)
    z = random.normal(size=(DRAWS, dimension))
    z[:, 0] *= deep
    z[:, 1:] *= np.exp(z[:, :1] / 2)
    return Case(
        {"dimension": dimension, "deep": deep}, model, tensors(turn=turn), {"x": z @ turn.T}
    )


@family
def hierarchy(random: Random) -> Case:
    """Groups with known standard errors, the effects centred: eight schools at random."""
    count, scale = int(random.integers(2, 16)), log_uniform(random, 0.5, 10)
    cauchy = bool(random.integers(2))
    sigma = scale * np.exp(0.3 * random.normal(size=count))
    tau = scale * random.choice([0.0, 0.3, 1.0, 3.0])
    y = random.normal() + tau * random.normal(size=count) + sigma * random.normal(size=count)
    wide = 5.0

    def model(y: Tensor, sigma: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, wide))
        prior = dist.HalfCauchy(wide) if cauchy else dist.HalfNormal(wide)
        spread = pyro.sample("spread", prior)
        with pyro.plate("groups", count):
            theta = pyro.sample("theta", dist.Normal(mean, spread))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    grid = np.linspace(-25, 15, 80_001)  # log spread
    spread = np.exp(grid)[:, None]
    prior = (
        stats.halfcauchy.logpdf(spread, scale=wide)
        if cauchy
        else stats.halfnorm.logpdf(spread, scale=wide)
    )
    precision = 1 / (spread**2 + sigma**2)
    total = 1 / wide**2 + precision.sum(axis=1)
    centre = (precision * y).sum(axis=1) / total
    # log N(y; mean, ...) N(mean; 0, wide) / N(mean; centre, 1 / total) at mean = centre
    evidence = (
        normal(y, centre[:, None], 1 / precision).sum(axis=1)
        + normal(centre, 0, wide**2)
        + 0.5 * np.log(2 * np.pi / total)
    )
    log_spread = on_line(grid, prior[:, 0] + grid + evidence, random)
    spread = np.exp(log_spread)[:, None]
    precision = 1 / (spread**2 + sigma**2)
    total = 1 / wide**2 + precision.sum(axis=1)
    mean = (precision * y).sum(axis=1) / total + random.normal(size=DRAWS) / np.sqrt(total)
    share = spread**2 / (spread**2 + sigma**2)
    theta = mean[:, None] + share * (y - mean[:, None])
    theta += sigma * np.sqrt(share) * random.normal(size=(DRAWS, count))
    strength = {"groups": count, "errors": scale, "spread": tau, "cauchy": cauchy}
    heavy = ("spread",) if cauchy and count <= 3 else ()
    sites = {"mean": mean, "spread": spread[:, 0], "theta": theta}
    return Case(strength, model, tensors(y=y, sigma=sigma), sites, heavy=heavy)


# --- several modes


def _mixture(random: Random, weights: np.ndarray, means: np.ndarray, sds: np.ndarray) -> np.ndarray:
    """Exact draws of a mixture of spherical Normals; means (K, D), sds (K,)."""
    which = random.choice(len(weights), size=DRAWS, p=weights)
    return means[which] + sds[which, None] * random.normal(size=(DRAWS, means.shape[1]))


@family
def unequal_mixture(random: Random) -> Case:
    """Two Normals of unequal weight and width, in 2 to 30 dimensions."""
    dimension = int(np.round(log_uniform(random, 2, 30)))
    share, ratio = random.uniform(0.1, 0.9), log_uniform(random, 0.3, 1)
    apart = random.uniform(1, 12)
    sds, weights = np.array([1.0, ratio]), np.array([share, 1 - share])
    means = np.stack([np.zeros(dimension), apart * rotation(random, dimension)[0]])
    summed = bool(random.integers(2))
    y, noise = means.mean(axis=0), apart * log_uniform(random, 0.5, 5)

    def model(y: Tensor, means: Tensor, sds: Tensor, weights: Tensor) -> None:
        kinds = dist.Categorical(weights)
        if summed:  # a discrete latent, which is summed out, and a reading
            kind = pyro.sample("kind", kinds)
            x = pyro.sample("x", dist.Normal(means[kind], sds[kind].unsqueeze(-1)).to_event(1))
            pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)
        else:
            parts = dist.Normal(means, sds[:, None]).to_event(1)
            mixture = dist.MixtureSameFamily(kinds, parts)
            pyro.factor("density", mixture.log_prob(flat(dimension)))

    data = tensors(y=y, means=means, sds=sds, weights=weights)
    if summed:
        evidence = normal(y, means, sds[:, None] ** 2 + noise**2).sum(axis=1)
        weights = weights * np.exp(evidence - evidence.max())
        weights /= weights.sum()
        kept = noise**2 / (noise**2 + sds**2)
        means, sds = kept[:, None] * means + (1 - kept[:, None]) * y, sds * np.sqrt(kept)
    x = _mixture(random, weights, means, sds)
    strength = {
        "dimension": dimension, "share": float(weights[0]), "ratio": ratio, "apart": apart,
        "summed": summed,
    }  # fmt: skip
    return Case(strength, model, data, {"x": x})


def _shifted(
    random: Random, dimension: int, shift: float, sds: tuple[float, float], share: float
) -> Case:
    """A reading y = 0 of x ~ Normal(0, 10), or, with another noise, of x + shift.

    The probability of the second kind of reading gives its mode that share of the mass.
    """
    wide, shifts, variances = 10.0, np.array([0.0, shift]), np.array(sds) ** 2
    evidence = dimension * normal(0.0, shifts, wide**2 + variances)
    odds = share / (1 - share) * np.exp(evidence[0] - evidence[1])
    probability = odds / (1 + odds)

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(dimension), wide).to_event(1))
        readings = dist.Normal(torch.stack([x, x + shift]), torch.tensor(sds)[:, None]).to_event(1)
        kinds = dist.Categorical(torch.tensor([1 - probability, probability]))
        pyro.sample("y", dist.MixtureSameFamily(kinds, readings), obs=y)

    kept = wide**2 / (wide**2 + variances)
    means = np.outer(-shifts * kept, np.ones(dimension))
    x = _mixture(random, np.array([1 - share, share]), means, np.sqrt(variances * kept))
    strength = {"dimension": dimension, "shift": shift, "share": share, "ratio": sds[1] / sds[0]}
    return Case(strength, model, tensors(y=np.zeros(dimension)), {"x": x})


@family
def two_modes(random: Random) -> Case:
    """A reading that may be shifted in all coordinates."""
    dimension = int(random.integers(1, 6))
    return _shifted(random, dimension, random.uniform(4, 18), (1.0, 1.0), random.uniform(0.2, 0.8))


@family
def needle(random: Random) -> Case:
    """A narrow mode beside or inside a broad one."""
    dimension, ratio = int(random.integers(1, 7)), log_uniform(random, 3, 60)
    broad = log_uniform(random, 0.5, 4)
    shift = broad * float(random.choice([0.0, random.uniform(1, 8)]))
    return _shifted(random, dimension, shift, (broad, broad / ratio), random.uniform(0.2, 0.8))


@family
def mirror(random: Random) -> Case:
    """Readings of squares: 2^D modes, of one height or not."""
    dimension, noise = int(random.integers(1, 4)), log_uniform(random, 0.1, 2)
    centre = float(random.choice([0.0, random.normal()]))
    y = random.uniform(-1, 6, size=dimension)

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.full((dimension,), centre), 2.0).to_event(1))
        with pyro.plate("rows", dimension):
            pyro.sample("y", dist.Normal(x**2, noise), obs=y)

    grid = np.linspace(-20, 20, 80_001)
    prior = normal(grid, centre, 4.0)
    x = [on_line(grid, prior + normal(each, grid**2, noise**2), random) for each in y]
    strength = {"dimension": dimension, "noise": noise, "centre": centre}
    return Case(strength, model, tensors(y=y), {"x": np.stack(x, axis=1)})


@family
def periodic(random: Random) -> Case:
    """Readings of sines: equal modes in a row."""
    dimension, rate = int(random.integers(1, 4)), log_uniform(random, 0.5, 6)
    wide, noise = log_uniform(random, 1, 5), log_uniform(random, 0.1, 1)
    y = random.uniform(-1, 1, size=dimension)

    def model(y: Tensor) -> None:
        with pyro.plate("rows", dimension):
            x = pyro.sample("x", dist.Normal(0.0, wide))
            pyro.sample("y", dist.Normal(torch.sin(rate * x), noise), obs=y)

    grid = np.linspace(-9 * wide, 9 * wide, 80_001)
    prior = normal(grid, 0.0, wide**2)
    x = [on_line(grid, prior + normal(each, np.sin(rate * grid), noise**2), random) for each in y]
    strength = {"dimension": dimension, "rate": rate, "wide": wide, "noise": noise}
    return Case(strength, model, tensors(y=y), {"x": np.stack(x, axis=1)})


@family
def location_mixture(random: Random) -> Case:
    """Two means of a mixture; with equal weights their labels mean nothing, and they are sorted."""
    count, wide = int(random.integers(4, 40)), log_uniform(random, 2, 10)
    apart, share = random.uniform(0, 5), float(random.choice([0.5, random.uniform(0.25, 0.45)]))
    y = random.normal(size=count) + apart * (random.uniform(size=count) > share)

    def model(y: Tensor) -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(2), wide).to_event(1))
        kinds = dist.Categorical(torch.tensor([share, 1 - share]))
        with pyro.plate("rows", count):
            pyro.sample("y", dist.MixtureSameFamily(kinds, dist.Normal(means, 1.0)), obs=y)

    def log_density(points: np.ndarray) -> np.ndarray:
        total = normal(points, 0.0, wide**2).sum(axis=1)
        for each in y:
            both = normal(each, points, 1.0) + np.log([share, 1 - share])
            total += np.logaddexp(both[:, 0], both[:, 1])
        return total

    points, weights = quadrature(log_density, [(-8 * wide, 8 * wide)] * 2, (400, 600))
    strength = {"rows": count, "wide": wide, "apart": apart, "share": share}
    named = _sorted if share == 0.5 else scalars
    return Case(strength, model, tensors(y=y), {"means": points}, weights, named=named)


def _sorted(sites: Sites) -> Sites:
    return scalars({name: np.sort(values, axis=1) for name, values in sites.items()})


# --- tails


@family
def student(random: Random) -> Case:
    """A multivariate t in 1 to 6 dimensions, stretched and turned."""
    dimension, df = int(random.integers(1, 7)), random.uniform(1, 10)
    scales = np.exp(random.normal(size=dimension))
    turn = rotation(random, dimension)

    def model(turn: Tensor, scales: Tensor) -> None:
        z = flat(dimension) @ turn / scales
        pyro.factor("density", -0.5 * (df + dimension) * torch.log1p(z.square().sum() / df))

    z = random.normal(size=(DRAWS, dimension)) / np.sqrt(random.chisquare(df, (DRAWS, 1)) / df)
    x = (z * scales) @ turn.T
    heavy = ("x",) if df <= 4 else ()
    strength = {"dimension": dimension, "df": df}
    return Case(strength, model, tensors(turn=turn, scales=scales), {"x": x}, heavy=heavy)


@family
def conflict(random: Random) -> Case:
    """The centre of a few readings with t noise that contradict each other."""
    count, df = int(random.integers(2, 7)), random.uniform(1, 4)
    y = random.normal(size=count) + random.uniform(0, 15) * (random.uniform(size=count) > 0.5)

    def model(y: Tensor) -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 50.0))
        with pyro.plate("rows", count):
            pyro.sample("y", dist.StudentT(df, centre, 1.0), obs=y)

    grid = np.linspace(-400, 400, 400_001)
    total = normal(grid, 0.0, 2500.0) + sum(stats.t.logpdf(each - grid, df) for each in y)
    centre = on_line(grid, total, random)
    strength = {"rows": count, "df": df, "range": float(np.ptp(y))}
    return Case(strength, model, tensors(y=y), {"centre": centre})


@family
def few_readings(random: Random) -> Case:
    """Mean and sd of 2 to 6 readings."""
    count, wide = int(random.integers(2, 7)), 100.0
    y = log_uniform(random, 0.1, 10) * random.normal(size=count) + 5 * random.normal()

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, wide))
        sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
        with pyro.plate("rows", count):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    grid = np.linspace(-12, 15, 80_001)  # log sigma
    variance = np.exp(2 * grid)
    total = 1 / wide**2 + count / variance
    centre = y.sum() / variance / total
    each = normal(y, centre[:, None], variance[:, None]).sum(axis=1)
    evidence = each + normal(centre, 0.0, wide**2) + 0.5 * np.log(2 * np.pi / total)
    prior = stats.halfcauchy.logpdf(np.exp(grid), scale=5.0) + grid
    sigma = np.exp(on_line(grid, prior + evidence, random))
    total = 1 / wide**2 + count / sigma**2
    mean = y.sum() / sigma**2 / total + random.normal(size=DRAWS) / np.sqrt(total)
    heavy = ("sigma",) if count <= 3 else ()
    strength = {"rows": count, "range": float(np.ptp(y))}
    return Case(strength, model, tensors(y=y), {"mean": mean, "sigma": sigma}, heavy=heavy)


# --- plain ones, for false alarms


@family
def straight_ridge(random: Random) -> Case:
    """A linear regression with predictors that are nearly one, in 2 to 20 dimensions."""
    dimension, noise = int(random.integers(2, 21)), log_uniform(random, 0.01, 1)
    rows, alike = int(random.integers(1, 40)), log_uniform(random, 1e-3, 1)
    x = random.normal(size=(rows, 1)) + alike * random.normal(size=(rows, dimension))
    y = x @ random.normal(size=dimension) + noise * random.normal(size=rows)

    def model(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(dimension), 3.0).to_event(1))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)

    precision = np.eye(dimension) / 9 + x.T @ x / noise**2
    root = np.linalg.cholesky(precision)
    mean = np.linalg.solve(precision, x.T @ y / noise**2)
    slopes = mean + np.linalg.solve(root.T, random.normal(size=(dimension, DRAWS))).T
    strength = {"dimension": dimension, "noise": noise, "rows": rows, "alike": alike}
    return Case(strength, model, tensors(x=x, y=y), {"slopes": slopes})


# --- edges


@family
def boundary(random: Random) -> Case:
    """Positive quantities, or shares of an interval, whose readings lie beyond the edge."""
    dimension, noise = int(random.integers(1, 9)), log_uniform(random, 0.05, 1)
    beyond = noise * random.uniform(-1, 6, size=dimension)
    uniform = bool(random.integers(2))

    def model(y: Tensor) -> None:
        prior = dist.Uniform(0.0, 1.0) if uniform else dist.HalfNormal(1.0)
        with pyro.plate("rows", dimension):
            x = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(x, noise), obs=y)

    mean, sd = -beyond, np.full(dimension, noise)
    if not uniform:
        mean, sd = mean / (1 + noise**2), sd / np.sqrt(1 + noise**2)
    upper = np.full(dimension, (1.0 if uniform else np.inf))
    x = stats.truncnorm.rvs(
        -mean / sd, (upper - mean) / sd, loc=mean, scale=sd, size=(DRAWS, dimension),
        random_state=random,
    )  # fmt: skip
    strength = {"dimension": dimension, "noise": noise, "beyond": float(np.max(beyond) / noise)}
    return Case({**strength, "uniform": uniform}, model, tensors(y=-beyond), {"x": x})


@family
def sparse_shares(random: Random) -> Case:
    """Shares with a sparse Dirichlet prior, of few counts."""
    count, prior = int(random.integers(2, 9)), log_uniform(random, 0.05, 2)
    counts = random.multinomial(int(random.integers(1, 12)), random.dirichlet(np.ones(count)))

    def model(counts: Tensor) -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.full((count,), prior)))
        total = int(counts.sum())
        pyro.sample("counts", dist.Multinomial(total, shares), obs=counts)

    shares = random.dirichlet(prior + counts, size=DRAWS)
    strength = {"shares": count, "prior": prior, "counts": int(counts.sum())}
    return Case(strength, model, tensors(counts=counts), {"shares": shares})
