"""Linear response in so many dimensions that the covariance cannot be held whole.

Its columns for some coordinates are solved for by conjugate gradients with products of the Hessian
of the ELBO over fixed draws (Giordano, Ingram and Broderick, 2024, "Black box variational inference
with a deterministic objective"). The other coordinates follow the chosen ones, and beyond that are
as independent as the mean-field guide has them: in a hierarchical model with the shared parameters
chosen that is the whole of the covariance.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from elbowroom.density.conditional import split_of
from elbowroom.density.curvature import CURVATURE, Curvature
from elbowroom.density.density import Density
from elbowroom.density.mixtures import LowRankNormal
from elbowroom.density.modes import guarded_loss, positive_definite
from elbowroom.engines.fixed_draws.objectives import (
    Coordinates,
    Fixed,
    MeanFieldObjective,
)
from elbowroom.engines.fixed_draws.optima import OPTIMISING, Draws, Errors, ascend, narrowed
from elbowroom.errors import GuideError, OptionError
from elbowroom.guides.space import LatentSpace


@dataclass(frozen=True)
class WideResponse:
    """How linear response is made in many dimensions."""

    most_chosen: int = 40
    """The most coordinates that are chosen where the user names none."""
    tolerance: float = 1e-6
    """The residual of conjugate gradients relative to the right-hand side."""
    most_products: int = 500
    """Products with the Hessian for one column, at most."""
    iterations: int = 400
    """Steps of L-BFGS, at most."""
    same: float = 1.0
    """The symmetrised divergence, in nats, below which two guides are the same optimum."""
    remainder: float = 1e-4
    """The share of a chosen coordinate's conditional variance that is left out of the factor."""


WIDE_RESPONSE = WideResponse()


@dataclass(frozen=True)
class Response:
    """A Normal with correlations of and through some coordinates alone.

    Attributes:
        normal: The Normal, in unconstrained coordinates.
        chosen: The coordinates with their covariance from linear response, (C,).
        elbo: Of the mean-field guide over the fixed draws, in nats.
        reached: Whether its gradient vanishes.
        errors: What comes from the draws being these.
        draws: How many there were.
        agreeing: How many starts reached this optimum.
        tried: How many there were.
        history: The ELBO at each evaluation.
    """

    normal: LowRankNormal
    chosen: np.ndarray
    elbo: float
    reached: bool
    errors: Errors
    draws: int
    agreeing: int
    tried: int
    history: list[float]


def chosen_coordinates(space: LatentSpace, curvature: Curvature, names: str | None) -> np.ndarray:
    """The coordinates whose covariance is solved for.

    Args:
        space: Of the model.
        curvature: Of its log density.
        names: Sites, separated by commas; by default those that a plate's elements share, else the
            smallest ones.

    Raises:
        OptionError: If there is no such site.
    """
    begins = np.concatenate([[0], np.cumsum(space.sizes)]).astype(int)
    where = {
        site.name: np.arange(begin, end)
        for site, begin, end in zip(space.sites, begins[:-1], begins[1:], strict=True)
    }
    if names is not None:
        asked = [name.strip() for name in names.split(",")]
        for name in asked:
            if name not in where:
                raise OptionError(
                    f"--correlated {name}: the model has no such latent site; it has "
                    f"{', '.join(where)}."
                )
        return np.concatenate([where[name] for name in asked])
    split = split_of(curvature)
    if split is not None:
        return split.shared
    found = np.zeros(0, dtype=int)
    for indices in sorted(where.values(), key=len):
        if len(found) + len(indices) > WIDE_RESPONSE.most_chosen:
            break
        found = np.concatenate([found, indices])
    return np.sort(found)


def respond(
    density: Density,
    curvature: Curvature,
    starts: np.ndarray,
    chosen: np.ndarray,
    random: np.random.Generator,
    choice: Draws,
) -> Response:
    """Mean-field means, with linear response for chosen coordinates.

    Args:
        density: The log density.
        curvature: Of it.
        starts: Where to begin, (n, D); the best of the optima is taken.
        chosen: Coordinates, (C,), which may be none.
        random: Of the fixed draws.
        choice: Of how many.

    Raises:
        GuideError: If the ELBO has no optimum with a curvature for the chosen coordinates.
    """
    fixed = _matched(choice.first, density.dimension, random)
    history: list[float] = []
    ends = [
        end
        for start in starts
        if (end := _ascended(density, curvature, start, fixed, history)) is not None
    ]
    if not ends:
        raise GuideError(
            "the ELBO is not finite at any start; check the model's log density at draws of its "
            "prior, or fit with --engine svi."
        )
    best = max(ends, key=lambda end: end[1])
    agreeing = sum(_divergence(best[0], end[0]) < WIDE_RESPONSE.same for end in ends)
    coordinates = best[0]
    while True:
        objective = MeanFieldObjective(density, curvature, coordinates, fixed)
        parameters, reached = _polished(objective, history)
        columns = _columns(objective, parameters, chosen)
        coordinates = _moved(coordinates, parameters)
        errors = _errors(objective, parameters, columns, chosen)
        further = choice.after(len(fixed.draws), errors)
        if further is None:
            break
        fixed = _matched(further, density.dimension, random)
    columns = columns[: density.dimension]
    scales, alone = objective.coordinates.factor, coordinates.factor
    if curvature.probed:  # what the scales are with all possible draws, less the means' noise
        alone = curvature.conditional_scales(objective.points(parameters), alone)
    factor, scale = _parted(columns * scales[:, None] * scales[chosen], alone.copy(), chosen)
    elbo = objective.at(parameters)[0]
    normal = LowRankNormal(coordinates.origin, scale, factor)
    return Response(
        normal, chosen, elbo, reached, errors, len(fixed.draws), agreeing, len(starts), history
    )


def _matched(count: int, size: int, random: np.random.Generator) -> Fixed:
    """Antithetic draws with a mean square of one in each coordinate: (count, size).

    The guide's standard deviations are part of the covariance here, and of a Normal posterior they
    are exact so.
    """
    half = random.standard_normal((count // 2, size))
    half = half / np.sqrt(np.square(half).mean(0))
    return Fixed(np.stack([half, -half], axis=1).reshape(-1, size), count // 2)


def _ascended(
    density: Density,
    curvature: Curvature,
    start: np.ndarray,
    fixed: Fixed,
    history: list[float],
) -> tuple[Coordinates, float] | None:
    """Where L-BFGS takes the ELBO: the guide, as the coordinates in which it is standard Normal."""
    if not np.isfinite(density.value(start[None])).all():
        return None
    coordinates, value = Coordinates(start, curvature.guessed_scales(start)), -np.inf
    for _ in range(2):  # the second time in coordinates that suit the optimum
        objective = MeanFieldObjective(density, curvature, coordinates, fixed)
        parameters = narrowed(objective, np.zeros(2 * density.dimension))
        if parameters is None:
            return None
        parameters, more = ascend(objective.at, parameters, WIDE_RESPONSE.iterations)
        history += more
        coordinates, value = _moved(coordinates, parameters), objective.at(parameters)[0]
    return coordinates, value


def _moved(coordinates: Coordinates, parameters: np.ndarray) -> Coordinates:
    """The coordinates in which a mean-field guide is standard Normal."""
    mean, log_scale = np.split(parameters, 2)
    return Coordinates(coordinates.to_u(mean[None])[0], coordinates.factor * np.exp(log_scale))


def _divergence(one: Coordinates, two: Coordinates) -> float:
    """Symmetrised Kullback-Leibler divergence of two mean-field guides, in nats."""
    square = np.square(one.origin - two.origin)
    first, second = np.square(one.factor), np.square(two.factor)
    total = (square + first) / second + (square + second) / first - 2
    return float(0.5 * total.sum())


def _hessian(objective: MeanFieldObjective, parameters: np.ndarray) -> LinearOperator:
    """Products with minus the Hessian of the ELBO, by differences of its gradient."""

    def product(vector: np.ndarray) -> np.ndarray:
        size = np.abs(vector).max()
        if size == 0:
            return np.zeros_like(parameters)
        step = CURVATURE.step / size
        ahead = objective.at(parameters + step * vector.ravel())[1]
        behind = objective.at(parameters - step * vector.ravel())[1]
        return (behind - ahead) / (2 * step)

    return LinearOperator((len(parameters), len(parameters)), matvec=product, dtype=float)


def _polished(objective: MeanFieldObjective, history: list[float]) -> tuple[np.ndarray, bool]:
    """Trust-region Newton steps by conjugate gradients, and whether the gradient vanishes."""
    loss = guarded_loss(objective.at)
    start = np.zeros(2 * objective.density.dimension)
    found = minimize(
        loss,
        start,
        jac=True,
        hessp=lambda at, vector: _hessian(objective, at) @ vector,
        method="trust-ncg",
        options={"gtol": 1e-3, "maxiter": 50},
    ).x
    value, gradient = objective.at(found)
    history.append(value)
    step, _ = cg(
        _hessian(objective, found), gradient, rtol=1e-2, maxiter=WIDE_RESPONSE.most_products
    )
    return found, bool(0 <= gradient @ step < 2 * OPTIMISING.loose_decrement)


def _columns(
    objective: MeanFieldObjective, parameters: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """Columns of the inverse Hessian for the chosen means, (2D, C)."""
    size = objective.density.dimension
    hessian, columns = _hessian(objective, parameters), np.zeros((2 * size, len(chosen)))
    # The curvature of a mean-field guide's parameters at its optimum, were it alone.
    own = np.concatenate([np.exp(2 * parameters[size:]), np.full(size, 0.5)])
    alone = LinearOperator((2 * size, 2 * size), matvec=lambda v: own * v.ravel(), dtype=float)
    for c, coordinate in enumerate(chosen):
        unit = np.zeros(2 * size)
        unit[coordinate] = 1.0
        solved, failed = cg(
            hessian,
            unit,
            rtol=WIDE_RESPONSE.tolerance,
            maxiter=WIDE_RESPONSE.most_products,
            M=alone,
        )
        if failed or not np.isfinite(solved).all():
            raise GuideError(
                "conjugate gradients did not converge to the covariance of linear response; "
                "name fewer sites in --correlated, or fit with --guide mean_field."
            )
        columns[:, c] = solved
    if len(chosen) and not positive_definite(_symmetric(columns[chosen])):
        raise GuideError(
            "the ELBO has no maximum where the optimiser ended; fit with --guide mean_field or, "
            "for a model of your own, with --guide auto, which also tries non-centred sites."
        )
    return columns


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _errors(
    objective: MeanFieldObjective, parameters: np.ndarray, columns: np.ndarray, chosen: np.ndarray
) -> Errors:
    """What comes from the draws being these.

    The chosen means answer to the gradient's noise as linear response says; the others follow them,
    and answer to their own besides, as the logarithms of the scales do.
    """
    size = objective.density.dimension
    paired = objective.by_block(parameters)
    pairs = len(paired)
    square = np.square(objective.fixed.draws[::2]) - 1
    variances = np.exp(2 * parameters[size:])
    by_mean = paired[:, :size] if len(chosen) else _less(paired[:, :size], square)
    moves, total = variances * by_mean, variances.copy()
    own = _less(paired[:, size:], square) / 2
    loss = float((moves.var(0, ddof=1) / variances + 2 * own.var(0, ddof=1)).sum()) / (2 * pairs)
    if len(chosen):  # no optimum of the ELBO
        loss = 0.0
        covariance, rows = _symmetric(columns[chosen]), columns[:size]
        slopes = np.linalg.solve(covariance, rows.T)  # (C, D)
        answers = paired @ columns
        moves += answers @ slopes
        moves[:, chosen] = answers
        total += np.einsum("dc,cd->d", rows, slopes)
        total[chosen] = np.diag(covariance)
    mean = moves.std(0, ddof=1) / np.sqrt(total * pairs)
    log_sd = own.std(0, ddof=1) / pairs**0.5
    return Errors(float(mean.max()), float(log_sd.max()), loss=loss, dimension=size)


def _less(values: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Values (pairs, D) less what goes with the squares of their draws, whose mean is right."""
    apart = values - values.mean(0)
    return apart - square * ((apart * square).sum(0) / np.square(square).sum(0))


def _parted(
    columns: np.ndarray, scale: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A factor and standard deviations that give the columns (D, C) of the covariance."""
    if not len(chosen):
        return np.zeros((len(columns), 1)), scale
    covariance = _symmetric(columns[chosen])
    conditional = 1 / np.diag(np.linalg.inv(covariance))
    lower = np.linalg.cholesky(covariance - WIDE_RESPONSE.remainder * np.diag(conditional))
    factor = np.linalg.solve(lower, columns.T).T
    factor[chosen] = lower
    scale[chosen] = np.sqrt(WIDE_RESPONSE.remainder * conditional)
    return factor, scale
