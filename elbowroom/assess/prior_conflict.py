"""Whether a prior and the data disagree, by what a fit has anyway.

A latent θ with the prior distribution function F is u = Φ⁻¹(F(θ)) in Normal scores, which has the
prior Normal(0, 1). Over data that the model makes, the posterior mean of u has the mean zero and,
by the law of total variance, the variance 1 - Var(u | data), on average. So

    z = E[u | data] / √(1 - Var(u | data))

is how many standard deviations the data are from what the prior expects of them: exactly so for a
Normal likelihood, where it is the check of Box (1980, "Sampling and Bayes' inference in scientific
modelling and robustness") of what the data tell of θ (Evans and Moshonov, 2006, "Checking for
prior-data conflict"). It tells a strong prior in the wrong place from one that the data overrule,
and both from a wide one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from arviz_base.labels import BaseLabeller
from arviz_base.sel_utils import xarray_var_iter
from pyro import poutine
from scipy import stats
from scipy.special import ndtri_exp
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform
from xarray import Dataset

from elbowroom.density.landscape import Landscape
from elbowroom.draws.groups import names_of
from elbowroom.guides.space import own_family
from elbowroom.models import name_of_prior
from elbowroom.models._priors import OfSeveralKinds
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated, placed
from elbowroom.problem.population import population_sites


@dataclass(frozen=True)
class ConflictLimits:
    """When a prior and the data disagree."""

    deviations: float = 2.8
    """Standard deviations between them from which on they do: 4 of the prior, or of what the data
    say, where these are equal."""
    named: int = 3
    """Quantities that are named."""
    least: float = 1e-6
    """The smallest share of a prior's variance that is not left, which the precision at a mode
    tells."""
    noise: float = 3.0
    """The same of draws, in standard errors of a variance."""
    largest: int = 1000
    """Numbers of a site, at most: weights of networks have no priors that anyone believes."""
    step: float = 1e-4
    """By which a value is moved to see where its prior density rises, relative to it."""


CONFLICT = ConflictLimits()


@dataclass(frozen=True)
class Posterior:
    """A Normal approximation of a posterior, in unconstrained coordinates.

    Attributes:
        location: Its centre, (D,).
        roots: Its covariance is the sum of the squares of these, (n, D).
        least: The smallest share of a prior's variance that can be told from none.
    """

    location: np.ndarray
    roots: np.ndarray
    least: float

    @classmethod
    def at(cls, landscape: Landscape) -> "Posterior | None":
        """That at the only mode; None if there are more or none.

        The mode is taken a Newton step further than a climb ends: where a strong prior hides the
        data, they are seen in its last digits.
        """
        best, density = landscape.best, landscape.density
        if best is None or best.precision is None or density is None or landscape.rows is not None:
            return None
        if len(landscape.proper) > 1:
            return None
        covariance = np.linalg.inv(best.precision)
        _, gradient = density.value_and_gradient(best.location[None])
        location = best.location + covariance @ gradient[0]
        return cls(location, np.linalg.cholesky(covariance).T, CONFLICT.least)

    @classmethod
    def of(cls, points: np.ndarray) -> "Posterior":
        """That of draws, (n, D)."""
        count = len(points)
        apart = (points - points.mean(0)) / math.sqrt(count)
        return cls(points.mean(0), apart, CONFLICT.noise * math.sqrt(2 / count))


def has_own_priors(problem: Problem) -> bool:
    """Whether the user gave priors: some of a named model, or a model with them."""
    return problem.model_name is None or bool(problem.prepared.own_priors)


def prior_conflicts(problem: Problem, posterior: Posterior, seed: int = 0) -> list[str]:
    """Says which priors and the data disagree about, if they do.

    Priors of populations, such as of the effects of groups given their standard deviation, are left
    out, as are multivariate ones. A prior whose density does not fall towards where the posterior
    is, as that of an exponential distribution near zero, does not disagree. Of a named model, only
    priors that the user gave are looked at.

    Args:
        problem: The model bound to its data.
        posterior: Of it.
        seed: Of random numbers that the model may take.

    Returns:
        A sentence that names the quantities and their priors, or nothing.
    """
    found = deviations(problem, posterior, seed)
    names = names_of(problem)
    labels: Any = BaseLabeller().make_label_flat
    arrays = Dataset({name: names.array(name, values, ()) for name, values in found.items()})
    each: Any = xarray_var_iter(arrays, skip_dims=set())
    by_label = {labels(*where): abs(float(value)) for *where, value in each}
    own = problem.prepared.own_priors
    over = {
        name: z
        for name, z in by_label.items()
        if z > CONFLICT.deviations
        and (problem.model_name is None or {name, name_of_prior(name)} & {*own})
    }
    if not over:
        return []
    words = {} if problem.model.priors is None else problem.model.priors(
        problem.prepared.arguments, problem.prepared.coords
    )  # fmt: skip
    worst = sorted(over, key=lambda name: -over[name])
    parts = []
    for name in worst[: CONFLICT.named]:
        said = words.get(name, words.get(name_of_prior(name), ""))
        parts.append(f"{name}{f', {said},' if said else ''} by {min(over[name], 999):.0f} sd")
    more = len(worst) - len(parts)
    others = f" and of {more} more quantit{'y' if more == 1 else 'ies'}" if more else ""
    return [
        f"The data disagree with the prior of {'; of '.join(parts)}{others}: check its numbers and "
        "units, or give a wider one."
    ]


def deviations(problem: Problem, posterior: Posterior, seed: int = 0) -> dict[str, np.ndarray]:
    """How far the data are from each prior, z, in standard deviations, by what is reported.

    Args:
        problem: The model bound to its data.
        posterior: Of it.
        seed: Of random numbers that the model may take.

    Returns:
        Of each site with a prior that is known here, in the site's shape; zero where the prior does
        not pull back.
    """
    space = problem.space
    written = problem.original or problem
    left_out = {*population_sites(written), *space.local, *space.per_observation}
    known = {site.name for site in written.space.sites} - left_out
    arguments = placed(problem.arguments, torch.float64, torch.device("cpu"))
    found: dict[str, np.ndarray] = {}
    with isolated(seed, dtype=torch.float64, threads=problem.threads):
        x = torch.as_tensor(posterior.location).clone().requires_grad_()
        model = poutine.condition(problem.function, space.constrain(x))
        nodes: Any = poutine.trace(model).get_trace(**arguments).nodes
        for site in space.sites:
            if site.name not in known or math.prod(site.shape) > CONFLICT.largest:
                continue
            fn, value = nodes[site.name]["fn"], nodes[site.name]["value"]
            parts = [
                (place, _deviation(scores, pulled, x, posterior))
                for place, scores, pulled in _scored(fn, value)
            ]
            if parts:
                deviations = np.zeros(value.numel())
                for place, own in parts:
                    deviations[place] = own
                found[_reported(problem, site.name)] = deviations.reshape(tuple(value.shape))
    return found


def _deviation(scores: Tensor, pulled: np.ndarray, x: Tensor, posterior: Posterior) -> np.ndarray:
    """The z of Normal scores, (k,); zero where the prior does not pull back."""
    count = len(scores)
    (slopes,) = torch.autograd.grad(
        scores, x, torch.eye(count), retain_graph=True, is_grads_batched=True
    )
    variances = np.square(posterior.roots @ slopes.numpy().T).sum(0)
    left = np.maximum(1 - variances, posterior.least)
    return np.where(pulled, scores.detach().numpy() / np.sqrt(left), 0.0)


def _reported(problem: Problem, name: str) -> str:
    """The site that the user sees instead of a latent one."""
    shown = name.removeprefix("standardised_")
    return shown if name in problem.hidden and shown in problem.space.deterministic_plates else name


def _scored(fn: Any, value: Tensor) -> Iterator[tuple[np.ndarray, Tensor, np.ndarray]]:
    """The numbers of a site in Normal scores, in parts: their places, the scores, and the pull.

    The pull is whether the prior's density rises towards the prior's centre.
    """
    fn, places = own_family(fn), np.arange(value.numel())
    transforms = getattr(fn, "transforms", [])
    if transforms and all(isinstance(each, ReshapeTransform) for each in transforms):
        fn, value = own_family(fn.base_dist), value.reshape(-1)
    if isinstance(fn, OfSeveralKinds):
        for part, place in zip(fn.parts, fn.places, strict=True):
            for inner, scores, pulled in _scored(part, value[place]):
                yield place.numpy()[inner], scores, pulled
        return
    standard = _standard(fn, value)
    if standard is None:
        return
    prior, moved = standard
    y = moved.detach().numpy()
    with np.errstate(all="ignore"):
        below, above = prior.logcdf(y), prior.logsf(y)
        u = np.where(below < above, ndtri_exp(below), -ndtri_exp(above))
        slope = np.exp(prior.logpdf(y) - stats.norm.logpdf(u))
        step = CONFLICT.step * np.abs(y)
        rise = prior.logpdf(y + step) - prior.logpdf(y - step)
        pulled = np.nan_to_num(rise * u) < 0
        linear = torch.as_tensor(np.nan_to_num(slope)) * (moved - moved.detach())
    yield places, (torch.as_tensor(u) + linear).reshape(-1), pulled.reshape(-1)


class _Folded:
    """The absolute value of what is symmetric about zero, as far as it is needed."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def logsf(self, y: np.ndarray) -> np.ndarray:
        return np.log(2) + self.base.logsf(y)

    def logcdf(self, y: np.ndarray) -> np.ndarray:
        return np.log1p(-2 * self.base.sf(y))

    def logpdf(self, y: np.ndarray) -> np.ndarray:
        return np.log(2) + self.base.logpdf(y)


def _standard(fn: Any, value: Tensor) -> tuple[Any, Tensor] | None:
    """A prior as scipy has it, and the value that it is of; None of kinds that are not known."""

    def of(*names: str) -> list[np.ndarray]:
        return [getattr(fn, name).detach().expand(value.shape).numpy() for name in names]

    kind = type(fn)
    if isinstance(fn, dist.FoldedDistribution) and isinstance(fn.base_dist, dist.StudentT):
        fn = fn.base_dist
        df, scale = of("df", "scale")
        return _Folded(stats.t(df, scale=scale)), value
    if kind in LOCATED:
        shape = of("df") if kind is dist.StudentT else []
        return LOCATED[kind](*shape), (value - fn.loc) / fn.scale
    if kind in OTHERS:
        names, make = OTHERS[kind]
        return make(*of(*names)), value
    return None


LOCATED: Mapping[Any, Any] = {
    dist.Normal: stats.norm,
    dist.StudentT: stats.t,
    dist.Cauchy: stats.cauchy,
    dist.Laplace: stats.laplace,
}
"""Families of a location and a scale, which may depend on other latents."""
OTHERS: Mapping[Any, tuple[tuple[str, ...], Any]] = {
    dist.HalfNormal: (("scale",), lambda scale: stats.halfnorm(scale=scale)),
    dist.HalfCauchy: (("scale",), lambda scale: stats.halfcauchy(scale=scale)),
    dist.Exponential: (("rate",), lambda rate: stats.expon(scale=1 / rate)),
    dist.Gamma: (("concentration", "rate"), lambda a, rate: stats.gamma(a, scale=1 / rate)),
    dist.InverseGamma: (("concentration", "rate"), lambda a, b: stats.invgamma(a, scale=b)),
    dist.LogNormal: (("loc", "scale"), lambda m, s: stats.lognorm(s, scale=np.exp(m))),
    dist.Beta: (("concentration1", "concentration0"), stats.beta),
}
"""Other families, with their numbers."""
