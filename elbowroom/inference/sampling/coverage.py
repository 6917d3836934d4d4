"""Whether importance draws cover the posterior: chains that begin at them must not leave them.

Draws along a curved ridge have even weights and may still miss its ends, and no weight can tell: no
draw is there. Markov chains that keep the posterior, begun at the draws, go there. If the draws are
all of the posterior, the share of the chains beyond any weight is that of the draws; if the chains
come to places that would have larger weights than all draws have, a part of the posterior was not
drawn from.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elbowroom.inference.densities.curvature import Curvature
from elbowroom.inference.densities.importance import resampled
from elbowroom.inference.densities.mixtures import Mixture
from elbowroom.inference.sampling.chains import Chains

if TYPE_CHECKING:
    from elbowroom.inference.sampling.adaptive import AdaptiveImportance

CHAINS = 64
"""That begin at the draws with the largest weights, and as many at the others."""
EDGE = 0.05
"""The share of the posterior's mass that the former stand for."""
TRAJECTORIES = 3
STEPS = 64
"""Of a trajectory, at most."""
ABOVE = 0.5
"""Nats above the largest weight of the draws from which a place counts as outside."""
WORK = 2_000_000_000
"""Nanoseconds of gradients, more or less."""
FEWEST = 8
"""Chains of each kind."""
WHOLE = 300
"""The largest dimension in which chains move in units of the whole covariance."""
PARTS = 8
"""New components, at most."""
NARROWER = 16.0
"""The precision of the posterior that is added to the local one, in a new component."""


@dataclass(frozen=True)
class Coverage:
    """What chains that began at importance draws have found.

    Attributes:
        outside: Places whose weights would exceed those of all draws, (n, D).
        share: The posterior's mass that the chains there stand for.
        chains: How many chains came to such a place.
    """

    outside: np.ndarray
    share: float
    chains: int


def spread(importance: "AdaptiveImportance") -> np.ndarray:
    """The Cholesky factor of the weighted draws' covariance, or in high dimensions their sds."""
    points, weights = importance.counting, importance.weights
    size = points.shape[1]
    centred = points - weights @ points
    variances = weights @ np.square(centred)
    if size > WHOLE:
        return np.sqrt(variances)
    effective = importance.effective_sample_size
    keep = effective / (effective + 2 * size)
    covariance = keep * (centred * weights[:, None]).T @ centred
    covariance[np.diag_indices(size)] += (1 - keep) * variances
    return np.linalg.cholesky(covariance)


def look_beyond(importance: "AdaptiveImportance", longer: int = 1) -> Coverage:
    """Runs short chains from the draws, and sees where they come to.

    Half of them begin at the draws with the largest weights, where what was not drawn is nearest,
    and stand for less of the mass.

    Args:
        importance: The draws.
        longer: Times as many leapfrog steps as usual.
    """
    density, random = importance.density, importance.random
    weights, log_weights = importance.weights, importance.log_weights
    order = np.argsort(-log_weights)
    heavy = 1 + int(np.searchsorted(np.cumsum(weights[order]), EDGE))
    steps = STEPS * longer
    affordable = WORK // max(1, density.work * TRAJECTORIES * steps)
    count = int(min(CHAINS, max(FEWEST, affordable // 2)))
    begun, masses = [], []
    for part in (order[:heavy], order[heavy:]):
        mass = weights[part].sum()
        if mass > 0:
            begun.append(part[resampled(weights[part] / mass, count, random)])
            masses.append(np.full(count, mass / count))
    mass = np.concatenate(masses)
    chains = Chains(
        density, importance.points[np.concatenate(begun)], spread(importance), random, steps
    )
    top = log_weights[np.isfinite(log_weights)].max() + ABOVE
    found, hits = [], np.zeros(len(mass))
    for _ in range(TRAJECTORIES):
        state = chains.advance()
        with np.errstate(invalid="ignore"):
            outside = state.values - importance.log_proposal(state.points) > top
        found.append(state.points[outside])
        hits += outside
    return Coverage(np.concatenate(found), float(mass @ hits / TRAJECTORIES), int((hits > 0).sum()))


def beyond(importance: "AdaptiveImportance", coverage: Coverage, curvature: Curvature) -> Mixture:
    """Components for the places that draws did not cover, shaped by the curvature there."""
    factor = spread(importance)
    whitened = np.linalg.solve(factor, coverage.outside.T).T
    chosen = [0]
    distance = np.full(len(whitened), np.inf)
    while len(chosen) < min(PARTS, len(whitened)):  # each the farthest from those before
        gap = np.square(whitened - whitened[chosen[-1]]).sum(1)
        distance = np.minimum(distance, gap)
        chosen.append(int(np.argmax(distance)))
    places = coverage.outside[chosen]
    size = places.shape[1]
    scales = np.sqrt(np.square(factor).sum(1))
    local = factor.T @ curvature(places, scales * 1e-2) @ factor  # in whitened coordinates
    values, vectors = np.linalg.eigh(np.where(np.isfinite(local), local, 0.0))
    sds = 1 / np.sqrt(np.maximum(values, 0.0) + NARROWER)
    factors = factor @ vectors * sds[:, None, :]
    covariances = factors @ np.swapaxes(factors, 1, 2)
    covariances += 1e-12 * np.eye(size) * np.square(scales)
    return Mixture.of(np.ones(len(places)), places, covariances)
