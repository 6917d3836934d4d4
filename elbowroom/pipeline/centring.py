"""How far each group of a hierarchy is centred, by how much the data tell of it.

Groups that the data know well are drawn best as they are written, those that they hardly know by
their standardised values; between the two the best form lies between (Papaspiliopoulos, Roberts
and Sköld, 2007, "A general framework for the parametrization of hierarchical models"; Gorinova,
Moore and Hoffman, 2020, "Automatic reparameterisation of probabilistic programs").
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.density.landscape import Landscape, unclimbed
from elbowroom.draws.groups import reported_quantities
from elbowroom.draws.many_chains import MANY_CHAINS, warm_up
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated


@dataclass(frozen=True)
class Centring:
    """How the share of centring is found."""

    windows: tuple[int, ...] = (10, 10, 15)
    """Trajectories of the standardised chains; see `ManyChains.windows`."""
    least: float = 0.3
    """The largest share of a number below which all stay standardised."""


CENTRING = Centring()


def partly_centred(problem: Problem, seed: int) -> tuple[Problem, Landscape]:
    """A problem with its location-scale sites centred as far as the data tell of each number.

    A few trajectories of the standardised sites z tell: where z is a posteriori given the others,
    the squared slope of the log density is on average 1 + I, where the 1 is the prior's precision
    and I the data's. Where the scale is known, the best share of centring is I / (1 + I). Where it
    may be small, the data tell less of z there, and a share that is too large makes a funnel: the
    share is that of the information beyond the prior's, (I - 1) / (I + 1), if there is any.

    Returns:
        The problem, and its density with places to begin at.
    """
    sites = problem.space.location_scale
    standardised = problem.reparameterise(sites)
    landscape = unclimbed(standardised, seed)
    density, random = landscape.density, np.random.default_rng(seed)
    assert density is not None
    with (
        isolated(seed, dtype=torch.float64, threads=problem.threads),
        np.errstate(all="ignore"),
    ):
        starts = landscape.spread(MANY_CHAINS.groups, random)
        chains, seen = warm_up(density, starts, random, CENTRING.windows)
        squares = np.mean([np.square(state.gradients).mean(0) for state in seen], axis=0)
        shares = np.clip(1 - 2 / np.maximum(squares, 1e-300), 0.0, 1.0)
        ends = chains.state.points[:: len(chains.state.points) // len(starts)]
        parts = standardised.space.split(torch.as_tensor(shares))
        values = density.constrained(ends)
    centred = {site: parts[f"{site}_decentered"].to(problem.dtype) for site in sites}
    if max(float(part.max()) for part in centred.values()) < CENTRING.least:
        return standardised, unclimbed(standardised, seed, ends)
    changed = problem.reparameterise(sites, centred)
    return changed, unclimbed(changed, seed, _as_centred(problem, changed, values, centred, seed))


def _as_centred(
    problem: Problem,
    changed: Problem,
    values: dict[str, Tensor],
    centred: dict[str, Tensor],
    seed: int,
) -> np.ndarray:
    """Unconstrained points (n, D) of a problem, from values of the standardised sites."""
    with problem.session(seed):
        standardised = problem.reparameterise([*centred])
        known = reported_quantities(standardised, values)
        points = []
        for i in range(len(next(iter(values.values())))):
            own = {site.name: known[site.name][i] for site in problem.space.sites}
            trace = poutine.trace(poutine.condition(problem.function, own)).get_trace(
                **problem.arguments
            )
            for site, share in centred.items():
                fn: Any = trace.nodes[site]["fn"]
                while hasattr(fn, "base_dist"):
                    fn = fn.base_dist
                moved = (own[site] - fn.loc) * fn.scale.pow(share - 1) + share * fn.loc
                own[f"{site}_decentered"] = moved
            points.append(changed.space.unconstrain(own).double().cpu().numpy())
    return np.stack(points)
