"""Where climbs begin: spread out as the prior is and farther, and where no known mode explains.

The candidates are draws of the prior, nearer to its middle and twice as far from it, its corners,
points near the origin, draws about each known mode that are far wider than it, and its reflections.
They go a few steps uphill, and the next climbs begin at those whose density then exceeds most what
the known modes account for.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from scipy.linalg import solve_triangular
from scipy.stats import qmc
from torch.func import vmap

from elbowroom.density.branches import MOST
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.mixtures import Mixture
from elbowroom.density.modes import Mode, find_modes
from elbowroom.guides.roots import factor_of_inverse
from elbowroom.problem.batchable import Batchable


@dataclass(frozen=True)
class StartCandidates:
    """Where candidates for starts lie, and how they are judged."""

    prior_draws: int = 64
    """Draws of the prior."""
    few_prior_draws: int = 8
    """The same of a prior that can only be sampled one draw at a time."""
    numbers: int = 3_000_000
    """Numbers in the candidates' evaluations, at most."""
    of_each_kind: int = 16
    """Candidates of each kind."""
    scales: tuple[float, ...] = (0.3, 1.0, 2.0)
    """Distances of candidates from the middle of the prior, relative to its draws'."""
    corners: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
    """Distances of points on the diagonal from the middle of the prior, in its sds."""
    wider: tuple[tuple[float, int], ...] = ((3.0, 48), (10.0, 48), (30.0, 24))
    """Distances of candidates from the best mode, in its sds, and how many there are at each: the
    basin of a narrower mode is a cone that few directions meet."""
    farther: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Distances from the origin, in each coordinate, at which a point in the support is sought."""
    reflected: int = 4
    """Modes that have candidates about them."""
    uphill: int = 8
    """Steps that candidates go uphill before they are judged."""
    arrived: float = 1e-2
    """Nats that a step gains, below which a candidate stops."""
    unexplained: float = 2.0
    """Nats by which a candidate's density must exceed what the known modes account for."""
    grid_points: tuple[int, ...] = (1024, 8192)
    """Points that fill a box in one and in two dimensions."""
    grid_reach: tuple[float, ...] = (20.0, 10.0)
    """Half of the side of the box, in sds."""
    line_points: int = 64
    """Points on a line through a mode."""
    line_reach: float = 24.0
    """How far the line goes, in sds."""
    near: float = 0.5
    """Nats, and squared sds, from a mode within which a candidate has come to it."""
    apart: float = 1.0
    """The least mean squared distance of two starts, in the best mode's sds."""


CANDIDATES = StartCandidates()


class Starts:
    """Candidates for the starts of climbs.

    Args:
        density: The log density.
        random: Of the candidates.

    Attributes:
        prior: Draws of the prior, unconstrained, (n, D); none where it has no sampler.
        climbed: Where the latest candidates came to, (n, D).
    """

    def __init__(self, density: Density, random: np.random.Generator) -> None:
        self.density, self.random = density, random
        self.most = max(
            CANDIDATES.few_prior_draws,
            CANDIDATES.numbers // (CANDIDATES.uphill * max(density.width, density.dimension)),
        )
        self.prior = prior_draws(density, min(CANDIDATES.prior_draws, self.most))
        self.climbed = np.zeros((0, density.dimension))
        self._next = iter(self.prior)
        self._parts: np.ndarray | None = None

    def first(self) -> Iterator[np.ndarray]:
        """The origin, then prior draws and random points in turn, each (D,)."""
        yield np.zeros(self.density.dimension)
        while True:
            drawn = next(self._next, None)
            if drawn is not None:
                yield drawn
            yield self.random.uniform(-2, 2, self.density.dimension)

    def feasible(self) -> np.ndarray | None:
        """The nearest point found to the origin with a finite density, (D,).

        The support of what was observed may depend on latents, such as `Uniform(0, theta)`: the
        origin is then outside. Points are tried ever farther away, in all directions, along each
        coordinate, and along the diagonal.
        """
        size, random = self.density.dimension, self.random
        for reach in CANDIDATES.farther:
            normal = reach * random.standard_normal((CANDIDATES.of_each_kind, size))
            along = reach * np.concatenate([np.eye(size), np.ones((1, size))])
            points = np.concatenate([along, -along, normal])[: max(self.most, 1)]
            values, gradients = self.density.value_and_gradient(points)
            found = points[np.isfinite(values) & np.isfinite(gradients).all(1)]
            if len(found):
                return found[np.argmin(np.square(found).sum(1))]
        finite = np.isfinite(self.density.value(self.prior)) if len(self.prior) else []
        return next(iter(self.prior[finite]), None) if len(self.prior) else None

    def unexplained(self, modes: Sequence[Mode], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Places that the known modes explain least, and how many candidates came to each mode.

        Args:
            modes: With a precision each, the best first.
            count: Of places, at most.

        Returns:
            Places far from each other, (n, D); and a number for each mode, (modes,).
        """
        roots = [_root(mode) for mode in modes]
        covariances = [root @ root.T for root in roots]
        promises = np.array([mode.promise for mode in modes])
        explained = Mixture.of(
            np.exp(promises - promises[0]),
            np.stack([mode.location for mode in modes]),
            np.stack(covariances),
        )
        total = np.logaddexp.reduce(promises)

        def excess_of(values: np.ndarray, points: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore"):
                return values - explained.log_density(points) - total

        candidates = self._candidates(modes, roots)
        scanned = self._scanned(modes[0], roots[0])
        excess = excess_of(self.density.value(scanned), scanned)
        candidates = np.concatenate(
            [candidates, scanned[np.argsort(-excess)[: CANDIDATES.of_each_kind]], self.parts()]
        )
        places, values = self._uphill(candidates, roots[0])
        excess = excess_of(values, places)
        # Where a density has lost its digits it may be high by chance.
        kept = ~(excess > CANDIDATES.unexplained)
        kept[~kept] = self.density.steady(places[~kept], modes[0].location)
        places, values, excess = places[kept], values[kept], excess[kept]
        self.climbed = places
        order = np.argsort(-excess)
        chosen: list[int] = []
        for i in order[excess[order] > CANDIDATES.unexplained]:
            gaps = solve_triangular(roots[0], (places[chosen] - places[i]).T, lower=True)
            if len(chosen) < count and (np.square(gaps).mean(0) > CANDIDATES.apart).all():
                chosen.append(int(i))
        arrived = [
            (values > mode.log_density - CANDIDATES.near)
            & (
                np.square(solve_triangular(root, (places - mode.location).T, lower=True)).sum(0)
                < CANDIDATES.near
            )
            for mode, root in zip(modes, roots, strict=True)
        ]
        return places[chosen], np.sum(arrived, axis=1)

    def parts(self) -> np.ndarray:
        """The modes of each part of a density that is a sum of several, (n, D)."""
        if self._parts is None:
            density, found = self.density, []
            for branch in range(min(density.branches(), MOST)):
                part = Density(density.model, density.arguments, density.space, branch=branch)
                starts = np.concatenate([self.prior[:2], np.zeros((1, density.dimension))])
                found += find_modes(part, Curvature(part), starts)
            places = [mode.location for mode in found if np.isfinite(mode.location).all()]
            self._parts = np.stack(places) if places else np.zeros((0, density.dimension))
        return self._parts

    def _scanned(self, mode: Mode, root: np.ndarray) -> np.ndarray:
        """Points close together about a mode, (n, D), between which no narrow mode hides.

        They fill a box in one or two dimensions. In more they lie on lines: along the coordinates,
        the diagonal that moves all of them alike, and the widest direction.
        """
        size = self.density.dimension
        if size <= len(CANDIDATES.grid_reach) and self.most >= CANDIDATES.grid_points[size - 1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a number of points that is no power of two
                even = qmc.Sobol(size, rng=self.random).random(CANDIDATES.grid_points[size - 1])
            return mode.location + CANDIDATES.grid_reach[size - 1] * (2 * even - 1) @ root.T
        sds = np.linalg.norm(root, axis=1)
        widest = root @ np.linalg.svd(root)[2][0]
        lines = np.concatenate([sds[None], widest[None], np.diag(sds)])
        lines = lines[: max(1, self.most // CANDIDATES.line_points)]
        at = CANDIDATES.line_reach * np.linspace(-1, 1, CANDIDATES.line_points)
        return mode.location + (at[:, None, None] * lines).reshape(-1, size)

    def _uphill(self, points: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The points a few steps uphill, in the units of a mode, and the log density there."""
        points = points.copy()
        values, gradients = self.density.value_and_gradient(points)
        steps, going = np.ones(len(points)), np.arange(len(points))
        for _ in range(CANDIDATES.uphill):
            if not len(going):
                break
            with np.errstate(all="ignore"):
                move = (gradients[going] @ root) @ root.T
                ahead = points[going] + steps[going, None] * move
                new_values, new_gradients = self.density.value_and_gradient(ahead)
                usable = np.isfinite(new_values) & np.isfinite(new_gradients).all(1)
                gain = new_values - values[going]
                better = usable & ~(gain < 0)
            moved = going[better]
            points[moved], values[moved] = ahead[better], new_values[better]
            gradients[moved] = new_gradients[better]
            steps[going] = np.where(better, np.minimum(1.5 * steps[going], 1.0), steps[going] / 4)
            going = going[~(better & (gain < CANDIDATES.arrived))]
        return points, values

    def _candidates(self, modes: Sequence[Mode], roots: Sequence[np.ndarray]) -> np.ndarray:
        size, random, prior = self.density.dimension, self.random, self.prior
        if not len(prior):
            prior = random.uniform(-2, 2, (CANDIDATES.of_each_kind, size))
        middle, spread = np.median(prior, axis=0), prior.std(0)
        parts = [random.uniform(-2, 2, (CANDIDATES.of_each_kind, size))]
        parts += [
            middle
            + scale * (prior[random.integers(len(prior), size=CANDIDATES.of_each_kind)] - middle)
            for scale in CANDIDATES.scales
        ]
        signs = random.choice([-1.0, 1.0], (CANDIDATES.of_each_kind, size))
        parts.append(middle + signs * spread)
        # What moves one coordinate often moves them all alike.
        parts += [middle + corner * np.outer([1.0, -1.0], spread) for corner in CANDIDATES.corners]
        for index, (mode, root) in enumerate(
            [*zip(modes, roots, strict=True)][: CANDIDATES.reflected]
        ):
            for width, most in CANDIDATES.wider:
                normal = random.standard_normal(
                    (most if index == 0 else CANDIDATES.of_each_kind, size)
                )
                parts.append(mode.location + width * normal @ root.T)
            turned = np.tile(mode.location, (min(size, CANDIDATES.of_each_kind), 1))
            picked = random.permutation(size)[: len(turned)]
            turned[np.arange(len(turned)), picked] *= -1
            parts += [turned, -mode.location[None], (2 * middle - mode.location)[None]]
        found = np.concatenate(parts)
        return found[random.permutation(len(found))[: self.most]]


def _root(mode: Mode) -> np.ndarray:
    """The Cholesky factor of a mode's covariance."""
    assert mode.precision is not None
    return factor_of_inverse(torch.as_tensor(mode.precision)).numpy()


def prior_draws(density: Density, count: int) -> np.ndarray:
    """Draws of the latent sites from the model, unconstrained, (draws, D).

    They are drawn in one batched call where the model allows it, else a few one by one; there are
    none where a prior has no sampler.
    """
    space = density.space

    def draw(_: torch.Tensor) -> torch.Tensor:
        nodes: Any = poutine.trace(density.model).get_trace(**density.arguments).nodes
        return space.unconstrain({site.name: nodes[site.name]["value"] for site in space.sites})

    # An improper prior, or a model that cannot be run at an unlikely draw of its own.
    failures = (NotImplementedError, ValueError, RuntimeError, KeyError, TypeError)
    drawn: list[torch.Tensor] = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that no one asked for
        try:
            with Batchable():
                drawn = [*vmap(draw, randomness="different")(torch.zeros(count))]
        except failures:
            for _ in range(min(count, CANDIDATES.few_prior_draws)):
                try:
                    drawn.append(draw(torch.zeros(())))
                except failures:
                    continue
    if not drawn:
        return np.zeros((0, density.dimension))
    points = torch.stack(drawn).double().numpy()
    return points[np.isfinite(points).all(1)]
