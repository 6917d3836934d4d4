"""The modes of a log density: climbs from several starts together, and which of them agree."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.errors import OutOfTimeError
from elbowroom.guides.space import LatentSpace
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Climbing:
    """How a climb to a mode is made."""

    decrement: float = 1e-6
    """The Newton decrement, in nats, below which a point is a mode."""
    flat: float = 1e-10
    """The smallest eigenvalue of the precision, scaled to a unit diagonal, that is not a flat
    direction."""
    iterations: int = 100
    """Steps of a climb, at most."""
    patience: int = 50
    """Steps of a climb towards a spike, at most, where evaluations do not fit the cache."""
    same: float = 1.0
    """The symmetrised divergence, in nats, below which two Laplace approximations are the same
    mode."""


CLIMBING = Climbing()


@dataclass(frozen=True)
class Mode:
    """Where a climb ended.

    Attributes:
        location: In unconstrained coordinates, (D,).
        log_density: There.
        precision: Minus the Hessian there, (D, D), if it is positive definite; else None.
        reached: Whether the gradient vanishes there: else the climb was stopped.
        starts: How many starts ended here.
        relabelled: Whether some of them ended at the same values in another order.
    """

    location: np.ndarray
    log_density: float
    precision: np.ndarray | None
    reached: bool
    starts: int = 1
    relabelled: bool = False

    @property
    def log_evidence(self) -> float:
        """By Laplace's method; minus infinity without a mode."""
        return self.promise if self.reached else -np.inf

    @property
    def promise(self) -> float:
        """The same where the climb was stopped as well; minus infinity without curvature."""
        if self.precision is None:
            return -np.inf
        log_determinant = np.linalg.slogdet(self.precision)[1]
        return self.log_density + 0.5 * (len(self.location) * np.log(2 * np.pi) - log_determinant)


Objective = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Values (n,) and gradients (n, D) at points (n, D), to be maximised."""


def positive_definite(precision: np.ndarray) -> bool:
    """Whether a matrix is, judged with a unit diagonal: units of coordinates make none flat."""
    diagonal = np.diag(precision)
    if not np.isfinite(precision).all() or (diagonal <= 0).any():
        return False
    scales = np.sqrt(diagonal)
    values = np.linalg.eigvalsh(precision / np.outer(scales, scales))
    return bool(values[0] > CLIMBING.flat * values[-1])


def _damped_step(
    precision: np.ndarray, gradient: np.ndarray, damping: float
) -> tuple[np.ndarray, float]:
    """A step uphill, by the precision with its eigenvalues made positive and damped.

    Returns:
        The step, (D,), and the damping that it took.
    """
    scales = np.sqrt(np.maximum(np.abs(np.diag(precision)), 1e-12))
    scaled = precision / np.outer(scales, scales)
    if len(gradient) > 200:  # eigenvectors cost too much: damp until there is a factor
        while True:
            try:
                factor = cho_factor(scaled + damping * np.eye(len(scaled)))
                return cho_solve(factor, gradient / scales) / scales, damping
            except np.linalg.LinAlgError:
                damping = max(10 * damping, 1e-6)
    values, vectors = np.linalg.eigh(scaled)
    values = np.maximum(np.abs(values), 1e-12) + damping
    return (vectors @ ((vectors.T @ (gradient / scales)) / values)) / scales, damping


def climb(
    objective: Objective,
    precision_at: Callable[[np.ndarray, np.ndarray], np.ndarray],
    starts: np.ndarray,
    iterations: int = CLIMBING.iterations,
    near_enough: float = CLIMBING.decrement,
    patience: int = CLIMBING.iterations,
    scaled: bool = True,
) -> list[Mode]:
    """Climbs from all starts together by damped Newton steps.

    A step is taken where it gains a part of what its quadratic model promises, and shortened where
    it does not (Levenberg, 1944; Marquardt, 1963); negative curvature is turned round (Dauphin et
    al., 2014, "Identifying and attacking the saddle point problem").

    Args:
        objective: To be maximised.
        precision_at: Minus its Hessian at points, (n, D) to (n, D, D), given the coordinates'
            conditional standard deviations as far as they are known, (n, D), 0 where they are not.
        starts: (n, D); those where the objective is not finite are left out.
        iterations: At most.
        near_enough: The gain that a Newton step promises, in nats, at which a climb ends.
        patience: Steps after which a climb that is above every mode so far is given up, as it
            climbs a spike.
        scaled: Whether the Hessian is better with the standard deviations of the very point.

    Returns:
        Where each start ended.
    """
    values, gradients = objective(starts)
    usable = np.isfinite(values) & np.isfinite(gradients).all(1)
    points, values, gradients = starts[usable], values[usable], gradients[usable]
    if not len(points):
        return []
    precisions = precision_at(points, np.zeros_like(points))
    if scaled:
        precisions = precision_at(points, Curvature.scales(precisions))
    damping = np.full(len(points), 1e-3)
    active = np.isfinite(precisions).all((1, 2))
    reached = np.zeros(len(points), dtype=bool)
    with suppress(OutOfTimeError):  # where each climb is then, it ends
        for iteration in range(iterations):
            if iteration > patience and reached.any():
                active &= values <= values[reached].max()
            steps = np.zeros_like(points)
            promised = np.zeros(len(points))
            for i in np.flatnonzero(active):
                steps[i], damping[i] = _damped_step(precisions[i], gradients[i], damping[i])
                curved = steps[i] @ precisions[i] @ steps[i]
                promised[i] = gradients[i] @ steps[i] - 0.5 * curved
                promised[i] = max(promised[i], 0.5 * gradients[i] @ steps[i])
                if gradients[i] @ steps[i] < 2 * near_enough:
                    if scaled:  # the Hessian is taken anew, over steps that suit this point
                        scales = Curvature.scales(precisions[i])[None]
                        precisions[i] = precision_at(points[i][None], scales)[0]
                    steps[i], _ = _damped_step(precisions[i], gradients[i], 0.0)
                    reached[i] = gradients[i] @ steps[i] < 2 * near_enough
                    active[i] = not reached[i]
            moving = np.flatnonzero(active)
            if not len(moving):
                break
            new_points = points[moving] + steps[moving]
            new_values, new_gradients = objective(new_points)
            usable = np.isfinite(new_values) & np.isfinite(new_gradients).all(1)
            with np.errstate(invalid="ignore"):
                gain = np.where(usable, (new_values - values[moving]) / promised[moving], -1.0)
            better = gain > 1e-4
            # Where rounding hides the gain of a tiny promise, the climb has arrived.
            lost = promised[moving] < 1e-13 * np.abs(values[moving])
            reached[moving[lost & ~better]] = True
            active[moving[lost & ~better]] = False
            damping[moving] = np.where(
                better, damping[moving] / 10, 5 * np.maximum(damping[moving], 1e-3)
            )
            damping[moving] = np.where(gain > 0.5, damping[moving] / 10, damping[moving])
            active[moving[damping[moving] > 1e12]] = False
            taken = moving[better]
            points[taken], values[taken] = new_points[better], new_values[better]
            gradients[taken] = new_gradients[better]
            if len(taken):
                scales = Curvature.scales(precisions[taken])
                precisions[taken] = precision_at(points[taken], scales)
                active[taken] &= np.isfinite(precisions[taken]).all((1, 2))
    return [
        Mode(point, float(value), precision if positive_definite(precision) else None, bool(there))
        for point, value, precision, there in zip(points, values, precisions, reached, strict=True)
    ]


def guarded_loss(
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]],
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Minus a function and its gradient for a minimiser, which is sent back where it has none."""

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        with np.errstate(all="ignore"):  # a step too far is judged by what it gives
            value, gradient = value_and_gradient(at)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return 1e100, np.zeros_like(at)
        return -float(value), -gradient

    return loss


def climb_long(density: Density, start: np.ndarray, iterations: int = 1000) -> np.ndarray:
    """Climbs from one start by L-BFGS, where Hessians cost too much: the place reached, (D,)."""
    loss = guarded_loss(density.at)
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20, "gtol": 1e-6}
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x


def find_modes(density: Density, curvature: Curvature, starts: np.ndarray) -> list[Mode]:
    """The distinct modes that several starts reach, best Laplace evidence first.

    Where a climb ends without a mode, its end is kept, after the modes: the highest first.

    Args:
        density: The log density.
        curvature: Of it.
        starts: (n, D).
    """
    if curvature.structure.probes <= SIZES.products:
        patience = CLIMBING.patience if density.width > SIZES.cache else CLIMBING.iterations
        ends = climb(density.value_and_gradient, curvature, starts, patience=patience)
        reached = [end.location for end in ends if end.reached]
        if reached and not curvature.check(np.stack(reached)[:1]):
            ends = climb(density.value_and_gradient, curvature, starts, patience=patience)
    else:
        long = np.stack([climb_long(density, start) for start in starts[:3]])
        ends = climb(density.value_and_gradient, curvature, long, iterations=20)
    return distinct(ends, density.space)


def distinct(ends: list[Mode], space: LatentSpace) -> list[Mode]:
    """Merges ends whose Laplace approximations are the same; counts the starts of each.

    Modes that differ only in the labels of exchangeable parts are the same.
    """
    ends = sorted(ends, key=lambda end: (end.log_evidence, end.log_density), reverse=True)
    found: list[Mode] = []
    for end in ends:
        for i, known in enumerate(found):
            relabelled = _relabelled(end, known, space)
            if relabelled or _divergence(end, known) < CLIMBING.same:
                found[i] = replace(
                    known,
                    starts=known.starts + end.starts,
                    relabelled=known.relabelled or end.relabelled or relabelled,
                )
                break
        else:
            found.append(end)
    return found


def _relabelled(one: Mode, two: Mode, space: LatentSpace) -> bool:
    """Whether two modes hold the same values in another order, site by site."""
    if not (one.reached and two.reached) or abs(one.log_evidence - two.log_evidence) > 1e-3:
        return False
    first = space.constrain(torch.as_tensor(one.location))
    second = space.constrain(torch.as_tensor(two.location))
    same = all(torch.allclose(first[n], second[n], rtol=1e-3, atol=1e-6) for n in first)
    return not same and all(
        torch.allclose(
            first[name].flatten().sort().values,
            second[name].flatten().sort().values,
            rtol=1e-3,
            atol=1e-6,
        )
        for name in first
    )


def _divergence(one: Mode, two: Mode) -> float:
    """Symmetrised Kullback-Leibler divergence of two Laplace approximations, in nats."""
    if one.precision is None or two.precision is None:
        return np.inf
    gap = one.location - two.location
    distance = 0.5 * gap @ (one.precision + two.precision) @ gap
    if distance > 2 * CLIMBING.same:
        return distance
    shape = np.trace(
        np.linalg.solve(one.precision, two.precision)
        + np.linalg.solve(two.precision, one.precision)
    )
    return distance + 0.5 * (shape - 2 * len(gap))
