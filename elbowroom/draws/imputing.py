"""Missing cells of rows: draws of them given the cells that are there."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp
from torch import Tensor

from elbowroom.draws.row_weights import plate_of_rows
from elbowroom.guides.space import Unobserved, base_of, of_each_row

Normals = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A row as a mixture of Normals: weights (K,), means (K, columns), covariances (K, columns, ...)"""
WARM_UP = 200
"""Steps of a chain that are left out."""


def from_normals(
    rows: np.ndarray, normals: list[Normals], random: np.random.Generator
) -> np.ndarray:
    """Draws of the missing cells of rows that are mixtures of Normals, which are exact.

    For each draw of the parameters: the component from its probability given the cells that are
    there, and the missing cells from the Normal that is left of it.

    Args:
        rows: With NaN where a cell is missing, (rows, columns).
        normals: For each draw, the distribution of a row.
        random: Of the draws.

    Returns:
        (draws, rows, columns), the cells that are there as they are.

    Example:
        >>> one = (np.ones(1), np.zeros((1, 2)), np.array([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> rows = np.array([[1.0, np.nan]])
        >>> found = from_normals(rows, [one] * 4000, np.random.default_rng(0))[:, 0, 1]
        >>> found.mean().round(1), found.std().round(1)  # 0.8, and the root of 1 - 0.8²
        (np.float64(0.8), np.float64(0.6))
    """
    filled = np.repeat(rows[None], len(normals), 0)
    missing = np.isnan(rows)
    patterns, which = np.unique(missing, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        if not pattern.any():
            continue
        here = np.flatnonzero(which.reshape(-1) == k)
        there, last = rows[np.ix_(here, ~pattern)], None
        for draw, normal in enumerate(normals):
            weights, means, covariances = normal
            if normal is not last:  # points are the same for all draws
                last = normal
                given = [
                    _conditional(there, mean, covariance, pattern)
                    for mean, covariance in zip(means, covariances, strict=True)
                ]
            log_shares = np.log(weights)[:, None] + np.stack([each[0] for each in given])
            shares = np.exp(log_shares - logsumexp(log_shares, axis=0))  # (components, rows)
            drawn = (random.random(len(here)) > np.cumsum(shares, 0)[:-1]).sum(0)
            for component, (_, centre, factor) in enumerate(given):
                own = drawn == component
                noise = random.standard_normal((own.sum(), pattern.sum())) @ factor.T
                filled[draw][np.ix_(here[own], pattern)] = centre[own] + noise
    return filled


def _conditional(
    there: np.ndarray, mean: np.ndarray, covariance: np.ndarray, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is there has this log density, and what is missing these means and this factor."""
    inner = covariance[np.ix_(missing, missing)]
    if missing.all():
        centre = np.repeat(mean[None], len(there), 0)
        return np.zeros(len(there)), centre, np.linalg.cholesky(inner)
    factor = cho_factor(covariance[np.ix_(~missing, ~missing)], lower=True)
    cross = covariance[np.ix_(missing, ~missing)]
    away = there - mean[~missing]  # (rows, there)
    solved = cho_solve(factor, away.T).T
    log_determinant = 2 * np.log(np.diag(factor[0])).sum()
    log_density = -0.5 * (
        (away * solved).sum(1) + log_determinant + len(solved.T) * np.log(2 * np.pi)
    )
    left = inner - cross @ cho_solve(factor, cross.T)
    return log_density, mean[missing] + solved @ cross.T, np.linalg.cholesky(left)


def from_chains(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    observed: str,
    missing: Tensor,
    space: Any,
    count: int,
    dispersion: float | None = None,
) -> tuple[np.ndarray, float]:
    """Draws of the missing cells by a Markov chain for each row, from an amortised guide.

    In turn the latents are proposed by the guide and taken or not, and the missing cells drawn
    given them: Metropolis within Gibbs (Mattei and Frellsen, 2018, "Leveraging the exact likelihood
    of deep latent variable models"), which leaves the model's own posterior as it is, whatever the
    guide.

    Args:
        model: The Pyro model.
        guide: The fitted guide, with its parameters in the active store.
        arguments: Of both, with something in the place of the missing cells.
        observed: The observed site, which is also the name of its argument.
        missing: Which cells are, (rows, columns).
        space: The model's latent space.
        count: Draws after the warm-up.
        dispersion: Of shares, see `dispersion_of_shares`; they are drawn by `shares`. The chain
            itself, which is about the latents, goes on with the model's zeros and ones.

    Returns:
        (draws, rows, columns), and the share of proposals that were taken.
    """
    plate = plate_of_rows(guide, arguments, space)
    given = dict(arguments)
    x = given[observed].clone()
    found, taken = [], []

    def weigh(latents: Any) -> Tensor:
        """Log p - log q of each row's latents, given its cells as they are now."""
        drawn = poutine.trace(poutine.replay(guide, trace=latents)).get_trace(**given)
        scored = poutine.trace(poutine.replay(model, trace=latents)).get_trace(**given)
        return of_each_row(scored, plate) - of_each_row(drawn, plate)

    with torch.no_grad():
        given[observed] = x
        now: Any = poutine.trace(guide).get_trace(**given)
        for step in range(WARM_UP + count):
            new: Any = poutine.trace(guide).get_trace(**given)
            accept = torch.rand(plate.size).log() < (weigh(new) - weigh(now)).to(x)
            for name, node in now.nodes.items():
                if node["type"] == "sample" and name in space.local:
                    place = len(node["fn"].batch_shape) + plate.dim
                    shape = [1] * node["value"].dim()
                    shape[place] = -1
                    node["value"] = torch.where(
                        accept.view(shape), new.nodes[name]["value"], node["value"]
                    )
            values = {name: now.nodes[name]["value"] for name in space.local if name in now.nodes}
            freed = poutine.condition(Unobserved()(model), data=values)
            made: Any = poutine.trace(freed).get_trace(**given).nodes[observed]
            x = torch.where(missing, made["value"].to(x), x)
            given[observed] = x
            if step >= WARM_UP:
                cells = made["value"] if dispersion is None else shares(made["fn"].mean, dispersion)
                found.append(torch.where(missing, cells.to(x), x).double().cpu().numpy())
                taken.append(float(accept.double().mean()))
    return np.stack(found), float(np.mean(taken))


def dispersion_of_shares(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    observed: str,
) -> float | None:
    """How far shares spread about a Bernoulli probability, as a part of the variance of 0 and 1.

    A Bernoulli likelihood of values between 0 and 1, such as grey pixels, fits their means alone:
    it is a quasi-likelihood, whose variance is a multiple r of p (1 - p), estimated from the
    residuals (Papke and Wooldridge, 1996, "Econometric methods for fractional response variables").

    Args:
        model: The Pyro model, with its parameters in the active store.
        guide: The fitted guide, with its parameters there too.
        arguments: Of the fitted rows.
        observed: The observed site.

    Returns:
        r, in (0, 1); None where the likelihood is not Bernoulli, or all values are 0 or 1.
    """
    with torch.no_grad():
        drawn = poutine.trace(guide).get_trace(**arguments)
        node: Any = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**arguments)
        fn, x = base_of(node.nodes[observed]["fn"]), node.nodes[observed]["value"].double()
        if not isinstance(fn, dist.Bernoulli) or bool(((x == 0) | (x == 1)).all()):
            return None
        p = fn.mean.double()
        return float((x - p).square().sum() / (p * (1 - p)).sum())


def shares(mean: Tensor, dispersion: float) -> Tensor:
    """Draws of values between 0 and 1 with these means and variances dispersion x mean (1 - mean).

    They follow Beta distributions, of the shape of the means.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> drawn = shares(torch.full((20_000,), 0.3), 0.1)
        >>> round(float(drawn.mean()), 2), round(float(drawn.var() / 0.21), 2)
        (0.3, 0.1)
    """
    tiny = torch.finfo(mean.dtype).tiny ** 0.5
    whole = 1 / min(dispersion, 1 - 1e-6) - 1
    return dist.Beta((mean * whole).clamp_min(tiny), ((1 - mean) * whole).clamp_min(tiny)).sample()
