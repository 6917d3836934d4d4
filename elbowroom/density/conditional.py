"""Some coordinates of a log density given the others: their mode and curvature, block by block.

In a hierarchical model the parameters of a group are nearly Normal once those that all groups share
are known, though not so together: their spread is one of the shared ones. The same holds for the
coefficients of a spline or the values of a Gaussian process, given their scales.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaln

from elbowroom.density.curvature import CURVATURE, Curvature
from elbowroom.density.density import Density


@dataclass(frozen=True)
class Splitting:
    """How coordinates are drawn given others."""

    most_shared: int = 40
    """The most coordinates that are drawn first."""
    most_together: int = 200
    """The largest block of those drawn given them."""
    small: int = 8
    """The largest block of which each coordinate is probed by itself."""
    nothing: float = 1e-6
    """A correlation given all others below which two coordinates of a block may be probed at
    once."""
    iterations: int = 8
    """Newton steps to a conditional mode, at most."""
    close: float = 0.05
    """The squared length of a Newton step, in conditional sds, below which it is the last one."""
    halvings: int = 6
    """How often a Newton step that leads downhill is halved."""
    points: int = 500
    """Points whose conditional modes are searched at a time, at most."""
    numbers: int = 2_000_000
    """Numbers in those points, at most."""


SPLITTING = Splitting()


@dataclass(frozen=True)
class Split:
    """Coordinates that are drawn first, and blocks that are drawn given them.

    Attributes:
        shared: Indices, (S,).
        blocks: Indices, (blocks, k): given the shared ones, no block depends on another.
    """

    shared: np.ndarray
    blocks: np.ndarray


def split_of(curvature: Curvature) -> Split | None:
    """How a model's coordinates part, if they do.

    The elements of a plate are the blocks where they are independent given the rest; else the
    real-valued vectors make one block, and scales and scalars are what they share.
    """
    structure, space = curvature.structure, curvature.density.space
    if structure.together.size:
        found = Split(structure.apart, structure.together)
    else:
        apart: list[int] = []
        together: list[int] = []
        begin = 0
        for site, size in zip(space.sites, space.sizes, strict=True):
            (together if size > 1 and site.real else apart).extend(range(begin, begin + size))
            begin += size
        found = Split(np.array(apart, dtype=int), np.array([together], dtype=int))
    enough = (
        0 < len(found.shared) <= SPLITTING.most_shared
        and 0 < found.blocks.shape[1] <= SPLITTING.most_together
    )
    return found if enough else None


class Conditional:
    """The blocks of a log density given the coordinates that they share.

    Args:
        density: The log density.
        split: Which coordinates are blocks.
        mean: Where the search for a conditional mode begins where the shared coordinates have
            this mean, (D,).
        slope: How that place moves with the shared coordinates, (blocks · k, S); it does not by
            default.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from elbowroom.guides.space import LatentSpace
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        ...     with pyro.plate("group", 2):
        ...         group = pyro.sample("group_mean", dist.Normal(mean, 1.0))
        ...         pyro.sample("y", dist.Normal(group, 1.0), obs=y)
        >>> arguments = {"y": torch.tensor([3.0, 5.0], dtype=torch.float64)}
        >>> density = Density(model, arguments, LatentSpace.of(model, arguments))
        >>> split = split_of(Curvature(density))
        >>> split.shared, split.blocks
        (array([0]), array([[1],
               [2]]))
        >>> conditional = Conditional(density, split, np.zeros(3))
        >>> points, factors = conditional.settled(np.array([[1.0, 0.0, 0.0]]))
        >>> points.round(6), np.square(factors).round(6).ravel()  # of the precision
        (array([[1., 2., 3.]]), array([2., 2.]))
    """

    def __init__(
        self, density: Density, split: Split, mean: np.ndarray, slope: np.ndarray | None = None
    ) -> None:
        self.density, self.split, self.mean = density, split, mean
        count, size = split.blocks.shape
        self.slope = np.zeros((count * size, len(split.shared))) if slope is None else slope
        self._known = np.ones((size, size), dtype=bool)
        self._probes = np.eye(size, dtype=bool)
        if size > SPLITTING.small:
            self._known = self._interacting()
            self._probes = _probed_together(self._known)
        # Tails that cost a few in a hundred draws, whatever the number of blocks.
        self.freedom = max(7.0, (6.0 * count * size) ** 0.5, size / 2)

    @property
    def cost(self) -> int:
        """About how many gradients of the log density a draw takes."""
        return 2 * (2 * len(self._probes) + 1)

    def _interacting(self) -> np.ndarray:
        """Which coordinates of a block depend on each other given all others, (k, k).

        What is missed here makes draws poorer, not wrong: their density is known.
        """
        random, size = np.random.default_rng(0), len(self._known)
        noise = 0.3 * random.standard_normal((2, len(self.mean)))
        points = self.mean + np.concatenate([np.zeros((1, len(self.mean))), noise])
        _, _, found = self.quadratic(points)
        if not np.isfinite(found).all():
            return np.ones((size, size), dtype=bool)
        scales = np.sqrt(np.abs(np.diagonal(found, axis1=-2, axis2=-1)))
        near = SPLITTING.nothing * scales[..., :, None] * scales[..., None, :]
        return np.asarray((np.abs(found) > near).any((0, 1)) | np.eye(size, dtype=bool))

    def begin(self, shared: np.ndarray) -> np.ndarray:
        """Points (n, D) with these shared coordinates (n, S), where a search begins."""
        points = np.tile(self.mean, (len(shared), 1))
        points[:, self.split.blocks.ravel()] += (
            shared - self.mean[self.split.shared]
        ) @ self.slope.T
        points[:, self.split.shared] = shared
        return points

    def settled(
        self, points: np.ndarray, iterations: int = SPLITTING.iterations
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moves the blocks near their conditional modes, by Newton steps that gain.

        Args:
            points: (n, D).
            iterations: At most.

        Returns:
            The points, and lower Cholesky factors of the precision of each block near there,
            (n, blocks, k, k): of the identity where the log density is not finite.
        """
        points = points.copy()
        count, size = self.split.blocks.shape
        factors = np.tile(np.eye(size), (len(points), count, 1, 1))
        scales = np.zeros((len(points), count, size))
        active = np.arange(len(points))
        for iteration in range(iterations):
            if not len(active):
                break
            values, gradients, found = self.quadratic(points[active], scales[active])
            usable = np.isfinite(values) & np.isfinite(gradients).all((1, 2))
            usable &= np.isfinite(found).all((1, 2, 3))
            active, values = active[usable], values[usable]
            factors[active] = _factors(found[usable])
            inverse = _inverse(factors[active])
            scales[active] = np.sqrt(np.square(inverse).sum(-2))
            whitened = np.einsum("nbij,nbj->nbi", inverse, gradients[usable])
            steps = np.einsum("nbji,nbj->nbi", inverse, whitened)
            length = np.square(whitened).sum(-1).max(-1)
            last = (length < SPLITTING.close) & (iteration > 0 or self.slope.any())
            self._move(points, active[last], steps[last])
            going = active[~last]
            points[going] = self._gaining(points[going], values[~last], steps[~last])
            active = going
        return points, factors

    def quadratic(
        self, points: np.ndarray, scales: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values (n,), gradients (n, blocks, k) and minus Hessians (n, blocks, k, k) of the blocks.

        Args:
            points: (n, D).
            scales: Of the blocks' coordinates, (n, blocks, k), if they are known.
        """
        blocks, (n, dimension) = self.split.blocks, points.shape
        scales = np.zeros((n, *blocks.shape)) if scales is None else scales
        at = points[:, blocks]  # (n, blocks, k)
        steps = np.where(
            scales > 0, CURVATURE.step * scales, CURVATURE.step * np.maximum(1.0, np.abs(at))
        )
        steps = np.maximum(steps, 1e-10 * np.maximum(1.0, np.abs(at)))
        count = len(self._probes)
        moved = np.repeat(points[None], 2 * count + 1, axis=0)  # (2 probes + 1, n, D)
        for i, probed in enumerate(self._probes):
            moved[1 + i][:, blocks[:, probed]] += steps[:, :, probed]
            moved[1 + count + i][:, blocks[:, probed]] -= steps[:, :, probed]
        values, gradients = self.density.value_and_gradient(moved.reshape(-1, dimension))
        gradients = gradients.reshape(2 * count + 1, n, dimension)[:, :, blocks]
        with np.errstate(invalid="ignore"):
            # (probes, n, blocks, k) to (n, blocks, k, k moved)
            change = np.moveaxis(gradients[1 + count :] - gradients[1 : 1 + count], 0, -1)
            change = np.where(self._known, change[..., self._probes.argmax(0)], 0.0)
            hessians = change / (2 * steps[:, :, None, :])
            hessians = (hessians + np.swapaxes(hessians, -1, -2)) / 2
        return values[:n], gradients[0], hessians

    def _move(self, points: np.ndarray, rows: np.ndarray, steps: np.ndarray) -> None:
        blocks = self.split.blocks.ravel()
        points[rows[:, None], blocks] += steps.reshape(len(rows), blocks.size)

    def _gaining(self, points: np.ndarray, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The points moved by steps, halved until they gain; those that never do stay."""
        found, waiting, share = points.copy(), np.arange(len(points)), 1.0
        for _ in range(SPLITTING.halvings):
            if not len(waiting):
                break
            moved = points[waiting]
            self._move(moved, np.arange(len(moved)), share * steps[waiting])
            better = self.density.value(moved) >= values[waiting] - 1e-9 * np.abs(values[waiting])
            found[waiting[better]] = moved[better]
            waiting, share = waiting[~better], share / 2
        return found

    @property
    def _rows(self) -> int:
        numbers = max(self.density.dimension, self.split.blocks.size * self.split.blocks.shape[1])
        return max(1, min(SPLITTING.points, SPLITTING.numbers // numbers))

    def complete(
        self, shared: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws the blocks given the shared coordinates.

        Each block has a multivariate t distribution about its conditional mode.

        Args:
            shared: (n, S).
            random: Of the draws.

        Returns:
            Points (n, D), and the log density of what was drawn, (n,).
        """
        chunks = np.split(shared, np.arange(self._rows, len(shared), self._rows))
        parts = [self._complete(chunk, random) for chunk in chunks]
        points, log_q = zip(*parts, strict=True)
        return np.concatenate(points), np.concatenate(log_q)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """The log density of drawing the blocks of points (n, D) given the others, (n,)."""
        rows = self._rows
        chunks = np.split(points, np.arange(rows, len(points), rows))
        return np.concatenate([self._log_density(chunk) for chunk in chunks])

    def _log_density(self, points: np.ndarray) -> np.ndarray:
        centres, factors = self.settled(self.begin(points[:, self.split.shared]))
        apart = (points - centres)[:, self.split.blocks]  # (n, blocks, k)
        standard = np.einsum("nbji,nbj->nbi", factors, apart)
        return self._log_t(standard, factors)

    def _log_t(self, standard: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """Of standardised draws of the blocks, (n, blocks, k), the log density, (n,)."""
        freedom, size = self.freedom, standard.shape[-1]
        constant = gammaln((freedom + size) / 2) - gammaln(freedom / 2)
        constant -= size / 2 * np.log(freedom * np.pi)
        log_q = constant - (freedom + size) / 2 * np.log1p(np.square(standard).sum(-1) / freedom)
        log_q += np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(-1)
        return log_q.sum(-1)

    def _complete(
        self, shared: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        points, factors = self.settled(self.begin(shared))
        count, size = self.split.blocks.shape
        freedom = self.freedom
        normal = random.standard_normal((len(shared), count, size))
        radius = np.sqrt(random.chisquare(freedom, (len(shared), count)) / freedom)
        standard = normal / radius[..., None]
        drawn = np.linalg.solve(np.swapaxes(factors, -1, -2), standard[..., None])[..., 0]
        self._move(points, np.arange(len(points)), drawn)
        return points, self._log_t(standard, factors)


def _probed_together(known: np.ndarray) -> np.ndarray:
    """Sets of coordinates, (sets, k), none of which has two that depend on the same one.

    Curtis, Powell and Reid, 1974, "On the estimation of sparse Jacobian matrices".

    Args:
        known: Which coordinates depend on each other, (k, k).
    """
    sets: list[np.ndarray] = []
    touched: list[np.ndarray] = []
    for i, column in enumerate(known.T):
        free = next((j for j, other in enumerate(touched) if not (other & column).any()), None)
        if free is None:
            free = len(sets)
            sets.append(np.zeros(len(known), dtype=bool))
            touched.append(np.zeros(len(known), dtype=bool))
        sets[free][i] = True
        touched[free] |= column
    return np.array(sets)


def _inverse(factors: np.ndarray) -> np.ndarray:
    """Of lower triangular matrices, (..., k, k)."""
    identity = torch.eye(factors.shape[-1], dtype=torch.float64)
    found = torch.linalg.solve_triangular(torch.as_tensor(factors), identity, upper=False)
    return np.asarray(found.numpy())


def _factors(precisions: np.ndarray) -> np.ndarray:
    """Lower Cholesky factors of symmetric matrices, (..., k, k), made positive definite."""
    found, failed = torch.linalg.cholesky_ex(torch.as_tensor(precisions))
    factors, bad = found.numpy(), failed.numpy() != 0
    if bad.any():
        sizes = np.maximum(np.abs(precisions[bad]).max((-2, -1), keepdims=True), 1e-300)
        values, vectors = np.linalg.eigh(precisions[bad] / sizes)
        values = np.abs(values) * sizes[..., 0]
        values = np.maximum(values, np.maximum(1e-8 * values.max(-1, keepdims=True), 1e-12))
        factors[bad] = np.linalg.cholesky((vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2))
    return factors
