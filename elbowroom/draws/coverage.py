"""Whether importance draws cover the posterior: chains that begin at them must not leave them.

Draws along a curved ridge have even weights and may still miss its ends, and no weight can tell: no
draw is there. Markov chains that keep the posterior, begun at the draws, go there. If the draws are
all of the posterior, the share of the chains beyond any weight is that of the draws; if the chains
come to places that would have larger weights than all draws have, a part of the posterior was not
drawn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.importance import k_hat_threshold, log_mean_exp, resampled
from elbowroom.density.mixtures import Mixture
from elbowroom.density.modes import Mode
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.chains import Chains, Coverage
from elbowroom.draws.metric import DenseMetric, Metric
from elbowroom.guides.roots import factor_of
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class CoverageSearch:
    """How chains look for mass that the draws have missed."""

    chains: int = 48
    """Chains that begin at the draws with the largest weights, and as many at the others."""
    edge: float = 0.05
    """The share of the posterior's mass that the former stand for."""
    trajectories: int = 3
    """Trajectories of each chain."""
    steps: int = 64
    """Steps of a trajectory, at most."""
    above: float = 0.2
    """Nats above the largest weight of the draws from which a place is outside."""
    near: float = 50.0
    """Nats below the highest place within which a place is examined."""
    work: int = 2_000_000_000
    """The work of all gradients, at most: a few seconds."""
    fewest_chains: int = 8
    """Chains of each kind, at least."""
    parts: int = 8
    """New components, at most."""
    heaviest: int = 20
    """Draws beside which new components are put where the weights have a heavy tail."""
    fine: float = 1e-2
    """The scale of differences of the gradient, in sds: a new component may be far narrower."""
    mode_draws: int = 200
    """Draws that estimate the mass at a mode."""
    noticed: float = 0.03
    """The share of the posterior from which a mode must not be left out."""
    too_few: float = 10.0
    """How many times too few draws a mode has that is left out."""
    narrower: float = 16.0
    """The precision added to the local one in a new component, as a multiple of the posterior's."""


COVERAGE = CoverageSearch()


def spread(importance: AdaptiveImportance) -> np.ndarray:
    """The Cholesky factor of the weighted draws' covariance, or in high dimensions their sds."""
    points, weights = importance.counting, importance.weights
    size = points.shape[1]
    centred = points - weights @ points
    variances = weights @ np.square(centred)
    if size > SIZES.products:
        return np.sqrt(variances)
    effective = importance.effective_sample_size
    keep = effective / (effective + 2 * size)
    covariance = keep * (centred * weights[:, None]).T @ centred
    covariance[np.diag_indices(size)] += (1 - keep) * variances
    return factor_of(torch.as_tensor(covariance)).numpy()


def look_beyond(importance: AdaptiveImportance, places: np.ndarray, longer: int = 1) -> Coverage:
    """Runs short chains from the draws, and sees where they come to.

    Half of them begin at the draws with the largest weights, where what was not drawn is nearest,
    and stand for less of the mass.

    Args:
        importance: The draws.
        places: That are to be covered, such as modes, (n, D).
        longer: Times as many chains as usual, and leapfrog steps.
    """
    density, random = importance.density, importance.random
    weights, log_weights = importance.weights, importance.log_weights
    order = np.argsort(-log_weights)
    heavy = 1 + int(np.searchsorted(np.cumsum(weights[order]), COVERAGE.edge))
    steps = COVERAGE.steps * longer
    affordable = longer * COVERAGE.work // max(1, density.work * COVERAGE.trajectories * steps)
    count = int(min(COVERAGE.chains * longer, max(COVERAGE.fewest_chains, affordable // 2)))
    begun, masses = [], []
    for part in (order[:heavy], order[heavy:]):
        mass = weights[part].sum()
        if mass > 0:
            begun.append(part[resampled(weights[part] / mass, count, random)])
            masses.append(np.full(count, mass / count))
    mass = np.concatenate(masses)
    factor = spread(importance)
    metric = Metric.of_scales(factor) if factor.ndim == 1 else DenseMetric(factor)
    chains = Chains(density, importance.points[np.concatenate(begun)], metric, random, steps)
    top = log_weights[np.isfinite(log_weights)].max() + COVERAGE.above

    def uncovered(points: np.ndarray, values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return values - importance.log_proposal(points) > top

    missed = places[:0]
    if len(places):
        values = density.value(places)
        near = values > values.max() - COVERAGE.near
        missed = places[near][uncovered(places[near], values[near])]
    found, hits = [missed], np.zeros(len(mass))
    for _ in range(COVERAGE.trajectories):
        state = chains.advance()
        outside = uncovered(state.points, state.values)
        found.append(state.points[outside])
        hits += outside
    share = float(mass @ hits / COVERAGE.trajectories)
    return Coverage(np.concatenate(found), share, int((hits > 0).sum()), len(missed))


def thin(importance: AdaptiveImportance, coverage: Coverage | None) -> np.ndarray:
    """Places where the proposals are too thin, far from each other, (n, D).

    Those that chains came to and draws did not; and of draws whose weights have a heavy tail the
    heaviest.
    """
    places = importance.points[:0] if coverage is None else coverage.outside
    if importance.uneven or not importance.k_hat <= k_hat_threshold(len(importance.log_weights)):
        heaviest = np.argsort(-importance.log_weights)[: COVERAGE.heaviest]
        places = np.concatenate([importance.points[heaviest], places])
    if not len(places):
        return places
    factor = spread(importance)
    whitened = places / factor if factor.ndim == 1 else np.linalg.solve(factor, places.T).T
    chosen = [0]
    distance = np.full(len(places), np.inf)
    while len(chosen) < min(COVERAGE.parts, len(places)):  # each the farthest from those before
        gap = np.square(whitened - whitened[chosen[-1]]).sum(1)
        distance = np.minimum(distance, gap)
        chosen.append(int(np.argmax(distance)))
    return places[chosen]


def local_components(
    importance: AdaptiveImportance, places: np.ndarray, curvature: Curvature
) -> Mixture:
    """Components about some places, (n, D), shaped by the curvature there."""
    factor = spread(importance)
    factor = np.diag(factor) if factor.ndim == 1 else factor
    scales = np.sqrt(np.square(factor).sum(1))
    local = factor.T @ curvature(places, COVERAGE.fine * scales) @ factor  # in whitened coordinates
    values, vectors = np.linalg.eigh(np.where(np.isfinite(local), local, 0.0))
    sds = 1 / np.sqrt(np.maximum(values, 0.0) + COVERAGE.narrower)
    factors = factor @ vectors * sds[:, None, :]
    covariances = factors @ np.swapaxes(factors, 1, 2)
    covariances += 1e-12 * np.diag(np.square(scales))
    return Mixture.of(np.ones(len(places)), places, covariances)


def deserted(
    density: Density,
    modes: Sequence[Mode],
    points: np.ndarray,
    weights: np.ndarray,
    log_evidence: float,
    random: np.random.Generator,
) -> float:
    """The share of the posterior at the largest mode that the draws have left out.

    Where many modes are known, even weights may be those of draws at a part of them. The mass where
    a mode is the nearest is estimated by draws from its own Normal.

    Args:
        density: The log density.
        modes: With a precision each; no two of them are the same but for labels.
        points: The draws, (n, D).
        weights: Of them, (n,), summing to one.
        log_evidence: That the draws have.
        random: Of the draws at modes.

    Returns:
        A share from 0 to 1; 0 where each mode of `COVERAGE.noticed` or more has its draws.
    """
    if len(modes) < 2:
        return 0.0
    normals = [
        Mixture.of(np.ones(1), mode.location[None], np.linalg.inv(precision)[None])
        for mode in modes
        if (precision := mode.precision) is not None
    ]
    promises = np.array([mode.promise for mode in modes])

    def nearest(places: np.ndarray) -> np.ndarray:
        heights = [normal.log_density(places) for normal in normals]
        return (np.stack(heights, axis=1) + promises).argmax(1)

    drawn = np.bincount(nearest(points), weights, len(modes))
    largest = 0.0
    for index, (normal, promise) in enumerate(zip(normals, promises, strict=True)):
        if np.exp(promise - log_evidence) < COVERAGE.noticed or drawn[index] * COVERAGE.too_few > 1:
            continue
        own = normal.draw(COVERAGE.mode_draws, random)
        log_weights = density.value(own) - normal.log_density(own)
        log_weights[nearest(own) != index] = -np.inf
        if not np.isfinite(log_weights).any():
            continue
        mass = float(np.exp(min(log_mean_exp(log_weights)[0] - log_evidence, 0.0)))
        if mass > max(COVERAGE.noticed, COVERAGE.too_few * drawn[index]):
            largest = max(largest, mass)
    return largest
