"""From a fitted guide to draws of the posterior, weighted and corrected."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from elbowroom import budget
from elbowroom.assess.latent_health import latent_health
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.importance import k_hat_threshold
from elbowroom.density.landscape import Landscape, density_of
from elbowroom.density.mixtures import Mixture
from elbowroom.density.modes import positive_definite
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.many_chains import MixedChains
from elbowroom.draws.of_guide import FEWEST, draw
from elbowroom.draws.refining import sampled, sampled_nested
from elbowroom.draws.row_weights import draws_of_rows, weigh_rows
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.protocol import Fitted, Gaussian
from elbowroom.engines.task import Task
from elbowroom.errors import OutOfTimeError
from elbowroom.problem.isolation import isolated, reseed
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Weighed:
    """How many draws are weighed."""

    most_draws: int = 8
    """The most draws weighed where weights are uneven, as a multiple of those asked for."""
    row_draws: int = 4
    """The same of each row, where all latents belong to rows."""
    share: float = 0.1
    """Of the rows that a long training has run the model for, the share that may be weighed."""
    gradient: int = 3
    """Runs of a model that cost as much as a run and its gradient."""
    timed: int = 3
    """Runs by which it is told how many draws the time of the fit allows."""
    within: float = 0.6
    """The share of the time that is left which they may take."""
    enough: float = 1000.0
    """Effective draws at which no more are weighed."""
    even: float = 0.7
    """Effective draws for each draw of a wide guide above which no other proposal is sought."""


WEIGHED = Weighed()


@dataclass(frozen=True)
class Drawn:
    """Draws of a fitted guide, and what corrects them.

    Attributes:
        raw: The guide's own.
        corrected: Draws of equal weight, resampled from weighted ones or of Markov chains; None
            for a point.
        importance: What gave these, if it was adaptive importance sampling.
        chains: The same, if it was Markov chains.
        health: What the latents of rows carry, by name.
        said: The same in sentences.
    """

    raw: WeightedDraws
    corrected: WeightedDraws | None = None
    importance: AdaptiveImportance | None = None
    chains: MixedChains | None = None
    health: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    @property
    def weighted(self) -> WeightedDraws | None:
        """What the corrected draws were resampled from; the guide's own beside Markov chains."""
        if self.chains is not None:
            return self.raw
        return None if self.corrected is None else self.corrected.source

    @property
    def together(self) -> WeightedDraws | None:
        """The same where all latents have their weights together."""
        weighted = self.weighted
        return None if weighted is None or weighted.per_row else weighted


def draw_posterior(task: Task, fitted: Fitted, landscape: Landscape, count: int) -> Drawn:
    """Draws from a fitted guide, and weighs the draws.

    Args:
        task: What is asked.
        fitted: The guide at its optimum.
        landscape: Where the fit began.
        count: How many draws of the posterior.
    """
    random = np.random.default_rng([task.seed, 1])
    if fitted.gaussian is not None:
        return _of_gaussian(task, fitted.gaussian, landscape, count, random)
    if fitted.adapts:
        return _adapted(task, fitted, landscape, count, random)
    with fitted.problem.session(task.seed + 1, fitted.parameters):
        space = fitted.problem.space
        if space.rows_only and not fitted.point and set(space.discrete) <= fitted.sites.discrete:
            return _of_rows(task, fitted, count, random)
        return _of_guide(fitted, count, random)


def _of_gaussian(
    task: Task, gaussian: Gaussian, landscape: Landscape, count: int, random: np.random.Generator
) -> Drawn:
    """Draws of one Normal, and adaptive importance sampling that begins at it."""
    density, curvature = landscape.density, landscape.curvature
    assert density is not None
    # Far out a value may overflow: it is judged by what it gives.
    with (
        isolated(task.seed + 1, dtype=torch.float64, threads=task.problem.threads),
        np.errstate(all="ignore"),
    ):
        if gaussian.chains is not None:
            few = density.affordable(count, 1000)
            raw = _raw(density, gaussian.distribution, few, random)
            points, values = gaussian.chains.first(count)
            drawn = WeightedDraws(density.constrained(points), values, np.full(len(values), np.nan))
            return Drawn(raw, drawn, chains=gaussian.chains)
        assert curvature is not None
        if gaussian.proposal is not None:
            few = density.affordable(2 * count, 1000) // 2
            raw = _raw(density, gaussian.distribution, few, random)
            try:
                found = sampled(density, curvature, gaussian.proposal, random, landscape.places)
            except OutOfTimeError:
                return Drawn(raw, raw.resample(count, random))
            return Drawn(raw, found.resample(count), found)
        assert gaussian.low_rank is not None
        few = min(density.affordable(count, 1000), max(1000, SIZES.memory // density.dimension))
        raw = _raw(density, gaussian.distribution, few, random)
        if not (raw.usable and raw.fewest_effective > WEIGHED.even * few):
            nested = sampled_nested(density, curvature, gaussian.low_rank, random)
            if nested is not None:
                return Drawn(raw, nested.resample(min(count, few)), nested)
        return Drawn(raw, raw.resample(few, random))


def _adapted(
    task: Task, fitted: Fitted, landscape: Landscape, count: int, random: np.random.Generator
) -> Drawn:
    """Draws of a guide, and adaptive importance sampling that begins at their mean.

    What a guide samples beside the continuous sites is summed over in the weights.
    """
    problem, space = fitted.problem, fitted.problem.space
    with problem.session(task.seed + 1, fitted.parameters):
        raw = draw(problem.function, fitted.callable, problem.arguments, space, count)
    if space.dimension > SIZES.dense:
        return Drawn(raw, raw.resample(count, random))
    with (
        isolated(task.seed + 1, dtype=torch.float64, threads=task.problem.threads),
        np.errstate(all="ignore"),
    ):
        values = {site.name: raw.sites[site.name].double() for site in space.sites}
        points = torch.vmap(space.unconstrain)(values).numpy()  # (draws, D)
        density, curvature = landscape.density, landscape.curvature
        if density is None or curvature is None:
            density = density_of(problem)
            curvature = Curvature(density)
        try:
            first = _about(points, curvature)
            found = sampled(density, curvature, first, random, landscape.places)
        except OutOfTimeError:
            return Drawn(raw, raw.resample(count, random))
    return Drawn(raw, found.resample(count), found)


def _about(points: np.ndarray, curvature: Curvature) -> Mixture:
    """The Normal at the mean of draws (n, D) with the curvature of the density there.

    The draws of a product of factors are narrower than the posterior. Where it has no such
    curvature, their covariance has to do.
    """
    mean, size = points.mean(0), points.shape[1]
    covariance = np.cov(points.T).reshape(size, size)
    precision = curvature(mean[None], np.sqrt(np.diag(covariance)))[0]
    if np.isfinite(precision).all() and positive_definite(precision):
        covariance = np.linalg.inv(precision)
    return Mixture.of(np.ones(1), mean[None], covariance[None])


def _raw(
    density: Density, distribution: Distribution, count: int, random: np.random.Generator
) -> WeightedDraws:
    """Draws of a Normal: as many as half of the time that is left allows, but some.

    Raises:
        OutOfTimeError: If the time is over before there are some.
    """
    reseed(int(random.integers(2**62)))
    points = distribution.sample((count,))
    log_q = distribution.log_prob(points).numpy()
    values: list[np.ndarray] = []
    end, numbers = budget.left() / 2, points.numpy()
    for chunk in np.split(numbers, range(density.at_once, count, density.at_once)):
        if budget.left() < end and sum(map(len, values)) >= FEWEST:
            break
        values.append(density.value(chunk))
    log_p = np.concatenate(values)
    given = len(log_p)
    return WeightedDraws(density.constrained(numbers[:given]), log_p, log_q[:given])


def _of_rows(task: Task, fitted: Fitted, count: int, random: np.random.Generator) -> Drawn:
    """Draws where all latents belong to rows, each of which has weights of its own."""
    problem, space = fitted.problem, fitted.problem.space
    with budget.stage("weighing the draws of each row"):
        weighed = weigh_rows(
            problem.function, fitted.callable, problem.arguments, space,
            _weighed(task, fitted, count), space.local,
        )  # fmt: skip
    with budget.stage("measuring what the latents carry"):
        health, said = latent_health(
            problem.function, fitted.callable, problem.arguments, space, weighed,
            amortised=fitted.guide.amortised,
        )  # fmt: skip
    return Drawn(
        weighed.together.first(count),
        weighed.resample(count, random),
        health=health,
        said=tuple(said),
    )


def _of_guide(fitted: Fitted, count: int, random: np.random.Generator) -> Drawn:
    """Draws of a guide, more of them where their weights are uneven."""
    problem = fitted.problem
    drawing = problem.function, fitted.callable, problem.arguments, problem.space
    drawn = draw(*drawing, count)
    if fitted.point:
        return Drawn(drawn)
    most = WEIGHED.most_draws * count
    while _wasteful(drawn) and len(drawn.log_p) < most and not budget.over():
        drawn = drawn.followed_by(draw(*drawing, len(drawn.log_p)))
    return Drawn(drawn.first(count), drawn.resample(count, random))


def _weighed(task: Task, fitted: Fitted, count: int) -> int:
    """Draws of each row that are weighed: a few times as many, where memory and time allow."""
    problem, settings = fitted.problem, task.settings
    assert problem.space.subsampled is not None
    rows = problem.space.subsampled.size
    numbers = sum(v.numel() for v in problem.arguments.values() if isinstance(v, Tensor))
    batch = min(rows, settings.batch_size or rows)
    runs = len(fitted.trained.elbo_history) * batch * settings.particles * WEIGHED.gradient
    affordable = max(SIZES.evaluated, int(WEIGHED.share * runs * numbers / rows))
    most = min(WEIGHED.row_draws * count, SIZES.memory // max(problem.space.dimension, 1))
    wanted = draws_of_rows(problem.arguments, max(count, most), count, affordable)
    left = budget.left()
    if left == math.inf:
        return wanted
    began = time.monotonic()
    for _ in range(WEIGHED.timed):
        with torch.no_grad():
            drawn = poutine.trace(fitted.callable).get_trace(**problem.arguments)
            replayed = poutine.replay(problem.function, trace=drawn)
            poutine.trace(replayed).get_trace(**problem.arguments).compute_log_prob()
    seconds = (time.monotonic() - began) / WEIGHED.timed
    return min(wanted, max(FEWEST, int(WEIGHED.within * left / max(seconds, 1e-9))))


def _wasteful(drawn: WeightedDraws) -> bool:
    """Whether the weights are good, but so uneven that more draws are worth their while."""
    few = drawn.unsmoothed_effective_sample_size < WEIGHED.enough
    return bool(few and drawn.k_hat <= k_hat_threshold(len(drawn.log_p)))
