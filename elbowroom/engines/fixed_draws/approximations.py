"""Gaussian approximations of a posterior that need no stochastic gradient, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal

from elbowroom.density.density import Density
from elbowroom.density.landscape import Landscape
from elbowroom.density.modes import Mode, guarded_loss
from elbowroom.engines.fixed_draws import optima as fixed_draws
from elbowroom.engines.fixed_draws.objectives import LOG_2PI, Coordinates
from elbowroom.engines.fixed_draws.optima import PROPOSAL, Draws, Errors, Optimum
from elbowroom.engines.fixed_draws.wide import Response, chosen_coordinates, respond
from elbowroom.errors import GuideError, NoModeError
from elbowroom.guides.roots import factor_of_inverse


@dataclass(frozen=True)
class Approximation:
    """A Normal in unconstrained coordinates.

    Attributes:
        mean: (D,).
        covariance: (D, D); None if it is too large, and `response` describes it.
        status: "converged", "budget" or "exact"; see `elbowroom.engines.svi.loop.Trained`.
        reason: The same as a sentence.
        optimum: Over fixed draws, if it is one.
        parameters: How many numbers were optimised.
        history: The ELBO at each evaluation.
        response: What stands for the covariance.
    """

    mean: np.ndarray
    covariance: np.ndarray | None
    status: str
    reason: str
    optimum: Optimum | None = None
    parameters: int = 0
    history: list[float] = field(default_factory=list)
    response: Response | None = None

    @property
    def errors(self) -> Errors | None:
        """What comes from the fixed draws being these, if there are any."""
        found = self.optimum or self.response
        return None if found is None else found.errors

    @property
    def distribution(self) -> Distribution:
        """The Normal, in float64."""
        mean = torch.as_tensor(self.mean)
        if self.response is not None:
            normal = self.response.normal
            factor, scale = map(torch.as_tensor, (normal.factor, normal.scale))
            return LowRankMultivariateNormal(mean, factor, scale.square())
        return MultivariateNormal(mean, torch.as_tensor(self.covariance))


def _whitened(mode: Mode) -> Coordinates:
    assert mode.precision is not None
    return Coordinates(mode.location, factor_of_inverse(torch.as_tensor(mode.precision)).numpy())


def _scaled(mode: Mode) -> Coordinates:
    assert mode.precision is not None
    return Coordinates(mode.location, 1 / np.sqrt(np.diag(mode.precision)))


def _best(landscape: Landscape, name: str) -> Mode:
    if landscape.best is None:
        raise NoModeError(
            f"{name} needs a mode with positive curvature, and none was found; "
            "fit with --engine svi --guide mean_field instead."
        )
    return landscape.best


def _of_optimum(optimum: Optimum | None, name: str) -> Approximation:
    if optimum is None:
        raise GuideError(
            f"{name} has no optimum over fixed draws: the posterior has a funnel, a flat direction "
            "or no density near the mode; fit with --guide auto, which tries other coordinates."
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
        return f"the optimiser stopped before the ELBO over {optimum.draws} fixed draws was flat."
    return (
        f"the gradient of the ELBO over {optimum.draws} fixed draws vanishes; their choice moves "
        f"{optimum.errors}."
    )


def laplace(landscape: Landscape, random: np.random.Generator, choice: Draws) -> Approximation:
    """The Normal that matches the best mode and its curvature."""
    mode = _best(landscape, "laplace")
    assert mode.precision is not None
    reason = "the guide is the mode and its curvature: nothing to optimise."
    return Approximation(mode.location, np.linalg.inv(mode.precision), "exact", reason)


def mean_field(landscape: Landscape, random: np.random.Generator, choice: Draws) -> Approximation:
    """Independent Normals in the unconstrained coordinates."""
    assert landscape.density is not None
    assert landscape.curvature is not None
    coordinates = _scaled(_best(landscape, "mean_field"))
    optimum = fixed_draws.mean_field(
        landscape.density, landscape.curvature, coordinates, random, choice
    )
    return _of_optimum(optimum, "mean_field")


def full_rank(landscape: Landscape, random: np.random.Generator, choice: Draws) -> Approximation:
    """One Normal with all correlations."""
    assert landscape.density is not None
    mode = _best(landscape, "full_rank")
    optimum = fixed_draws.full_rank(landscape.density, _whitened(mode), random, choice)
    return _of_optimum(optimum, "full_rank")


def low_rank(landscape: Landscape, random: np.random.Generator, choice: Draws) -> Approximation:
    """A Normal with correlations of rank √D, rounded up."""
    assert landscape.density is not None
    mode = _best(landscape, "low_rank")
    assert mode.precision is not None
    coordinates = _scaled(mode)
    rank = max(1, int(np.ceil(len(mode.location) ** 0.5)))
    scales = coordinates.factor
    correlated = np.linalg.inv(mode.precision) / np.outer(scales, scales)
    values, vectors = np.linalg.eigh(correlated - np.eye(len(scales)))
    factor = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 1e-4))
    optimum = fixed_draws.low_rank(landscape.density, coordinates, random, factor, choice)
    return _of_optimum(optimum, "low_rank")


def linear_response(optima: list[Optimum]) -> Approximation:
    """Mean-field means with the covariance of linear response: the best of `responses`."""
    best = optima[0] if optima else None
    if best is not None and best.all_errors is not None:
        best = replace(best, errors=best.all_errors(), all_errors=None)
    return _of_optimum(best, "linear_response")


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
        tried = [at(_scaled(mode))]
        if density.dimension <= WHITENED:
            tried.append(at(_whitened(mode)))
        proper = [optimum for optimum in tried if optimum is not None]
        if proper:
            found.append(max(proper, key=lambda optimum: optimum.elbo))
    if not found:
        anywhere = at(Coordinates(landscape.first, np.ones(density.dimension)))
        found = [] if anywhere is None else [anywhere]
    found = sorted(found, key=lambda optimum: optimum.elbo, reverse=True)
    if found and choice != few:
        further = fixed_draws.linear_response(
            density, curvature, found[0].coordinates, random, choice, found[0]
        )
        found[0] = found[0] if further is None else further
    return found


def wide(
    landscape: Landscape,
    name: str,
    random: np.random.Generator,
    choice: Draws,
    correlated: str | None,
) -> Approximation:
    """`linear_response` or `mean_field` where the covariance is too large to be held whole.

    Args:
        landscape: With its starts.
        name: Of the two.
        random: Of the fixed draws.
        choice: Of how many.
        correlated: Names of sites; see `elbowroom.engines.fixed_draws.wide.chosen_coordinates`.
    """
    density, curvature, starts = landscape.density, landscape.curvature, landscape.starts
    assert density is not None
    assert curvature is not None
    assert starts is not None
    chosen = np.zeros(0, dtype=int)
    if name == "linear_response":
        chosen = chosen_coordinates(density.space, curvature, correlated)
    response = respond(density, curvature, starts, chosen, random, choice)
    status = "converged" if response.reached else "budget"
    parameters = 2 * density.dimension
    reason = _how_it_ended(response)
    return Approximation(
        response.normal.mean, None, status, reason, None, parameters, response.history, response
    )


WIDE = ("linear_response", "mean_field")
"""The names that `wide` takes."""
MOST_MODES = 16
"""Modes at which a guide is fitted."""
WHITENED = 300
"""The largest dimension in which whitened coordinates are tried beside scaled ones."""


def pathfinder(landscape: Landscape, random: np.random.Generator, choice: Draws) -> Approximation:
    """The Normal with the highest ELBO along paths of L-BFGS.

    Zhang, Carpenter, Gelman and Vehtari, 2022, "Pathfinder: parallel quasi-Newton variational
    inference". The inverse Hessian at each point is that of the last steps and gradient changes.
    """
    density = landscape.density
    assert density is not None
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    history: list[float] = []
    starts = [landscape.first]
    starts += [random.uniform(-2, 2, density.dimension) for _ in range(PATHS - 1)]
    for start in starts:
        for mean, covariance in _path(density, start):
            factor = np.linalg.cholesky(covariance)
            draws = random.standard_normal((PATH_DRAWS, density.dimension))
            values = density.value(mean + draws @ factor.T)
            entropy = np.log(np.diag(factor)).sum() + 0.5 * density.dimension * (1 + LOG_2PI)
            elbo = float(values.mean() + entropy)
            history.append(elbo)
            if np.isfinite(elbo) and (best is None or elbo > best[0]):
                best = elbo, mean, covariance
    if best is None:
        raise GuideError(
            "pathfinder found no point with a finite ELBO; fit with --engine svi --guide "
            "mean_field."
        )
    reason = f"the best of {len(history)} Normals along {PATHS} paths of L-BFGS."
    return Approximation(best[1], best[2], "exact", reason, history=history)


PATHS, PATH_DRAWS, PATH_MEMORY = 4, 20, 6


def _path(density: Density, start: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and covariance of a Normal at each point of a path of L-BFGS."""
    visited: list[tuple[np.ndarray, np.ndarray]] = []
    loss = guarded_loss(density.at)

    def keep(u: np.ndarray) -> None:
        visited.append((u.copy(), loss(u)[1]))

    keep(start)
    options = {"maxiter": 200, "maxcor": PATH_MEMORY}
    minimize(loss, start, jac=True, method="L-BFGS-B", options=options, callback=keep)
    normals: list[tuple[np.ndarray, np.ndarray]] = []
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    scale = np.ones(len(start))
    for (u, g), (new_u, new_g) in pairwise(visited):
        s, y = new_u - u, new_g - g
        if s @ y > 1e-12 * np.linalg.norm(y) ** 2:
            pairs = [*pairs, (s, y)][-PATH_MEMORY:]
            # The diagonal of Gilbert and Lemaréchal, 1989, that Pathfinder begins from.
            curved = y @ (scale * y)
            along = np.square(s / scale) @ scale
            scale = 1 / (
                curved / (s @ y) / scale
                + np.square(y) / (s @ y)
                - curved * np.square(s / scale) / ((s @ y) * along)
            )
            scale = np.where(scale > 0, scale, 1.0)
        inverse = np.diag(scale)
        for s, y in pairs:
            rho = 1 / (s @ y)
            left = np.eye(len(s)) - rho * np.outer(s, y)
            inverse = left @ inverse @ left.T + rho * np.outer(s, s)
        if np.isfinite(inverse).all() and np.linalg.eigvalsh(inverse)[0] > 0:
            normals.append((new_u - inverse @ new_g, inverse))
    return normals


SINGLE: Mapping[str, Callable[[Landscape, np.random.Generator, Draws], Approximation]] = {
    "mean_field": mean_field,
    "full_rank": full_rank,
    "low_rank": low_rank,
    "laplace": laplace,
    "pathfinder": pathfinder,
}
"""Those that look at the best mode alone."""
METHODS = ("linear_response", *SINGLE)
