"""Gaussian approximations of a posterior that need no stochastic gradient."""

from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal

from elbowroom.density.ensemble import moments
from elbowroom.density.landscape import Landscape
from elbowroom.density.mixtures import LowRankNormal
from elbowroom.density.modes import Mode, guarded_loss
from elbowroom.draws.many_chains import MANY_CHAINS, MixedChains, run_many_chains
from elbowroom.engines.fixed_draws import optima as fixed_draws
from elbowroom.engines.fixed_draws.objectives import Coordinates
from elbowroom.engines.fixed_draws.optima import (
    PROPOSAL,
    Draws,
    Errors,
    Optimum,
    best_of_family,
)
from elbowroom.engines.fixed_draws.wide import Response, chosen_coordinates, respond
from elbowroom.errors import GuideError, OutOfTimeError
from elbowroom.guides import Guide
from elbowroom.guides.families import MakeFamily, Search
from elbowroom.guides.roots import factor_of_inverse
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Approximation:
    """A Normal in unconstrained coordinates.

    Attributes:
        mean: (D,).
        covariance: (D, D); None if it is too large.
        status: "converged", "budget" or "exact"; see `elbowroom.engines.svi.loop.Trained`.
        reason: The same as a sentence.
        optimum: Over fixed draws, if it is one.
        parameters: How many numbers were optimised.
        history: The ELBO at each evaluation.
        low_rank: What stands for it then.
        response: The same with how it was found, if it is linear response.
        chains: Whose moments it has, if it has those of chains.
        family: Of which it is the optimum, if it is of one.
    """

    mean: np.ndarray
    covariance: np.ndarray | None
    status: str
    reason: str
    optimum: Optimum | None = None
    parameters: int = 0
    history: list[float] = field(default_factory=list)
    response: Response | None = None
    low_rank: LowRankNormal | None = None
    chains: MixedChains | None = None
    family: MakeFamily | None = None

    @property
    def errors(self) -> Errors | None:
        """What comes from the fixed draws being these, if there are any."""
        found = self.optimum or self.response
        return None if found is None else found.errors

    @property
    def distribution(self) -> Distribution:
        """The Normal, in float64."""
        mean = torch.as_tensor(self.mean)
        if self.low_rank is not None:
            factor, scale = map(torch.as_tensor, (self.low_rank.factor, self.low_rank.scale))
            return LowRankMultivariateNormal(mean, factor, scale.square())
        return MultivariateNormal(mean, torch.as_tensor(self.covariance))


def _whitened(mode: Mode) -> Coordinates:
    assert mode.precision is not None
    return Coordinates(mode.location, factor_of_inverse(torch.as_tensor(mode.precision)).numpy())


def _scaled(mode: Mode) -> Coordinates:
    assert mode.precision is not None
    return Coordinates(mode.location, 1 / np.sqrt(np.diag(mode.precision)))


def _of_optimum(optimum: Optimum | None, name: str) -> Approximation:
    if optimum is None:
        raise GuideError(
            f"{name} has no optimum over fixed draws: the posterior has a funnel or a flat "
            "direction, or its density is zero close to the mode. For a model of your own, --guide "
            "auto also tries non-centred sites."
        )
    return Approximation(
        optimum.mean,
        optimum.covariance,
        "converged" if optimum.reached else "budget",
        _how_it_ended(optimum),
        optimum,
        len(optimum.parameters),
        optimum.history,
    )


def _how_it_ended(optimum: Optimum | Response) -> str:
    if not optimum.reached:
        return (
            f"the optimiser stopped before the gradient of the ELBO over {optimum.draws} fixed "
            "draws was zero."
        )
    return (
        f"converged: the gradient of the ELBO over {optimum.draws} fixed draws is zero. The choice "
        f"of draws gives standard errors of up to {optimum.errors}."
    )


def fitted(
    landscape: Landscape, guide: Guide, random: np.random.Generator, choice: Draws
) -> Approximation:
    """A guide fitted at the best mode alone, as it declares.

    Raises:
        NoModeError: If the guide needs a mode and there is none.
        GuideError: If it has no optimum.
    """
    density, declared = landscape.density, guide.fixed_draws
    assert density is not None
    assert declared is not None
    best = None if landscape.best is None else landscape.start()
    loss = guarded_loss(density.at)
    search = Search(guide.name, density, loss, landscape.first, best, random)
    if declared.family is not None:
        family = declared.family(density.space, search.mode)
        optimum = best_of_family(density, family, guide.name, random, choice)
        return replace(_of_optimum(optimum, guide.name), family=declared.family)
    assert declared.search is not None
    found = declared.search(search)
    return Approximation(found.mean, found.covariance, "exact", found.reason, history=found.history)


def linear_response(optima: list[Optimum]) -> Approximation:
    """Mean-field means with the covariance of linear response: the best of `responses`."""
    best = optima[0] if optima else None
    if best is not None and best.all_errors is not None:
        with suppress(OutOfTimeError):  # then the errors of the means alone are known
            best = replace(best, errors=best.all_errors())
        best = replace(best, all_errors=None)
    return _of_optimum(best, "linear_response")


def without_mode(landscape: Landscape, random: np.random.Generator) -> Approximation | None:
    """The Normal with the moments of a density that is highest at an edge of its support."""
    if landscape.density is None or landscape.endless:
        return None
    found = moments(landscape.density, landscape.first, random)
    if found is None:
        return None
    mean, covariance = found
    reason = (
        "the density has no mode inside its support: the guide is the Normal with the mean and "
        "covariance of an ensemble of Markov chains."
    )
    return Approximation(mean, covariance, "exact", reason)


def responses(
    landscape: Landscape, random: np.random.Generator, choice: Draws, within: float = 12.0
) -> list[Optimum]:
    """Linear response at each mode whose evidence is near the best one's, best ELBO first.

    At each mode the guide factorises either over the unconstrained coordinates or over whitened
    ones, whichever gives the higher ELBO. The best of all is the one to be reported: it alone gets
    as many draws as were chosen; the others only begin importance sampling.

    Args:
        landscape: The modes.
        random: Of the fixed draws.
        choice: Of how many.
        within: Nats of Laplace evidence below the best mode at which a mode is left out.
    """
    density, curvature, best = landscape.density, landscape.curvature, landscape.best
    if density is None or curvature is None:
        return []

    def at(coordinates: Coordinates) -> Optimum | None:
        return fixed_draws.linear_response(density, curvature, coordinates, random, few)

    few = replace(choice, tolerance=max(choice.tolerance, PROPOSAL.tolerance), means_alone=True)
    found: list[Optimum] = []
    modes = [mode for mode in landscape.modes if mode.reached and mode.precision is not None]
    for mode in modes[:MOST_MODES]:
        assert best is not None
        if mode.log_evidence < best.log_evidence - within:
            continue
        tried: list[Optimum | None] = []
        try:
            tried.append(at(_scaled(mode)))
            if density.dimension <= SIZES.products:
                tried.append(at(_whitened(mode)))
        except OutOfTimeError:
            if not found and not tried:
                raise
        proper = [optimum for optimum in tried if optimum is not None]
        if proper:
            found.append(max(proper, key=lambda optimum: optimum.elbo))
    if not found:
        anywhere = at(Coordinates(landscape.first, np.ones(density.dimension)))
        found = [] if anywhere is None else [anywhere]
    found = sorted(found, key=lambda optimum: optimum.elbo, reverse=True)
    if found and choice != few:
        with suppress(OutOfTimeError):
            further = fixed_draws.linear_response(
                density, curvature, found[0].coordinates, random, choice, found[0]
            )
            found[0] = found[0] if further is None else further
    return found


def wide(
    landscape: Landscape,
    guide: Guide,
    random: np.random.Generator,
    choice: Draws,
    correlated: str | None,
) -> Approximation:
    """A guide where the covariance is too large to be held whole.

    Args:
        landscape: With its starts.
        guide: One that declares so: linear response, or a family of independent Normals.
        random: Of the fixed draws.
        choice: Of how many.
        correlated: Names of sites; see `elbowroom.engines.fixed_draws.wide.chosen_coordinates`.
    """
    density, curvature, starts = landscape.density, landscape.curvature, landscape.starts
    assert density is not None
    assert curvature is not None
    assert starts is not None
    chosen = np.zeros(0, dtype=int)
    assert guide.fixed_draws is not None
    if guide.fixed_draws.family is None:
        chosen = chosen_coordinates(density.space, curvature, correlated)
    response = respond(density, curvature, starts, chosen, random, choice)
    status = "converged" if response.reached else "budget"
    parameters = 2 * density.dimension
    reason = _how_it_ended(response)
    return Approximation(
        response.normal.mean, None, status, reason, None, parameters, response.history, response,
        response.normal,
    )  # fmt: skip


def by_chains(landscape: Landscape, random: np.random.Generator) -> Approximation:
    """The Normal with the moments of many Markov chains.

    Args:
        landscape: With its starts, or its modes: groups of chains begin there.
        random: Of the chains.
    """
    density = landscape.density
    assert density is not None
    starts = landscape.spread(MANY_CHAINS.groups, random)
    chains = run_many_chains(density, starts, random, landscape.starts is not None)
    points = chains.points.reshape(-1, density.dimension)
    mean = points.mean(0)
    reason = f"the guide has the moments of {chains.chains} Markov chains: nothing to optimise."
    if density.dimension <= SIZES.products:
        covariance = np.cov(points, rowvar=False).reshape(len(mean), -1)
        return Approximation(mean, covariance, "exact", reason, chains=chains)
    normal = LowRankNormal(mean, points.std(0), np.zeros((len(mean), 1)))
    return Approximation(mean, None, "exact", reason, low_rank=normal, chains=chains)


MOST_MODES = 16
"""Modes at which a guide is fitted."""
