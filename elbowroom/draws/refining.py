"""Importance sampling that suits a density: of some coordinates given others, or by components.

Chains that begin at the draws look for what these have missed; where they find something, the
sampling is refined.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from elbowroom.density.conditional import Conditional, Split, split_of
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.mixtures import LowRankNormal, Mixture, mixed
from elbowroom.draws.adaptive import ADAPTATION, AdaptiveImportance
from elbowroom.draws.coverage import local_components, look_beyond, thin
from elbowroom.errors import OutOfTimeError


@dataclass(frozen=True)
class Refinement:
    """When and how often sampling is refined."""

    parts: int = 6
    """Components that a refinement adds."""
    most_coordinates: int = 20
    """The most coordinates in which there are refinements."""
    local_share: float = 0.3
    """The share of components about places that were too thin."""
    refinements: int = 5
    """How often the components are made anew, at most."""
    longer: int = 3
    """How many times as far chains go where the posterior is known not to be elliptic."""


REFINEMENT = Refinement()


def refined(found: AdaptiveImportance, curvature: Curvature, parts: int) -> AdaptiveImportance:
    """Sampling anew by several components that follow bends, skew and what was not covered.

    Args:
        found: The sampling so far.
        curvature: Of the density.
        parts: About how many components.
    """
    proposal = found.apart(parts)
    places = thin(found, found.coverage)
    if len(places):
        new = local_components(found, places, curvature)
        if found.conditional is not None:
            new = new.marginal(found.conditional.split.shared)
        proposal = mixed([proposal, new], [1 - REFINEMENT.local_share, REFINEMENT.local_share])
    anew = found.anew(proposal, found.modes_at(proposal.means))
    anew.run()
    return found.joined(anew) if found.misses(anew) else anew


def sampled_nested(
    density: Density, curvature: Curvature, normal: LowRankNormal, random: np.random.Generator
) -> AdaptiveImportance | None:
    """The same where all coordinates together are too many: of some given the others.

    Args:
        density: The log density.
        curvature: Of it.
        normal: Where to begin.
        random: Of the draws.

    Returns:
        The draws with their weights; None if the coordinates do not part.
    """
    split = split_of(curvature)
    if split is None:
        return None
    shared, inner = split.shared, split.blocks.ravel()
    covariance = normal.covariance(shared)
    slope = np.linalg.solve(covariance, normal.factor[shared] @ normal.factor[inner].T).T
    conditional = Conditional(density, split, normal.mean, slope)
    first = Mixture.of(np.ones(1), normal.mean[shared][None], covariance[None])
    found = AdaptiveImportance(density, first, random, conditional=conditional)
    try:
        found.run()
    except OutOfTimeError:
        if not len(found.points):
            return None
        found.cut = True
    return found


def _along(mixture: Mixture, density: Density, split: Split) -> Conditional:
    """The blocks given the other coordinates; their search begins where a mixture has them go."""
    main = int(np.argmax(mixture.shares))
    factor, mean = mixture.factors[main], mixture.means[main]
    shared, inner = split.shared, split.blocks.ravel()
    slope = np.linalg.lstsq(factor[shared].T, factor[inner].T, rcond=None)[0].T
    return Conditional(density, split, mean, slope)


def sampled(
    density: Density,
    curvature: Curvature,
    first: Mixture,
    random: np.random.Generator,
    places: np.ndarray | None = None,
) -> AdaptiveImportance:
    """Adaptive importance sampling in the way that suits a density best.

    First of all coordinates together. Where the weights of that are not even enough, of some given
    the others, which costs some gradients for each draw; then by several components for each mode,
    until chains that begin at the draws stay among them.

    Args:
        density: The log density.
        curvature: Of it; it tells which coordinates part from the others.
        first: The first proposal.
        random: Of the draws.
        places: That the draws have to cover, such as modes, (n, D).

    Returns:
        The draws with their weights; `settled` tells whether these are good, and `coverage` where
        the chains came to.
    """
    found = AdaptiveImportance(density, first, random)
    try:
        found.run()
        for better in _improved(found, curvature, first, places):
            found = better
    except OutOfTimeError:
        if not len(found.points):
            raise
        found.cut = True
    return found


def _improved(
    found: AdaptiveImportance, curvature: Curvature, first: Mixture, places: np.ndarray | None
) -> Iterator[AdaptiveImportance]:
    """Better and better samples, until one is good; see `sampled`."""
    density, random = found.density, found.random
    split = split_of(curvature) if len(first.shares) == 1 and np.isfinite(found.k_hat) else None
    most = 0
    if split is not None and not found.comfortable:
        conditional = _along(found.adapted, density, split)
        most = ADAPTATION.nested_work // (conditional.cost * density.work)
        outer = found.adapted.marginal(split.shared)
        nested = AdaptiveImportance(density, outer, random, conditional=conditional)
        if most >= ADAPTATION.first_round:
            nested.run()
        if len(nested.points) and not nested.misses(found) and nested.discomfort < found.discomfort:
            found = nested
            yield found
    if not found.comfortable and np.isfinite(found.k_hat):
        found = found.of_any_order()
        yield found
    narrow = found.adapted.means.shape[1] <= REFINEMENT.most_coordinates
    cheap = found.conditional is None or most >= ADAPTATION.round
    there = np.zeros((0, density.dimension)) if places is None else places
    count = 0
    while np.isfinite(found.k_hat):
        found.coverage = look_beyond(found, there, REFINEMENT.longer if count else 1)
        good = (
            found.coverage.whole
            and not found.uneven
            and (found.comfortable or found.plenty or (count and found.settled))
        )
        if good or not (narrow and cheap):
            break
        if count >= REFINEMENT.refinements:
            found.coverage = replace(found.coverage, lasting=True)
            break
        count += 1
        found = refined(found, curvature, REFINEMENT.parts * count)
        yield found
