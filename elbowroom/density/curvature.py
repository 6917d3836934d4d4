"""Hessians of a log density by differences of its gradient, with few probes where plates allow."""

from dataclasses import dataclass

import numpy as np

from elbowroom.density.density import Density
from elbowroom.guides.space import LatentSpace
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class CurvatureSteps:
    """How products with a Hessian are taken."""

    step: float = 1e-4
    """The step of differences of gradients, in conditional standard deviations: about the fourth
    root of the rounding error."""
    signs: int = 32
    """Random directions that estimate the diagonal in more dimensions than `SIZES.products`."""
    agreement: float = 1e-3
    """The largest relative error of a Hessian product for which the structure is accepted."""


CURVATURE = CurvatureSteps()


@dataclass(frozen=True)
class Structure:
    """Which coordinates may be probed together.

    Attributes:
        apart: Coordinates that are probed one by one.
        together: Coordinates (elements, k) of one plate: given the others, those of one element
            are independent of those of another.
    """

    apart: np.ndarray
    together: np.ndarray

    @property
    def probes(self) -> int:
        """Products with the Hessian that give the whole of it."""
        return len(self.apart) + self.together.shape[1]


def structure_of(space: LatentSpace) -> Structure:
    """The structure that spares the most probes: one plate's coordinates against all others."""
    plates = {plate for site in space.sites for plate in site.plates}
    everything = np.arange(space.dimension)
    best = Structure(everything, np.zeros((0, 0), dtype=int))
    for plate in plates:
        columns, begin = [], 0
        for site, size in zip(space.sites, space.sizes, strict=True):
            indices = everything[begin : begin + size].reshape(site.unconstrained_shape)
            begin += size
            if plate in site.plates:
                axis = indices.ndim - site.transform.domain.event_dim + plate.dim
                columns.append(np.moveaxis(indices, axis, 0).reshape(plate.size, -1))
        together = np.concatenate(columns, axis=1)
        structure = Structure(np.setdiff1d(everything, together), together)
        if structure.probes < best.probes:
            best = structure
    return best


class Curvature:
    """Minus the Hessian of a log density at many points.

    The plates of the model say which elements of it are zero; that is compared with a product in a
    random direction before it is believed.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        ...     with pyro.plate("group", 3):
        ...         group = pyro.sample("group_mean", dist.Normal(mean, 1.0))
        ...         pyro.sample("y", dist.Normal(group, 1.0), obs=y)
        >>> arguments = {"y": torch.zeros(3)}
        >>> density = Density(model, arguments, LatentSpace.of(model, arguments))
        >>> curvature = Curvature(density)
        >>> curvature.structure.probes
        2
        >>> curvature(np.zeros((1, 4)))[0].round(6) + 0.0
        array([[ 4., -1., -1., -1.],
               [-1.,  2.,  0.,  0.],
               [-1.,  0.,  2.,  0.],
               [-1.,  0.,  0.,  2.]])
    """

    def __init__(self, density: Density) -> None:
        self.density = density
        self.structure = structure_of(density.space)
        random = np.random.default_rng(0)
        points = random.standard_normal((3, density.dimension)) * np.array([[0.3], [1.0], [1.0]])
        self.check(points)

    def check(self, points: np.ndarray) -> bool:
        """Compares the structure with products at points, (n, D), and gives it up if it is wrong.

        Returns:
            Whether it was right.
        """
        size = self.density.dimension
        if self.structure.probes == size or self._holds(points):
            return True
        self.structure = Structure(np.arange(size), np.zeros((0, 0), dtype=int))
        return False

    def _holds(self, points: np.ndarray) -> bool:
        random, (count, size) = np.random.default_rng(1), points.shape
        columns, corners = self._parts(points, None)
        # In units of each coordinate's own curvature, so that none hides another's error.
        scales = np.sqrt(np.abs(self._diagonal(columns, corners)))
        scales = 1 / np.where(scales > 0, scales, 1.0)
        directions = random.standard_normal((count, size)) * scales
        moves = CURVATURE.step * directions
        _, gradients = self.density.value_and_gradient(
            np.concatenate([points + moves, points - moves])
        )
        products = -(gradients[:count] - gradients[count:]) / (2 * CURVATURE.step)
        errors = np.abs(self._times(columns, corners, directions) - products) * scales
        return bool(
            (errors <= CURVATURE.agreement * np.maximum(1.0, np.abs(products * scales))).all()
        )

    @property
    def probed(self) -> bool:
        """Whether few products with the Hessian give its diagonal."""
        return self.structure.probes <= SIZES.products

    def __call__(self, points: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """Minus the Hessian at each of `points`, (n, D) to (n, D, D).

        Args:
            points: Where.
            scales: The conditional standard deviation of each coordinate, (D,) or (n, D), as far
                as it is known: the differences are taken over a small part of it. A coordinate's
                units make it small or large.
        """
        return self._assembled(*self._parts(points, scales))

    def conditional_scales(
        self, points: np.ndarray, scales: np.ndarray | None = None
    ) -> np.ndarray:
        """The conditional standard deviation of each coordinate, (D,), by its mean curvature.

        Args:
            points: Where, (n, D).
            scales: As far as it is known, (D,).
        """
        parts = (self._parts(point[None], scales) for point in points)  # for the memory's sake
        return _as_scales(np.mean([self._diagonal(*part)[0] for part in parts], axis=0))

    def guessed_scales(self, point: np.ndarray) -> np.ndarray:
        """The same at one point, (D,), where it may be a guess.

        Where the coordinates cannot be probed together, the curvature is that along random signs
        (Bekas, Kokiopoulou and Saad, 2007, "An estimator for the diagonal of a matrix").
        """
        if self.probed:
            return self.conditional_scales(point[None])
        signs = np.random.default_rng(2).choice([-1.0, 1.0], (CURVATURE.signs, len(point)))
        moves = CURVATURE.step * np.maximum(1.0, np.abs(point)) * signs
        _, gradients = self.density.value_and_gradient(
            np.concatenate([point + moves, point - moves])
        )
        with np.errstate(invalid="ignore"):
            products = (gradients[CURVATURE.signs :] - gradients[: CURVATURE.signs]) / (2 * moves)
        return _as_scales(products.mean(0))

    def _parts(
        self, points: np.ndarray, scales: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Columns of those probed apart, (n, apart, D), and corners, (n, elements, k, k)."""
        n, size = points.shape
        steps = CURVATURE.step * np.maximum(1.0, np.abs(points))
        if scales is not None:
            known = np.broadcast_to(scales, points.shape)
            # No smaller than what the points' own digits resolve.
            finest = 1e-10 * np.maximum(1.0, np.abs(points))
            steps = np.where(known > 0, np.maximum(CURVATURE.step * known, finest), steps)
        probes = self._probes()  # (probes, D)
        moved = probes[None] * steps[:, None, :]  # (n, probes, D)
        at = np.concatenate([points[:, None] + moved, points[:, None] - moved]).reshape(-1, size)
        _, gradients = self.density.value_and_gradient(at)
        ahead, behind = gradients.reshape(2, n, len(probes), size)
        with np.errstate(invalid="ignore"):
            difference = (behind - ahead) / 2  # (n, probes, D): minus the product with the moves
        apart, together = self.structure.apart, self.structure.together
        columns = difference[:, : len(apart)] / steps[:, apart, None]
        corner = (columns[:, :, apart] + np.swapaxes(columns[:, :, apart], 1, 2)) / 2
        columns[:, :, apart] = corner
        # (n, k probed, elements, k) to (n, elements, k, k probed)
        products = np.moveaxis(difference[:, len(apart) :][:, :, together], 1, -1)
        with np.errstate(invalid="ignore"):
            corners = products / steps[:, together][:, :, None, :]
            return columns, (corners + np.swapaxes(corners, -1, -2)) / 2

    @staticmethod
    def scales(precision: np.ndarray) -> np.ndarray:
        """Conditional standard deviations, (..., D); 0 where the curvature is no mode's."""
        diagonal = np.diagonal(precision, axis1=-2, axis2=-1)
        return np.where(diagonal > 0, 1 / np.sqrt(np.maximum(diagonal, 1e-300)), 0.0)

    def _probes(self) -> np.ndarray:
        apart, together = self.structure.apart, self.structure.together
        probes = np.zeros((self.structure.probes, self.density.dimension))
        probes[np.arange(len(apart)), apart] = 1.0
        for k in range(together.shape[1]):
            probes[len(apart) + k, together[:, k]] = 1.0
        return probes

    def _assembled(self, columns: np.ndarray, corners: np.ndarray) -> np.ndarray:
        apart, together = self.structure.apart, self.structure.together
        n, _, size = columns.shape
        hessian = np.zeros((n, size, size))
        hessian[:, apart, :] = columns
        hessian[:, :, apart] = np.swapaxes(columns, 1, 2)
        hessian[:, together[:, :, None], together[:, None, :]] = corners
        return hessian

    def _diagonal(self, columns: np.ndarray, corners: np.ndarray) -> np.ndarray:
        apart, together = self.structure.apart, self.structure.together
        diagonal = np.zeros((len(columns), self.density.dimension))
        diagonal[:, apart] = columns[:, np.arange(len(apart)), apart]
        diagonal[:, together] = np.diagonal(corners, axis1=-2, axis2=-1)
        return diagonal

    def _times(self, columns: np.ndarray, corners: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Products with vectors, (n, D), one for each point."""
        apart, together = self.structure.apart, self.structure.together
        found = np.zeros_like(vectors)
        found[:, together] = np.einsum("nejk,nek->nej", corners, vectors[:, together])
        beside = vectors.copy()
        beside[:, apart] = 0.0
        found += np.einsum("nai,na->ni", columns, vectors[:, apart])
        found[:, apart] += np.einsum("nai,ni->na", columns, beside)
        return found


def _as_scales(diagonal: np.ndarray) -> np.ndarray:
    """Standard deviations of curvatures of any sign, with a guess where there is none."""
    curved = np.where(np.isfinite(diagonal), np.abs(diagonal), 0.0)
    typical = np.median(curved[curved > 0]) if (curved > 0).any() else 1.0
    return 1 / np.sqrt(np.maximum(curved, 1e-6 * typical))
