"""Where a fit begins: the best mode of the log density over several starts, and its curvature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.func import grad_and_value, vmap

from elbowroom.guides import Start
from elbowroom.guides.space import LatentSpace
from elbowroom.inference.density import score
from elbowroom.inference.isolation import isolated, placed

CURVATURE_LIMIT = 1000
"""The largest dimension for which the Hessian at the mode is taken."""


@dataclass(frozen=True)
class Mode:
    """A local maximum of the log density over unconstrained coordinates.

    Attributes:
        location: Its place, (D,).
        log_density: There.
        precision: Minus the Hessian there, or None if it is not positive definite or D is large.
        log_evidence: By Laplace's method; minus infinity without a precision.
    """

    location: np.ndarray
    log_density: float
    precision: np.ndarray | None
    log_evidence: float


def log_density_function(
    model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> Callable[[Tensor], Tensor]:
    """The log density of the flat unconstrained vector, Jacobians included: (D,) to ()."""

    def log_density(u: Tensor) -> Tensor:
        parts = space.split(u)
        values = {site.name: site.transform(parts[site.name]) for site in space.sites}
        total = score(model, arguments, values, space).log_joint
        for site in space.sites:
            jacobian = site.log_abs_det_jacobian(parts[site.name], values[site.name])
            total = total + jacobian.sum()
        return total

    return log_density


def _value_and_gradient(
    log_density: Callable[[Tensor], Tensor], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log density and gradient at each row of `points`: (n,), (n, D)."""
    batch = torch.as_tensor(points)
    # Some distributions' gradients cannot be batched; one by one they can.
    try:
        gradient, value = vmap(grad_and_value(log_density))(batch)
    except (RuntimeError, NotImplementedError):
        values, gradients = [], []
        for point in batch:
            u = point.clone().requires_grad_()
            values.append(log_density(u))
            gradients.append(torch.autograd.grad(values[-1], u)[0])
        value, gradient = torch.stack(values), torch.stack(gradients)
    return value.detach().numpy(), gradient.detach().numpy()


def find_mode(log_density: Callable[[Tensor], Tensor], start: np.ndarray) -> Mode:
    """Climbs to a mode by L-BFGS, again in coordinates scaled by the curvature found there.

    Args:
        log_density: Of a flat vector (D,), float64.
        start: (D,).
    """
    size = len(start)
    location, whitening = start, np.eye(size)
    value = -np.inf
    precision = None
    for _ in range(4):
        # The arguments are bound now, since the next round changes them.
        def loss(a: np.ndarray, origin=location, factor=whitening) -> tuple[float, np.ndarray]:
            values, gradients = _value_and_gradient(log_density, (origin + factor @ a)[None])
            if not (np.isfinite(values[0]) and np.isfinite(gradients[0]).all()):
                return 1e100, np.zeros(size)
            return -float(values[0]), -(factor.T @ gradients[0])

        options = {"maxiter": 200, "maxfun": 400, "maxcor": 20}
        result = minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
        location, value = location + whitening @ result.x, -float(result.fun)
        if size > CURVATURE_LIMIT:
            return Mode(location, value, None, -np.inf)
        precision = _precision(log_density, location)
        if precision is None:
            return Mode(location, value, None, -np.inf)
        whitening = np.linalg.inv(np.linalg.cholesky(precision)).T
        _, gradient = _value_and_gradient(log_density, location[None])
        if np.square(whitening.T @ gradient[0]).sum() < 1e-6:  # Newton decrement, in nats
            break
    log_determinant = np.linalg.slogdet(precision)[1]
    evidence = value + 0.5 * size * np.log(2 * np.pi) - 0.5 * log_determinant
    return Mode(location, value, precision, float(evidence))


def _precision(log_density: Callable[[Tensor], Tensor], at: np.ndarray) -> np.ndarray | None:
    """Minus the Hessian, by central differences of the gradient; None if not positive definite."""
    step = 1e-4 * np.maximum(1.0, np.abs(at))
    points = np.concatenate([at + np.diag(step), at - np.diag(step)])
    _, gradients = _value_and_gradient(log_density, points)
    hessian = (gradients[: len(at)] - gradients[len(at) :]) / (2 * step[:, None])
    precision = -(hessian + hessian.T) / 2
    if not np.isfinite(precision).all():
        return None
    values = np.linalg.eigvalsh(precision)
    return precision if values[0] > 1e-10 * values[-1] else None


def find_start(
    model: Callable[..., Any],
    arguments: dict[str, Any],
    space: LatentSpace,
    candidates: list[dict[str, Tensor]],
    restarts: int,
    seed: int,
) -> tuple[Start, list[float]]:
    """The best mode over several starts, by Laplace's estimate of the evidence.

    Models with point parameters or latents for each row begin near the origin of the unconstrained
    space instead: their mode is no guide to their posterior. They begin at small random values,
    since at equal ones a decoder has nothing to tell rows apart by.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        space: Its latent space.
        candidates: Values of the sites to climb from; if there are too few, the origin and
            random points about it follow.
        restarts: How many starts.
        seed: Of the random starts.

    Returns:
        The start in the default dtype, and the log evidence (or density) that each start reached.
    """
    dtype = torch.get_default_dtype()
    if space.has_parameters or space.local_continuous or not space.sites:
        return Start(0.1 * torch.randn(space.dimension)), []
    with isolated(seed, dtype=torch.float64):
        double = placed(arguments, torch.float64, torch.device("cpu"))
        log_density = log_density_function(model, double, space)
        points = [
            space.unconstrain({k: v.double().cpu() for k, v in values.items()}).numpy()
            for values in candidates
        ]
        random = np.random.default_rng(seed)
        while len(points) < restarts:
            scale = 0.0 if not points else 1.0
            points.append(scale * random.uniform(-2, 2, space.dimension))
        modes = [find_mode(log_density, point) for point in points[:restarts]]
    best = max(modes, key=lambda mode: (mode.log_evidence, mode.log_density))
    if not np.isfinite(best.log_density) or abs(best.log_density) > 1e90:
        return Start(torch.zeros(space.dimension)), []
    precision = None if best.precision is None else torch.as_tensor(best.precision).to(dtype)
    reached = [m.log_evidence if best.precision is not None else m.log_density for m in modes]
    location = best.location
    if precision is None:
        # Without a proper mode the climb may have run off to a boundary: begin where it began.
        location = points[int(np.argmax([mode.log_density for mode in modes]))]
    return Start(torch.as_tensor(location).to(dtype), precision), reached
