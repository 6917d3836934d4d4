"""The posteriors of `hierarchies.py`: hierarchies and time series of 50 to 3,000 dimensions.

Each is a model as users write it, centred unless said otherwise, with data simulated from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special
from torch import Tensor

Random = np.random.Generator
POSTERIORS: dict[str, Callable[[Random], "Posterior"]] = {}


@dataclass(frozen=True)
class Posterior:
    """A model with its data."""

    model: Callable[..., Any]
    data: dict[str, Tensor]


def posterior(make: Callable[[Random], Posterior]) -> Callable[[Random], Posterior]:
    POSTERIORS[make.__name__] = make
    return make


def simulated(model: Callable[..., Any], **arrays: Any) -> Posterior:
    data = {}
    for name, value in arrays.items():
        value = np.asarray(value)
        whole = value.dtype.kind in "iu" and name in INDICES
        data[name] = torch.tensor(value if whole else value.astype(float))
    return Posterior(model, data)


INDICES = ("group", "row", "column", "player", "other", "person", "item", "region", "school")


# --- groups


def _slopes(groups: int, readings: int) -> Callable[[Random], Posterior]:
    """An intercept and a slope of each group, correlated."""

    def make(random: Random) -> Posterior:
        group = np.repeat(np.arange(groups), readings)
        x = random.normal(size=groups * readings)
        own = random.multivariate_normal([1.0, -0.5], [[0.6, 0.2], [0.2, 0.3]], size=groups)
        y = own[group, 0] + own[group, 1] * x + 0.8 * random.normal(size=len(x))

        def model(x: Tensor, group: Tensor, y: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 2.0).to_event(1))
            sd = pyro.sample("sd", dist.HalfNormal(torch.ones(2)).to_event(1))
            factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
            sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
            with pyro.plate("groups", groups):
                own = pyro.sample(
                    "own", dist.MultivariateNormal(mean, scale_tril=sd[:, None] * factor)
                )
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(own[group, 0] + own[group, 1] * x, sigma), obs=y)

        return simulated(model, x=x, group=group, y=y)

    return make


@posterior
def slopes_300(random: Random) -> Posterior:
    """An intercept and a slope of each of 300 groups, correlated; four readings a group."""
    return _slopes(300, 4)(random)


@posterior
def slopes_1490(random: Random) -> Posterior:
    """The same of 1,490 groups: 2,987 dimensions."""
    return _slopes(1490, 3)(random)


@posterior
def logistic_slopes(random: Random) -> Posterior:
    """An intercept and a slope of each of 200 groups, in a logistic regression."""
    groups, readings = 200, 10
    group = np.repeat(np.arange(groups), readings)
    x = random.normal(size=groups * readings)
    level, slope = random.normal(size=groups), 0.5 + 0.7 * random.normal(size=groups)
    y = random.uniform(size=len(x)) < special.expit(level[group] + slope[group] * x)

    def model(x: Tensor, group: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        sd = pyro.sample("sd", dist.HalfNormal(torch.ones(2)).to_event(1))
        with pyro.plate("groups", groups):
            level = pyro.sample("level", dist.Normal(mean[0], sd[0]))
            slope = pyro.sample("slope", dist.Normal(mean[1], sd[1]))
        with pyro.plate("rows", len(y)):
            logits = level[group] + slope[group] * x
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return simulated(model, x=x, group=group, y=y)


@posterior
def few_readings(random: Random) -> Posterior:
    """120 group means with two readings each and little between them: a funnel where centred."""
    groups = 120
    group = np.repeat(np.arange(groups), 2)
    y = 0.3 * random.normal(size=groups)[group] + random.normal(size=len(group))

    def model(group: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("groups", groups):
            level = pyro.sample("level", dist.Normal(mean, spread))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(level[group], sigma), obs=y)

    return simulated(model, group=group, y=y)


@posterior
def uneven_groups(random: Random) -> Posterior:
    """85 groups of 1 to 100 readings, with a predictor of the group and one of the row."""
    groups = 85
    sizes = np.clip(random.lognormal(1.6, 1.2, size=groups).astype(int), 1, 100)
    group = np.repeat(np.arange(groups), sizes)
    floor, soil = random.uniform(size=len(group)) < 0.2, random.normal(size=groups)
    level = 1.4 + 0.7 * soil + 0.3 * random.normal(size=groups)
    y = level[group] - 0.6 * floor + 0.7 * random.normal(size=len(group))

    def model(floor: Tensor, soil: Tensor, group: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("groups", groups):
            level = pyro.sample("level", dist.Normal(beta[0] + beta[1] * soil, spread))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(level[group] + beta[2] * floor, sigma), obs=y)

    return simulated(model, floor=floor, soil=soil, group=group, y=y)


@posterior
def nested(random: Random) -> Posterior:
    """Readings in 150 schools in 25 regions."""
    regions, schools = 25, 150
    region = random.integers(regions, size=schools)
    school = np.repeat(np.arange(schools), 6)
    level = 0.8 * random.normal(size=regions)[region] + 0.5 * random.normal(size=schools)
    y = level[school] + random.normal(size=len(school))

    def model(region: Tensor, school: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        between = pyro.sample("between", dist.HalfNormal(1.0))
        within = pyro.sample("within", dist.HalfNormal(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("regions", regions):
            of_region = pyro.sample("of_region", dist.Normal(mean, between))
        with pyro.plate("schools", schools):
            of_school = pyro.sample("of_school", dist.Normal(of_region[region], within))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(of_school[school], sigma), obs=y)

    return simulated(model, region=region, school=school, y=y)


@posterior
def crossed(random: Random) -> Posterior:
    """Effects of 50 rows and 50 columns of a table of which a third was observed."""
    row, column = np.divmod(random.choice(2500, size=800, replace=False), 50)
    level = 0.7 * random.normal(size=50)[row] + 0.4 * random.normal(size=50)[column]
    y = 2.0 + level + random.normal(size=len(row))

    def model(row: Tensor, column: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        sd_row = pyro.sample("sd_row", dist.HalfNormal(1.0))
        sd_column = pyro.sample("sd_column", dist.HalfNormal(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("rows", 50):
            a = pyro.sample("a", dist.Normal(0.0, sd_row))
        with pyro.plate("columns", 50):
            b = pyro.sample("b", dist.Normal(0.0, sd_column))
        with pyro.plate("readings", len(y)):
            pyro.sample("y", dist.Normal(mean + a[row] + b[column], sigma), obs=y)

    return simulated(model, row=row, column=column, y=y)


@posterior
def crossed_logistic(random: Random) -> Posterior:
    """The same with a response of yes or no, in every cell."""
    row, column = np.divmod(np.arange(2500), 50)
    level = 0.8 * random.normal(size=50)[row] + 0.5 * random.normal(size=50)[column]
    y = random.uniform(size=len(row)) < special.expit(level - 0.5)

    def model(row: Tensor, column: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        sd_row = pyro.sample("sd_row", dist.HalfNormal(1.0))
        sd_column = pyro.sample("sd_column", dist.HalfNormal(1.0))
        with pyro.plate("rows", 50):
            a = pyro.sample("a", dist.Normal(0.0, sd_row))
        with pyro.plate("columns", 50):
            b = pyro.sample("b", dist.Normal(0.0, sd_column))
        with pyro.plate("readings", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=mean + a[row] + b[column]), obs=y)

    return simulated(model, row=row, column=column, y=y)


@posterior
def counts(random: Random) -> Posterior:
    """Counts with an effect of each of 300 rows: a Poisson regression with overdispersion."""
    x = random.normal(size=300)
    y = random.poisson(np.exp(0.5 + 0.6 * x + 0.7 * random.normal(size=300)))

    def model(x: Tensor, y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(y)):
            effect = pyro.sample("effect", dist.Normal(0.0, spread))
            pyro.sample("y", dist.Poisson(torch.exp(level + slope * x + effect)), obs=y)

    return simulated(model, x=x, y=y)


@posterior
def negative_binomial_groups(random: Random) -> Posterior:
    """Negative binomial counts in 100 groups."""
    group = np.repeat(np.arange(100), 5)
    rate = np.exp(1.0 + 0.5 * random.normal(size=100))[group]
    y = random.poisson(rate * random.gamma(3.0, 1 / 3.0, size=len(group)))

    def model(group: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        shape = pyro.sample("shape", dist.Gamma(2.0, 0.5))
        with pyro.plate("groups", 100):
            level = pyro.sample("level", dist.Normal(mean, spread))
        with pyro.plate("rows", len(y)):
            logits = level[group] - torch.log(shape)
            pyro.sample("y", dist.NegativeBinomial(shape, logits=logits), obs=y)

    return simulated(model, group=group, y=y)


@posterior
def frailty(random: Random) -> Posterior:
    """Weibull times with censoring, and a frailty of each of 60 groups."""
    groups = 60
    group = np.repeat(np.arange(groups), 8)
    x = random.normal(size=len(group))
    scale = np.exp(1.0 + 0.4 * x + 0.5 * random.normal(size=groups)[group])
    times = scale * random.weibull(1.5, size=len(group))
    seen = times < 6.0
    times = np.minimum(times, 6.0)

    def model(x: Tensor, group: Tensor, times: Tensor, seen: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        shape = pyro.sample("shape", dist.LogNormal(0.0, 0.5))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("groups", groups):
            effect = pyro.sample("effect", dist.Normal(0.0, spread))
        hazard = (times / torch.exp(level + slope * x + effect[group])) ** shape
        density = torch.log(shape * hazard / times) * seen - hazard
        pyro.factor("times", density.sum())

    return simulated(model, x=x, group=group, times=times, seen=seen)


@posterior
def rasch(random: Random) -> Posterior:
    """150 persons who answer 20 items (a one-parameter item response model)."""
    person, item = np.divmod(np.arange(150 * 20), 20)
    ability, difficulty = 1.2 * random.normal(size=150), random.normal(size=20)
    y = random.uniform(size=len(person)) < special.expit(ability[person] - difficulty[item])

    def model(person: Tensor, item: Tensor, y: Tensor) -> None:
        spread = pyro.sample("spread", dist.HalfNormal(2.0))
        with pyro.plate("persons", 150):
            ability = pyro.sample("ability", dist.Normal(0.0, spread))
        with pyro.plate("items", 20):
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
        with pyro.plate("answers", len(y)):
            logits = ability[person] - difficulty[item]
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return simulated(model, person=person, item=item, y=y)


@posterior
def two_parameters(random: Random) -> Posterior:
    """100 persons who answer 15 items that discriminate differently (a two-parameter model)."""
    person, item = np.divmod(np.arange(100 * 15), 15)
    ability, difficulty = random.normal(size=100), random.normal(size=15)
    slope = random.lognormal(0.2, 0.4, size=15)
    logits = slope[item] * (ability[person] - difficulty[item])
    y = random.uniform(size=len(person)) < special.expit(logits)

    def model(person: Tensor, item: Tensor, y: Tensor) -> None:
        with pyro.plate("items", 15):
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
            slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5))
        with pyro.plate("persons", 100):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("answers", len(y)):
            logits = slope[item] * (ability[person] - difficulty[item])
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return simulated(model, person=person, item=item, y=y)


@posterior
def pairs(random: Random) -> Posterior:
    """The strengths of 60 players from 500 games (Bradley and Terry)."""
    player = random.integers(60, size=500)
    other = (player + random.integers(1, 60, size=500)) % 60
    strength = 0.8 * random.normal(size=60)
    y = random.uniform(size=500) < special.expit(strength[player] - strength[other])

    def model(player: Tensor, other: Tensor, y: Tensor) -> None:
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("players", 60):
            strength = pyro.sample("strength", dist.Normal(0.0, spread))
        with pyro.plate("games", len(y)):
            logits = strength[player] - strength[other]
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return simulated(model, player=player, other=other, y=y)


@posterior
def robust_regression(random: Random) -> Posterior:
    """60 slopes, Student-t noise of unknown tails."""
    x = random.normal(size=(300, 60))
    y = x @ random.normal(size=60) + random.standard_t(3.0, size=300)

    def model(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(60), 2.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        tails = pyro.sample("tails", dist.Gamma(2.0, 0.1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.StudentT(tails, x @ slopes, sigma), obs=y)

    return simulated(model, x=x, y=y)


@posterior
def horseshoe(random: Random) -> Posterior:
    """A regression of 50 slopes with the horseshoe prior, standardised."""
    x = random.normal(size=(100, 50))
    true = np.concatenate([[3.0, -2.0, 1.5], np.zeros(47)])
    y = x @ true + random.normal(size=100)

    def model(x: Tensor, y: Tensor) -> None:
        overall = pyro.sample("overall", dist.HalfCauchy(0.1))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("slopes", 50):
            local = pyro.sample("local", dist.HalfCauchy(1.0))
            standard = pyro.sample("standard", dist.Normal(0.0, 1.0))
        slopes = standard * local * overall
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=y)

    return simulated(model, x=x, y=y)


# --- time and space


@posterior
def local_level(random: Random) -> Posterior:
    """A random walk of 300 steps seen with noise; both scales unknown."""
    y = np.cumsum(0.3 * random.normal(size=300)) + random.normal(size=300)

    def model(y: Tensor) -> None:
        step = pyro.sample("step", dist.HalfNormal(1.0))
        noise = pyro.sample("noise", dist.HalfNormal(2.0))
        first = pyro.sample("first", dist.Normal(0.0, 5.0))
        moves = pyro.sample("moves", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
        level = first + step * torch.cumsum(moves, -1)
        with pyro.plate("times", len(y)):
            pyro.sample("y", dist.Normal(level, noise), obs=y)

    return simulated(model, y=y)


@posterior
def bridge(random: Random) -> Posterior:
    """A Brownian motion of 100 steps, centred, seen at every fifth with little noise."""
    level = np.cumsum(0.2 * random.normal(size=100))
    y = level[::5] + 0.1 * random.normal(size=20)

    def model(y: Tensor) -> None:
        step = pyro.sample("step", dist.LogNormal(-1.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(-2.0, 1.0))
        level = pyro.sample("level", dist.Normal(torch.zeros(100), 10.0).mask(False).to_event(1))
        pyro.factor("first", dist.Normal(0.0, step).log_prob(level[..., 0]))
        moves = level[..., 1:] - level[..., :-1]
        pyro.factor("moves", dist.Normal(0.0, step).log_prob(moves).sum(-1))
        with pyro.plate("times", len(y)):
            pyro.sample("y", dist.Normal(level[..., ::5], noise), obs=y)

    return simulated(model, y=y)


@posterior
def volatility(random: Random) -> Posterior:
    """Stochastic volatility of 100 days: the log variance is an autoregression."""
    log_variance = np.zeros(100)
    for t in range(1, 100):
        log_variance[t] = 0.95 * log_variance[t - 1] + 0.25 * random.normal()
    y = np.exp(log_variance / 2 - 0.5) * random.normal(size=100)

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        persistence = pyro.sample("persistence", dist.Beta(20.0, 1.5))
        spread = pyro.sample("spread", dist.HalfNormal(0.5))
        h = mean
        for t in range(len(y)):
            h = pyro.sample(f"h_{t}", dist.Normal(mean + persistence * (h - mean), spread))
            pyro.sample(f"y_{t}", dist.Normal(0.0, torch.exp(h / 2)), obs=y[t])

    return simulated(model, y=y)


@posterior
def walking_volatility(random: Random) -> Posterior:
    """Returns of 1,000 days whose log scale is a random walk, with Student-t noise."""
    log_scale = np.cumsum(0.1 * random.normal(size=1000)) - 1.0
    y = np.exp(log_scale) * random.standard_t(8.0, size=1000)

    def model(y: Tensor) -> None:
        step = pyro.sample("step", dist.Exponential(10.0))
        tails = pyro.sample("tails", dist.Gamma(2.0, 0.1))
        first = pyro.sample("first", dist.Normal(0.0, 2.0))
        moves = pyro.sample("moves", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
        log_scale = first + step * torch.cumsum(moves, -1)
        with pyro.plate("times", len(y)):
            pyro.sample("y", dist.StudentT(tails, 0.0, torch.exp(log_scale)), obs=y)

    return simulated(model, y=y)


@posterior
def seasonal(random: Random) -> Posterior:
    """Ten years of months: a level that walks, a slope, and a season of each month."""
    t = np.arange(120)
    level = np.cumsum(0.15 * random.normal(size=120)) + 0.02 * t
    y = level + random.normal(size=12)[t % 12] + 0.4 * random.normal(size=120)

    def model(y: Tensor) -> None:
        step = pyro.sample("step", dist.LogNormal(-2.0, 0.5))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
        swing = pyro.sample("swing", dist.HalfNormal(2.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 0.1))
        with pyro.plate("months", 12):
            season = pyro.sample("season", dist.Normal(0.0, swing))
        moves = pyro.sample("moves", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
        months = torch.arange(len(y))
        mean = slope * months + step * torch.cumsum(moves, -1) + season[..., months % 12]
        with pyro.plate("times", len(y)):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)

    return simulated(model, y=y)


@posterior
def counts_in_time(random: Random) -> Posterior:
    """Daily counts of 250 days whose log rate is an autoregression."""
    level = np.zeros(250)
    for t in range(1, 250):
        level[t] = 0.9 * level[t - 1] + 0.3 * random.normal()
    y = random.poisson(np.exp(1.0 + level))

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        persistence = pyro.sample("persistence", dist.Uniform(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(0.5))
        state = torch.zeros(())
        for t in range(len(y)):
            state = pyro.sample(f"state_{t}", dist.Normal(persistence * state, spread))
            pyro.sample(f"y_{t}", dist.Poisson(torch.exp(mean + state)), obs=y[t])

    return simulated(model, y=y)


@posterior
def gaussian_process(random: Random) -> Posterior:
    """Counts at 60 places with a log rate that is a Gaussian process of unknown length."""
    x = np.sort(random.uniform(0, 10, size=60))
    y = random.poisson(np.exp(1.0 + np.sin(x)))

    def model(x: Tensor, y: Tensor) -> None:
        length = pyro.sample("length", dist.LogNormal(0.5, 0.5))
        size = pyro.sample("size", dist.LogNormal(0.0, 0.5))
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        apart = (x[:, None] - x[None]) ** 2
        covariance = torch.exp(-apart / (2 * length**2)) + 1e-4 * torch.eye(len(x))
        standard = pyro.sample("standard", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        field = size * (torch.linalg.cholesky(covariance) @ standard)
        with pyro.plate("places", len(y)):
            pyro.sample("y", dist.Poisson(torch.exp(level + field)), obs=y)

    return simulated(model, x=x, y=y)


@posterior
def disease_map(random: Random) -> Posterior:
    """Counts in a map of 10 by 10 areas: effects like those of the neighbours, and of their own."""
    here, there = [], []
    for i in range(100):
        here += [i] * ((i % 10 < 9) + (i < 90))
        there += [i + 1] * (i % 10 < 9) + [i + 10] * (i < 90)
    across, down = np.meshgrid(np.linspace(-1, 1, 10), np.linspace(-1, 1, 10))
    expected = random.uniform(3, 20, size=100)
    log_risk = 0.5 * (across * down).ravel() + 0.2 * random.normal(size=100)
    y = random.poisson(expected * np.exp(log_risk))

    def model(expected: Tensor, y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        own = pyro.sample("own", dist.HalfNormal(0.5))
        flat = dist.Normal(torch.zeros(100), 1.0).mask(False).to_event(1)
        smooth = pyro.sample("smooth", flat)
        pyro.factor("neighbours", -0.5 * ((smooth[..., here] - smooth[..., there]) ** 2).sum(-1))
        pyro.factor("centre", dist.Normal(0.0, 0.1).log_prob(smooth.sum(-1)))
        effects = pyro.sample("effects", dist.Normal(torch.zeros(100), 1.0).to_event(1))
        with pyro.plate("areas", 100):
            rate = expected * torch.exp(level + spread * smooth + own * effects)
            pyro.sample("y", dist.Poisson(rate), obs=y)

    return simulated(model, expected=expected, y=y)
