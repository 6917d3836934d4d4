"""The ELBO over a fixed set of draws: an ordinary function with a real optimum.

The draws of a standard Normal are drawn once, in antithetic pairs, so that the ELBO of a Gaussian
guide is a smooth function of its parameters that a quasi-Newton method brings to its optimum
(Giordano, Ingram and Broderick, 2024, "Black box variational inference with a deterministic
objective"). How far that optimum is from the one with all possible draws, in every number that is
reported of it, follows from the spread of the gradient over independent parts of the draws; and how
the means answer to a change of the log density gives the covariance that a factorising guide lacks:
linear response (Giordano, Broderick and Jordan, 2018, "Covariances, robustness and variational
Bayes").
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import minimize

from elbowroom.density.curvature import CURVATURE, Curvature
from elbowroom.density.density import Density
from elbowroom.density.modes import climb, guarded_loss, positive_definite
from elbowroom.engines.fixed_draws.objectives import (
    Coordinates,
    Fixed,
    GaussianObjective,
    MeanFieldObjective,
)
from elbowroom.errors import GuideError
from elbowroom.guides.families import Family, Flat
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Optimising:
    """How the ELBO over fixed draws is maximised."""

    decrement: float = 1e-6
    """The gain that a Newton step promises at an optimum, in nats."""
    loose_decrement: float = 1e-4
    """The same where the Hessian is not taken."""
    iterations: int = 200
    """Steps of L-BFGS, at most."""
    draws_per_dimension: int = 64
    """Fixed draws for each dimension in which a guide has correlations. The guide's p parameters
    fit the noise of the M draws, which costs about p/M nats of the ELBO where the log density is
    far from Normal."""
    most_products: int = 20
    """Products with the Hessian for one Newton step, at most."""
    residual: float = 0.05
    """The relative residual of a Newton step by conjugate gradients; errors are needed to a few per
    cent."""
    narrowed: int = 10
    """How often a guide's start is narrowed by a factor e until every draw has a density."""


OPTIMISING = Optimising()


@dataclass(frozen=True)
class Draws:
    """How many fixed draws to take.

    Attributes:
        first: To begin with, even.
        most: Where doubling ends.
        tolerance: The standard error that comes from the draws being these, below which they are
            enough: of every mean, in standard deviations of the posterior; of every standard
            deviation, relative; of every correlation.
        loss: Nats of ELBO that the optimum may be below the best there is, or what means that are
            all at the tolerance would cost, if that is more.
        means_alone: Whether the means' errors alone are to be below the tolerance.
    """

    first: int = 256
    most: int = 4096
    tolerance: float = 0.02
    loss: float = 0.01
    means_alone: bool = False

    def after(self, count: int, errors: "Errors") -> int | None:
        """How many to take after so many that left these errors; None if there is no need to.

        The number is doubled once or twice, as far as the errors tell: they are rough themselves.
        """
        if not errors.too_rough(self) or 2 * count > self.most:
            return None
        return 4 * count if errors.times(self) > 2 and 4 * count <= self.most else 2 * count


PROPOSAL = Draws(32, 256, 0.1, means_alone=True)
"""Enough to begin importance sampling."""


SMALLEST = 1e-4
"""The smallest error that is shown."""


@dataclass(frozen=True)
class Errors:
    """What comes from the fixed draws being these, as the largest standard error of its kind.

    What was not looked at is NaN.

    Attributes:
        mean: In standard deviations of the posterior.
        log_sd: Of the logarithm of a standard deviation.
        correlation: Of a correlation.
        loss: Nats of ELBO that the optimum is expected to be below the best there is. 0 of a
            guide which is no optimum of the ELBO.
        dimension: D.
    """

    mean: float
    log_sd: float = float("nan")
    correlation: float = float("nan")
    loss: float = 0.0
    dimension: int = 1

    def too_rough(self, choice: Draws) -> list[str]:
        """What is known less well than was asked for."""
        return [what for what, times in self._wanting(choice) if times > 1]

    def times(self, choice: Draws) -> float:
        """How many times the draws it takes until nothing is too rough, about."""
        return max(times for _, times in self._wanting(choice))

    def _wanting(self, choice: Draws) -> list[tuple[str, float]]:
        """Each error in words, and how many times the draws would bring it to its limit."""
        limit = choice.tolerance
        most = max(choice.loss, self.dimension * limit**2 / 2)
        by_mean = (self.mean / limit) ** 2 if np.isfinite(self.mean) else np.inf
        found = [(f"the means have an error of {self.mean:.2g} posterior sd", by_mean)]
        if not choice.means_alone:
            found += [
                (f"the sds have an error of {_percent(self.log_sd)}", (self.log_sd / limit) ** 2),
                (
                    f"the correlations have an error of {self.correlation:.2g}",
                    (self.correlation / limit) ** 2,
                ),
                (f"the best ELBO has an error of {self.loss:.2g} nats", self.loss / most),
            ]
        return [(what, times) for what, times in found if not np.isnan(times)]

    def __str__(self) -> str:
        said = [f"{_shown(self.mean)} posterior sd for a mean"]
        if self.log_sd >= 0:
            said.append(f"{_percent(max(self.log_sd, SMALLEST))} for an sd")
        if self.correlation >= 0 and self.dimension > 1:
            said.append(f"{_shown(self.correlation)} for a correlation")
        if self.loss > 0:
            said.append(f"{_shown(self.loss)} nats for the ELBO")
        return ", ".join(said[:-1]) + " and " * (len(said) > 1) + said[-1]


def _shown(error: float) -> str:
    return f"{max(error, SMALLEST):.2g}"


def _percent(error: float) -> str:
    return f"{float(f'{100 * error:.2g}'):g}%"


@dataclass(frozen=True)
class Optimum:
    """The optimum of a Gaussian guide over fixed draws.

    Attributes:
        parameters: Of the objective, in its coordinates.
        coordinates: In which the guide is described.
        mean: In unconstrained coordinates, (D,).
        covariance: (D, D); of linear response where that was asked for, else the guide's own.
        elbo: Over the fixed draws, in nats.
        reached: Whether the gradient vanishes: a Newton step promises less than
            `OPTIMISING.decrement`, or `OPTIMISING.loose_decrement` where the Hessian is not taken.
        errors: What comes from the draws being these.
        draws: How many there were.
        history: The ELBO at each evaluation.
        all_errors: Looks at those that were not wanted yet.
    """

    parameters: np.ndarray
    coordinates: Coordinates
    mean: np.ndarray
    covariance: np.ndarray
    elbo: float
    reached: bool
    errors: Errors
    draws: int
    history: list[float]
    all_errors: Callable[[], Errors] | None = None


def ascend(
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    iterations: int,
) -> tuple[np.ndarray, list[float]]:
    """The parameters that L-BFGS reaches, and the objective at each evaluation."""
    history: list[float] = []

    def kept(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(parameters)
        if np.isfinite(value) and np.isfinite(gradient).all():
            history.append(value)
        return value, gradient

    options: dict[str, float] = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20}
    options |= {"gtol": 1e-4, "ftol": 1e-13}
    loss = guarded_loss(kept)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x, history


def linear_response(
    density: Density,
    curvature: Curvature,
    coordinates: Coordinates,
    random: np.random.Generator,
    choice: Draws = Draws(),
    begin: Optimum | None = None,
) -> Optimum | None:
    """The means of independent Normals with the covariance of linear response.

    That is the inverse Hessian of minus the ELBO, the block of the means.

    Args:
        density: The log density.
        curvature: Of it.
        coordinates: Scaled or whitened by the curvature at a mode: the Normals are independent in
            these.
        random: Of the draws.
        choice: Of how many draws.
        begin: An optimum over fewer draws in the same coordinates, to go on from.

    Returns:
        The optimum; None if the ELBO is not finite at the start, or has no curvature where the
        optimiser ended.
    """
    size = density.dimension
    found, count = begin, choice.first
    if found is not None:
        found = _judged(found, choice)
        further = choice.after(found.draws, found.errors)
        if further is None:
            return found
        count = further
    while True:
        fixed = Fixed.of(count, size, random)
        objective = MeanFieldObjective(density, curvature, coordinates, fixed)
        found = _response(objective, found)
        if found is None:
            return None
        found = _judged(found, choice)
        further = choice.after(count, found.errors)
        if further is None:
            return found
        count = further


def _judged(found: Optimum, choice: Draws) -> Optimum:
    """An optimum with all errors that a choice asks for, where the known ones do not lack."""
    if choice.means_alone or found.all_errors is None or found.errors.too_rough(choice):
        return found
    return replace(found, errors=found.all_errors(), all_errors=None)


def _response(objective: MeanFieldObjective, before: Optimum | None) -> Optimum | None:
    """Linear response over the draws of an objective, from an optimum over fewer of them."""
    size, coordinates = objective.density.dimension, objective.coordinates
    start = np.zeros(2 * size) if before is None else before.parameters
    begin = narrowed(objective, start)
    if begin is None:
        return None
    parameters, history = ascend(objective.at, begin, OPTIMISING.iterations)
    ends = climb(
        objective.value_and_gradient,
        objective.precision,
        parameters[None],
        iterations=30,
        near_enough=OPTIMISING.decrement,
        scaled=False,
    )
    precision = ends[0].precision if ends else None
    if precision is None:
        return None
    end, parameters = ends[0], ends[0].location
    inverse = np.linalg.inv(precision)
    covariance = inverse[:size, :size]
    if not positive_definite(covariance):
        return None
    sandwich = inverse @ _meat(objective.by_block(parameters)) @ inverse
    error = _largest_error(coordinates, sandwich[:size, :size], covariance)
    errors = Errors(error, dimension=size)
    return Optimum(
        parameters,
        coordinates,
        coordinates.to_u(parameters[None, :size])[0],
        coordinates.covariance(covariance),
        end.log_density,
        end.reached,
        errors,
        len(objective.fixed.draws),
        [*(before.history if before else []), *history, end.log_density],
        partial(_errors_of_response, objective, parameters, precision, inverse, errors),
    )


def _errors_of_response(
    objective: MeanFieldObjective,
    parameters: np.ndarray,
    precision: np.ndarray,
    inverse: np.ndarray,
    known: Errors,
) -> Errors:
    """The errors of linear response, whose covariance hangs on the draws twice; the means' known.

    The Hessian is a mean over them, at an optimum that is theirs as well: over each part of the
    draws it is taken where a Newton step over that part leads.
    """
    size = objective.density.dimension
    fixed = replace(objective.fixed.grouped(), corrected=False)  # as the Hessians are
    if size > SIZES.products:
        return known
    together = MeanFieldObjective(
        objective.density, objective.curvature, objective.coordinates, fixed
    )
    steps = together.by_block(parameters) @ inverse

    def moves() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for step, part in zip(steps, np.split(fixed.draws, fixed.blocks), strict=True):
            change = objective.precision_over(part, parameters + step) - precision
            yield step[:size], -inverse[:size] @ change @ inverse[:, :size]

    return replace(_spread(objective.coordinates, inverse[:size, :size], moves()), mean=known.mean)


def narrowed(objective: MeanFieldObjective, parameters: np.ndarray) -> np.ndarray | None:
    """Parameters of a guide narrow enough for every draw to have a density."""
    narrower = np.repeat([0.0, 1.0], len(parameters) // 2)
    for _ in range(10):
        if np.isfinite(objective.at(parameters)[0]):
            return parameters
        parameters = parameters - narrower
    return None


def best_of_family(
    density: Density,
    family: Family,
    name: str,
    random: np.random.Generator,
    choice: Draws = Draws(),
) -> Optimum | None:
    """The optimum of a family of Normals.

    With fewer pairs of draws than dimensions with correlations there is none: the guide can widen
    without end where no draw looks.

    Args:
        density: The log density.
        family: The family, begun at a mode and its curvature.
        name: Of the guide.
        random: Of the draws.
        choice: Of how many draws.

    Returns:
        The optimum; None if the ELBO is not finite at the start, or has no curvature where the
        optimiser ended.

    Raises:
        GuideError: If the draws are too few for the dimension, with the number needed.
    """
    flat = Flat(family)
    begin = flat.normal(flat.start)
    if choice.most < 2 * (begin.correlated + 1):
        raise GuideError(
            f"{name} has correlations in {begin.correlated} dimensions, for which {choice.most} "
            "fixed draws are too few; give --fixed-draws "
            f"{OPTIMISING.draws_per_dimension * begin.correlated}, or fit with --guide "
            "mean_field."
        )
    per_dimension = OPTIMISING.draws_per_dimension if choice.most > choice.first else 0
    first = max(choice.first, per_dimension * begin.correlated)
    objective = GaussianObjective(density, flat, Fixed.of(first, begin.noise, random))
    for width in np.exp(-np.arange(OPTIMISING.narrowed)):  # until every draw has a density
        parameters = Flat(family, float(width)).start.numpy()
        if np.isfinite(objective.at(parameters)[0]):
            return _optimum(objective, parameters, choice, random)
    return None


def _optimum(
    objective: GaussianObjective, start: np.ndarray, choice: Draws, random: np.random.Generator
) -> Optimum | None:
    """The optimum of an objective whose Hessian is not taken: products with it are."""
    parameters, history = start, []
    while True:
        objective.fixed = fixed = objective.fixed.grouped()
        parameters, more = ascend(objective.at, parameters, 10 * OPTIMISING.iterations)
        if not more:
            return None
        history += more
        with np.errstate(over="ignore", invalid="ignore"):
            mean, covariance = objective.moments(parameters)
        if not np.isfinite(covariance).all():
            return None
        around = _Around(objective, parameters)
        gradients = objective.by_block(parameters)
        gradient = gradients.mean(0)
        step = around.newton_step(gradient)
        reached = max(gradient @ gradient, gradient @ step) < 2 * OPTIMISING.loose_decrement
        if not reached and not gradient @ around.product(gradient) > 0:
            return None
        errors = _errors(around, covariance, gradients - gradient)
        further = choice.after(len(fixed.draws), errors)
        if further is None:
            break
        objective.fixed = Fixed.of(further, fixed.draws.shape[1], random)
    return Optimum(
        parameters,
        UNSCALED,
        mean,
        covariance,
        around.value,
        bool(reached),
        errors,
        len(fixed.draws),
        history,
    )


UNSCALED = Coordinates(np.zeros(1), np.ones(1))
"""The unconstrained coordinates themselves, however many."""


class _Around:
    """The ELBO around some parameters, (P,).

    Attributes:
        value: There.
    """

    def __init__(self, objective: GaussianObjective, parameters: np.ndarray) -> None:
        self.objective, self.parameters = objective, parameters
        self.value, self._gradient = objective.at(parameters)
        self._curvature = objective.curvature(parameters)

    def product(self, vector: np.ndarray) -> np.ndarray:
        """Minus the Hessian times a vector, by a difference of the gradient."""
        step = CURVATURE.step / max(1e-300, np.abs(vector).max())
        ahead = self.objective.at(self.parameters + step * vector)[1]
        return (self._gradient - ahead) / step

    def moved(self, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What a small step changes in the mean and the covariance, to first order."""
        part = CURVATURE.step / max(1e-300, np.abs(step).max())
        ahead, behind = (
            self.objective.moments(self.parameters + sign * part * step) for sign in (1, -1)
        )
        return (ahead[0] - behind[0]) / (2 * part), (ahead[1] - behind[1]) / (2 * part)

    def newton_step(self, gradient: np.ndarray) -> np.ndarray:
        """For a gradient, or that over some draws, by preconditioned conjugate gradients.

        They end where the curvature is not positive. A guide of low rank has directions in which it
        does not change: those have none.
        """
        found, left = np.zeros_like(gradient), gradient
        guess = left / self._curvature
        direction, size = guess, left @ guess
        small = OPTIMISING.residual**2 * size
        for _ in range(OPTIMISING.most_products):
            if not size > small:
                break
            product = self.product(direction)
            curved = direction @ product
            if not curved > 0:
                break
            found = found + size / curved * direction
            left = left - size / curved * product
            guess = left / self._curvature
            size, before = left @ guess, size
            direction = guess + size / before * direction
        return found


def _errors(around: _Around, covariance: np.ndarray, gradients: np.ndarray) -> Errors:
    """The errors of an optimum, from the gradients over independent blocks, (blocks, P).

    A block's own optimum is about a Newton step away. The mean of half of the gradient times the
    step is what the noise of one block costs.
    """
    steps = np.stack([around.newton_step(each) for each in gradients])
    blocks = len(gradients)
    loss = 0.5 * float((gradients * steps).sum()) / (blocks * (blocks - 1))
    return replace(_spread(UNSCALED, covariance, map(around.moved, steps)), loss=loss)


def _meat(gradients: np.ndarray) -> np.ndarray:
    """The covariance of the mean of gradients over independent blocks, (blocks, parameters)."""
    return np.cov(gradients, rowvar=False).reshape(gradients.shape[1], -1) / len(gradients)


def _largest_error(coordinates: Coordinates, sandwich: np.ndarray, posterior: np.ndarray) -> float:
    """The largest standard error of a mean in posterior standard deviations."""
    errors = np.diag(coordinates.covariance(sandwich))
    largest = np.max(errors / np.diag(coordinates.covariance(posterior)))
    return float(np.sqrt(largest)) if largest >= 0 else float("inf")


def _spread(
    coordinates: Coordinates,
    covariance: np.ndarray,
    moves: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Errors:
    """The errors of a Normal, from where each of several independent parts would move it.

    Args:
        coordinates: Of all that is given.
        covariance: (D, D).
        moves: The change of the mean, (D,), and of the covariance, (D, D), for each part.
    """
    variances = np.diag(coordinates.covariance(covariance))
    if not (variances > 0).all():
        return Errors(np.inf, np.inf, np.inf, dimension=len(variances))
    sds = np.sqrt(variances)
    correlation = coordinates.covariance(covariance) / np.outer(sds, sds)
    squares, parts = [np.zeros(len(sds)), np.zeros(len(sds)), np.zeros_like(correlation)], 0
    for mean, changed in moves:
        shift = (coordinates.to_u(mean[None])[0] - coordinates.origin) / sds
        relative = coordinates.covariance(changed) / np.outer(sds, sds)
        log_sd = np.diag(relative) / 2
        apart = relative - correlation * np.add.outer(log_sd, log_sd)
        for total, each in zip(squares, (shift, log_sd, apart), strict=True):
            total += np.square(each)
        parts += 1
    largest = [float(np.sqrt(total.max() / (parts * (parts - 1)))) for total in squares]
    by_mean, by_sd, by_correlation = (value if value >= 0 else np.inf for value in largest)
    return Errors(by_mean, by_sd, by_correlation, dimension=len(sds))
