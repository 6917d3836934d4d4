"""How far each group of a hierarchy is centred, by how much the data tell of it.

Groups that the data know well are drawn best as they are written, those that they hardly know by
their standardised values; between the two the best form lies between (Papaspiliopoulos, Roberts
and Sköld, 2007, "A general framework for the parametrization of hierarchical models"; Gorinova,
Moore and Hoffman, 2020, "Automatic reparameterisation of probabilistic programs"). Multivariate
Normal sites, such as Gaussian processes, are written by what is known of them as a whole; see
`elbowroom.problem.informed`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.density.conditional import Conditional, Split
from elbowroom.density.density import Density
from elbowroom.density.landscape import Landscape, density_of, unclimbed
from elbowroom.draws.groups import reported_quantities
from elbowroom.draws.many_chains import MANY_CHAINS, warm_up
from elbowroom.guides.space import covariance_root, own_family
from elbowroom.problem.bound import Problem
from elbowroom.problem.informed import Form, Information
from elbowroom.problem.isolation import isolated


@dataclass(frozen=True)
class Centring:
    """How the share of centring is found."""

    windows: tuple[int, ...] = (10, 10, 15)
    """Trajectories of the standardised chains; see `ManyChains.windows`."""
    least: float = 0.3
    """The largest share of a number below which all stay standardised."""
    short: int = 10
    """Numbers of a vector, of many, below which it is either standardised or left as it is."""
    most: float = 0.5
    """The share of what is known of a short vector that is not of its prior, from which it is."""
    newton: int = 12
    """Newton steps to the mode of vectors given what their covariance depends on, at most."""
    halvings: int = 12
    """How often such a step may be halved."""
    close: float = 1e-3
    """Nats that such a step gains below which it is the last one."""
    apart: float = 1e-5
    """Size of an element of an information matrix, relative to its diagonal, that is not zero."""


CENTRING = Centring()


def partly_centred(problem: Problem, seed: int) -> tuple[Problem, Landscape]:
    """A problem with its location-scale sites centred as far as the data tell of each number.

    A few trajectories of the standardised sites z tell: where z is a posteriori given the others,
    the squared slope of the log density is on average 1 + I, where the 1 is the prior's precision
    and I the data's. Where the scale is known, the best share of centring is I / (1 + I). Where it
    may be small, the data tell less of z there, and a share that is too large makes a funnel: the
    share is that of the information beyond the prior's, (I - 1) / (I + 1), if there is any.

    Of multivariate Normal sites the same trajectories tell the whole information. They begin with
    that at the modes given random values of the other sites. Short ones in plates, such as the
    correlated effects of a group, stay as they are where the data tell most of them, and are
    standardised where they do not, since either is cheaper.

    Returns:
        The problem, and its density with places to begin at.
    """
    vectors = _Vectors(problem, seed) if problem.space.vectors else None
    forms, short = ({}, {}) if vectors is None else vectors.at_modes()
    sites = [name for name in problem.space.location_scale if short.get(name, 0.0) < CENTRING.most]
    if not sites:
        return problem, unclimbed(problem, seed)
    forms = {name: form for name, form in forms.items() if name not in short}
    standardised = problem.reparameterise(sites, forms)
    landscape = unclimbed(standardised, seed)
    density, random = landscape.density, np.random.default_rng(seed)
    assert density is not None
    with (
        isolated(seed, dtype=torch.float64, threads=problem.threads),
        np.errstate(all="ignore"),
    ):
        starts = landscape.spread(MANY_CHAINS.groups, random)
        chains, seen = warm_up(density, starts, random, CENTRING.windows)
        squares = np.mean([np.square(state.gradients).mean(0) for state in seen], axis=0)
        shares = np.clip(1 - 2 / np.maximum(squares, 1e-300), 0.0, 1.0)
        ends = chains.state.points
        few = ends[:: len(ends) // len(starts)]
        parts = standardised.space.split(torch.as_tensor(shares))
        values = density.constrained(ends if forms else few)
    centred: dict[str, Form] = {}
    numbers = [name for name in sites if name not in problem.space.vectors]
    shared = {name: parts[f"{name}_decentered"].to(problem.dtype) for name in numbers}
    if max((float(part.max()) for part in shared.values()), default=0.0) >= CENTRING.least:
        centred.update(shared)
    if not (centred or forms):
        return standardised, unclimbed(standardised, seed, few)
    own = _as_written(problem, standardised, values, seed)
    if vectors is not None and forms:
        centred.update(vectors.known(own, forms))
    changed = problem.reparameterise(sites, centred)
    with problem.session(seed):
        restated = [problem.restated(sites, centred, each) for each in own[:: len(own) // len(few)]]
        places = torch.stack([changed.space.unconstrain(each) for each in restated])
    return changed, unclimbed(changed, seed, places.double().cpu().numpy())


def has_long_vectors(problem: Problem) -> bool:
    """Whether there is a site such as a Gaussian process, whose covariance is unknown."""
    sizes = {site.name: site.shape[-1] for site in problem.space.sites if site.shape}
    return any(sizes[name] >= CENTRING.short for name in problem.space.vectors)


Values = dict[str, Tensor]


def _as_written(
    problem: Problem, standardised: Problem, values: Mapping[str, Tensor], seed: int
) -> list[Values]:
    """The values of a problem's own sites, from those of its standardised ones."""
    with problem.session(seed):
        known = reported_quantities(standardised, values)
    count = len(next(iter(values.values())))
    return [{site.name: known[site.name][i] for site in problem.space.sites} for i in range(count)]


class _Vectors:
    """The multivariate Normal sites of a problem whose covariance depends on other sites."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        space, begin = problem.space, 0
        with isolated(seed, dtype=torch.float64, threads=problem.threads):
            rest: Density = density_of(problem.without(space.vectors))
        self.given: dict[str, Conditional] = {}
        for site, size in zip(space.sites, space.sizes, strict=True):
            if site.name in space.vectors:
                blocks = np.arange(begin, begin + size).reshape(-1, site.shape[-1])
                others = np.setdiff1d(np.arange(space.dimension), blocks)
                split = Split(others, blocks)
                self.given[site.name] = Conditional(rest, split, np.zeros(space.dimension))
            begin += size

    def at_modes(self) -> tuple[dict[str, Form], dict[str, float]]:
        """What is known of each at its mode given others that are near zero, unconstrained.

        Returns:
            That, and of the short ones, which share of what is known is not of their prior.
        """
        random = np.random.default_rng(self.seed)
        points = random.uniform(-1, 1, (MANY_CHAINS.groups, self.problem.space.dimension))
        short: dict[str, float] = {}
        with isolated(self.seed, dtype=torch.float64, threads=self.problem.threads):
            for name, given in self.given.items():
                mean, factor = self._prior(name, points)
                points = _climbed(given, points, mean, factor)
                _, _, curvature = given.quadratic(points)
                told = np.trace(np.linalg.inv(_precision(curvature, factor)), axis1=-2, axis2=-1)
                if mean.shape[-1] < CENTRING.short:
                    short[name] = 1 - float(np.mean(told)) / mean.shape[-1]
        return self._known(points, self.given), short

    def _prior(self, name: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean (n, blocks, k) and Cholesky factor (n, blocks, k, k) given all sites, (n, D)."""
        space, shape, found = self.problem.space, self.given[name].split.blocks.shape, []
        for point in points:
            values = space.constrain(torch.as_tensor(point))
            with torch.no_grad():
                model = poutine.condition(self.problem.function, values)
                node: Any = poutine.trace(model).get_trace(**self.problem.arguments).nodes[name]
            loc, root = own_family(node["fn"]).loc, covariance_root(node["fn"])
            assert root is not None
            root = root.expand(*loc.shape, loc.shape[-1])
            found.append((loc.reshape(shape).numpy(), root.reshape(*shape, -1).numpy()))
        mean, factor = (np.stack(each) for each in zip(*found, strict=True))
        return mean.astype(float), factor.astype(float)

    def known(self, own: list[Values], names: Iterable[str]) -> dict[str, Form]:
        """What is known of some sites on average over draws of the posterior."""
        space = self.problem.space
        points = torch.stack([space.unconstrain(values) for values in own])
        return self._known(points.double().cpu().numpy(), names)

    def _known(self, points: np.ndarray, names: Iterable[str]) -> dict[str, Form]:
        shapes = {site.name: site.shape for site in self.problem.space.sites}
        found: dict[str, Form] = {}
        with isolated(self.seed, dtype=torch.float64, threads=self.problem.threads):
            for name in names:
                root, slope = _information(self.given[name], points)
                shape = shapes[name]
                found[name] = Information(
                    torch.as_tensor(root).reshape(*shape, shape[-1]),
                    torch.as_tensor(slope).reshape(shape),
                )
        return found


def _precision(curvature: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Of standardised vectors, (n, blocks, k, k), with what is not negative of a curvature."""
    usable = np.isfinite(curvature).all((1, 2, 3), keepdims=True)
    values, vectors = np.linalg.eigh(np.where(usable, curvature, 0.0))
    seen = np.sqrt(np.maximum(values, 0.0))[..., None] * (np.swapaxes(vectors, -1, -2) @ factor)
    return np.asarray(np.eye(factor.shape[-1]) + np.swapaxes(seen, -1, -2) @ seen)


def _climbed(
    given: Conditional, points: np.ndarray, mean: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """Points (n, D) whose blocks, of Normal priors, are at their mode given the others.

    Args:
        given: The blocks of a log density without their priors.
        points: Where to begin.
        mean: Of the priors, (n, blocks, k).
        factor: Their Cholesky factors, (n, blocks, k, k).
    """
    blocks = given.split.blocks
    z = np.zeros_like(mean)
    shares = 0.5 ** np.arange(CENTRING.halvings)[:, None, None, None]

    def at(z: np.ndarray) -> np.ndarray:
        moved = np.repeat(points[None], len(z), axis=0)
        moved[..., blocks] = mean + (factor @ z[..., None])[..., 0]
        return moved

    for _ in range(CENTRING.newton):
        here = at(z[None])[0]
        before, gradients, curvature = given.quadratic(here)
        transposed = np.swapaxes(factor, -1, -2)
        precision = _precision(curvature, factor)
        uphill = (transposed @ np.nan_to_num(gradients)[..., None])[..., 0] - z
        steps = np.linalg.solve(precision, uphill[..., None])[..., 0]
        tried = z + shares * steps  # (halvings, n, blocks, k)
        values = given.density.value(at(tried).reshape(-1, points.shape[1])).reshape(
            len(shares), -1
        )
        values = values - 0.5 * np.square(tried).sum((2, 3))
        gained = values.max(0) - (before - 0.5 * np.square(z).sum((1, 2)))
        best = values.argmax(0)
        better = gained > 0
        z = np.where(better[:, None, None], tried[best, np.arange(len(z))], z)
        if not (gained > CENTRING.close).any():
            break
    return at(z[None])[0]


def _information(given: Conditional, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The root R, (blocks, k, k), and slope, (blocks, k), of the information on average."""
    values, gradients, curvature = given.quadratic(points)
    usable = np.isfinite(values) & np.isfinite(curvature).all((1, 2, 3))
    if not usable.any():
        size = given.split.blocks.shape
        return np.zeros((*size, size[1])), np.zeros(size)
    precision = curvature[usable].mean(0)
    sizes = np.sqrt(np.abs(np.diagonal(precision, axis1=-2, axis2=-1)))
    small = CENTRING.apart * sizes[..., :, None] * sizes[..., None, :]
    precision = np.where(np.abs(precision) > small, precision, 0.0)
    values, vectors = np.linalg.eigh(precision)
    own = np.diagonal(precision, axis1=-2, axis2=-1)
    eye = np.eye(own.shape[-1], dtype=bool)
    if not precision[..., ~eye].any():
        root = np.sqrt(np.maximum(own, 0.0))[..., None] * eye
    else:
        root = np.sqrt(np.maximum(values, 0.0))[..., None] * np.swapaxes(vectors, -1, -2)
    whole = np.swapaxes(root, -1, -2) @ root
    at = points[usable][:, given.split.blocks].mean(0)
    return root, gradients[usable].mean(0) + (whole @ at[..., None])[..., 0]
