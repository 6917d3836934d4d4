"""Where a fit begins: the best mode of the log density over several starts, and its curvature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from elbowroom.guides import Start
from elbowroom.guides.space import LatentSpace
from elbowroom.inference.density import score
from elbowroom.inference.isolation import isolated, placed

VALUES_AT_ONCE = 1_000_000
"""Numbers of data times points in one batched evaluation, for the memory's sake."""
NEAR_ENOUGH = 1e-2
"""The Newton decrement, in nats, below which a point counts as a mode."""
CURVATURE_LIMIT = 1000
"""The largest dimension for which the Hessian at the mode is taken."""


@dataclass(frozen=True)
class Mode:
    """A local maximum of the log density over unconstrained coordinates.

    Attributes:
        location: Its place, (D,).
        log_density: There.
        precision: Minus the Hessian there; None if it is not positive definite, the climb did not
            reach a mode, or D is large.
        log_evidence: By Laplace's method; minus infinity without a precision.
    """

    location: np.ndarray
    log_density: float
    precision: np.ndarray | None
    log_evidence: float


class LogDensity:
    """The log density of the flat unconstrained vector, Jacobians included, and its gradient.

    It is traced once for each number of points to a flat graph of tensor operations, which is
    compared with the model itself before it is used; a model that cannot be traced is run.
    """

    def __init__(
        self, model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
    ) -> None:
        self.model, self.arguments, self.space = model, arguments, space
        self._graphs: dict[int, Callable[[Tensor], Any]] = {}

    def __call__(self, u: Tensor) -> Tensor:
        """The log density at one point, (D,) to ()."""
        parts = self.space.split(u)
        values = {site.name: site.transform(parts[site.name]) for site in self.space.sites}
        total = score(self.model, self.arguments, values, self.space).log_joint
        for site in self.space.sites:
            total = total + site.log_abs_det_jacobian(parts[site.name], values[site.name]).sum()
        return total

    def value_and_gradient(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density and gradient at each row of `points`: (n,), (n, D)."""
        numbers = sum(v.numel() for v in self.arguments.values() if isinstance(v, Tensor))
        chunk = max(1, min(len(points), VALUES_AT_ONCE // (numbers + 1)))
        values, gradients = [], []
        for begin in range(0, len(points), chunk):
            # The last chunk is filled up, so that one graph serves all.
            rows = np.arange(begin, begin + chunk).clip(max=len(points) - 1)
            batch = torch.as_tensor(points[rows])
            if chunk not in self._graphs:
                self._graphs[chunk] = self._traced(batch)
            gradient, value = self._graphs[chunk](batch)
            kept = min(chunk, len(points) - begin)
            values.append(value.detach().numpy()[:kept])
            gradients.append(gradient.detach().numpy()[:kept])
        return np.concatenate(values), np.concatenate(gradients)

    def _traced(self, batch: Tensor) -> Callable[[Tensor], Any]:
        def batched(points: Tensor) -> Any:
            return vmap(grad_and_value(self))(points)

        try:
            graph = make_fx(batched)(batch)
            elsewhere = batch + 0.1
            for traced, eager in zip(graph(elsewhere), batched(elsewhere), strict=True):
                torch.testing.assert_close(traced, eager, rtol=1e-6, atol=1e-6, equal_nan=True)
        # Tracing can fail in as many ways as there are models: they are all run as they stand.
        except Exception:
            return self._one_by_one
        return graph

    def _one_by_one(self, points: Tensor) -> Any:
        values, gradients = [], []
        for point in points:
            u = point.clone().requires_grad_()
            values.append(self(u))
            gradients.append(torch.autograd.grad(values[-1], u)[0])
        return torch.stack(gradients), torch.stack(values)


def find_mode(log_density: LogDensity, start: np.ndarray) -> Mode:
    """Climbs to a mode by L-BFGS, again in coordinates scaled by the curvature found there.

    Args:
        log_density: Of a model on float64 arguments.
        start: (D,).
    """
    size = len(start)
    location, whitening = start, np.eye(size)
    value = -np.inf
    for _ in range(4):
        # The arguments are bound now, since the next round changes them.
        def loss(
            a: np.ndarray, origin: np.ndarray = location, factor: np.ndarray = whitening
        ) -> tuple[float, np.ndarray]:
            values, gradients = log_density.value_and_gradient((origin + factor @ a)[None])
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
        _, gradient = log_density.value_and_gradient(location[None])
        decrement = np.square(whitening.T @ gradient[0]).sum()  # in nats, twice what is left
        if decrement < 1e-6:
            break
    if decrement > NEAR_ENOUGH:
        return Mode(location, value, None, -np.inf)
    log_determinant = 2 * np.log(np.abs(np.diag(whitening))).sum()  # of the covariance
    evidence = value + 0.5 * size * np.log(2 * np.pi) + 0.5 * log_determinant
    return Mode(location, value, precision, float(evidence))


def _precision(log_density: LogDensity, at: np.ndarray) -> np.ndarray | None:
    """Minus the Hessian, by central differences of the gradient; None if not positive definite."""
    step = 1e-4 * np.maximum(1.0, np.abs(at))
    points = np.concatenate([at + np.diag(step), at - np.diag(step)])
    _, gradients = log_density.value_and_gradient(points)
    hessian = (gradients[: len(at)] - gradients[len(at) :]) / (2 * step[:, None])
    precision = -(hessian + hessian.T) / 2
    if not np.isfinite(precision).all():
        return None
    scales = np.sqrt(np.abs(np.diag(precision)))
    if (np.diag(precision) <= 0).any():
        return None
    # The columns' units make no direction flat: it is judged with a unit diagonal.
    values = np.linalg.eigvalsh(precision / np.outer(scales, scales))
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
        log_density = LogDensity(model, double, space)
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
