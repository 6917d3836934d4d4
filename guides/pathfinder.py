"""Pathfinder, a guide for any model with continuous latents.

Zhang, Carpenter, Gelman and Vehtari, 2022, "Pathfinder: parallel quasi-Newton variational
inference". The inverse Hessian at each point of a path is that of the last steps and gradient
changes.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import minimize

from elbowroom.errors import GuideError
from elbowroom.guides import Start, register
from elbowroom.guides.auto import start_normal
from elbowroom.guides.families import FixedDraws, Found, Search
from elbowroom.guides.space import LatentSpace

PATHS, PATH_DRAWS, PATH_MEMORY = 4, 20, 6


def best_on_paths(search: Search) -> Found:
    """The Normal with the highest ELBO along paths of L-BFGS.

    Raises:
        GuideError: If none has a finite ELBO.
    """
    density, random = search.density, search.random
    constant = 0.5 * density.dimension * (1 + np.log(2 * np.pi))
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    history: list[float] = []
    starts = [search.first]
    starts += [random.uniform(-2, 2, density.dimension) for _ in range(PATHS - 1)]
    for start in starts:
        for mean, covariance in _path(search.loss, start):
            factor = np.linalg.cholesky(covariance)
            draws = random.standard_normal((PATH_DRAWS, density.dimension))
            values = density.value(mean + draws @ factor.T)
            elbo = float(values.mean() + np.log(np.diag(factor)).sum() + constant)
            history.append(elbo)
            if np.isfinite(elbo) and (best is None or elbo > best[0]):
                best = elbo, mean, covariance
    if best is None:
        raise GuideError(
            "pathfinder found no point with a finite ELBO; fit with --engine svi --guide "
            "mean_field."
        )
    reason = f"the best of {len(history)} Normals along {PATHS} paths of L-BFGS."
    return Found(best[1], best[2], reason, history)


def _path(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and covariance of a Normal at each point of a path of L-BFGS."""
    visited: list[tuple[np.ndarray, np.ndarray]] = []

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


@register(
    "pathfinder",
    "the best Normal along paths of a quasi-Newton climb",
    dense=True,
    engines=("fixed_draws",),
    fixed_draws=FixedDraws(search=best_on_paths),
)
def pathfinder(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Zhang, Carpenter, Gelman and Vehtari, 2022, "Pathfinder"."""
    return start_normal(space, start)
