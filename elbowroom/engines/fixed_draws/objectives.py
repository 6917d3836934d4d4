"""The ELBO of Gaussian guides over fixed draws, with its gradient, as functions of numpy arrays."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.guides.families import Flat

LOG_2PI = float(np.log(2 * np.pi))
BLOCKS = 8
"""Independent parts of many fixed draws, whose spread tells what their choice decides."""
FEWEST_IN_BLOCKS = 128
"""Fixed draws from which there are blocks."""


@dataclass(frozen=True)
class Coordinates:
    """Affine coordinates a of the unconstrained vector: u = origin + factor · a.

    Attributes:
        origin: (D,).
        factor: (D, D) lower triangular, or its diagonal (D,).
    """

    origin: np.ndarray
    factor: np.ndarray

    @property
    def log_determinant(self) -> float:
        """Of the factor."""
        diagonal = self.factor if self.factor.ndim == 1 else np.diag(self.factor)
        return float(np.log(np.abs(diagonal)).sum())

    def to_u(self, a: np.ndarray) -> np.ndarray:
        """Points (n, D) in the unconstrained space."""
        return self.origin + (a * self.factor if self.factor.ndim == 1 else a @ self.factor.T)

    def gradient(self, gradients: np.ndarray) -> np.ndarray:
        """Gradients (n, D) with respect to u as those with respect to a."""
        return gradients * self.factor if self.factor.ndim == 1 else gradients @ self.factor

    def precision(self, precisions: np.ndarray) -> np.ndarray:
        """Minus Hessians (n, D, D) with respect to u as those with respect to a."""
        if self.factor.ndim == 1:
            return precisions * np.multiply.outer(self.factor, self.factor)
        return self.factor.T @ precisions @ self.factor

    def covariance(self, covariance: np.ndarray) -> np.ndarray:
        """A covariance of a as that of u."""
        if self.factor.ndim == 1:
            return covariance * np.multiply.outer(self.factor, self.factor)
        return self.factor @ covariance @ self.factor.T


@dataclass(frozen=True)
class Fixed:
    """Fixed draws of a standard Normal: antithetic pairs that have its moments.

    The second moments are those of the Normal: over the draws, a Normal log density has the ELBO
    and the gradient that it has over all draws. Where the draws are few for the dimension, only the
    variances are.

    Attributes:
        draws: (draws, size), each followed by its negative.
        blocks: How many equal parts they have, one after the other, that were independent before
            they were all given the moments.
        corrected: Whether a mean over a block leaves out what the block's own moments do to it.
            Else the spread of such means overstates what the choice of draws decides.
    """

    draws: np.ndarray
    blocks: int
    corrected: bool = False

    @classmethod
    def of(cls, count: int, size: int, random: np.random.Generator) -> "Fixed":
        """Some draws; of many, blocks of low discrepancy.

        A block is a scrambled Sobol sequence made Normal (Owen, 1997, "Scrambled net variance for
        integrals of smooth functions"). A block is not given the moments by itself: in so few
        draws that would be a bias which all blocks share, and their spread does not show.

        Args:
            count: How many, even.
            size: Of each.
            random: Of them.
        """
        half, blocks = count // 2, count // 2
        many = count >= FEWEST_IN_BLOCKS and count % (2 * BLOCKS) == 0
        if not many:
            normal = random.standard_normal((half, size))
        else:
            blocks, each = BLOCKS, half // BLOCKS
            power = int(np.ceil(np.log2(each)))
            parts = [qmc.Sobol(size, rng=random).random_base2(power)[:each] for _ in range(blocks)]
            normal = ndtri(np.clip(np.concatenate(parts), 1e-15, 1 - 1e-15))
        if _whole(count, size):
            root = np.linalg.cholesky(normal.T @ normal / half)
            normal = np.linalg.solve(root, normal.T).T
        else:
            normal = normal / np.sqrt(np.square(normal).mean(0))
        draws = np.stack([normal, -normal], axis=1).reshape(-1, size)
        return cls(draws, blocks, many and 4 * size <= count)

    def grouped(self) -> "Fixed":
        """The same draws in no more than `BLOCKS` blocks, where these can be put together."""
        together = self.blocks > BLOCKS and self.blocks % BLOCKS == 0
        return replace(self, blocks=BLOCKS) if together else self

    @cached_property
    def weights(self) -> np.ndarray:
        """Of each draw in the mean over each block, (blocks, draws), with a sum of one.

        With moments S of a block b in the place of I, a function f of a draw z has a mean that is
        off by E[f (z' A z - tr A)] / 2, A = S - I, up to fourth moments: that is taken off.
        """
        count, size = self.draws.shape
        weights = np.repeat(np.eye(self.blocks), count // self.blocks, axis=1) * self.blocks
        if self.corrected:
            parts = self.draws.reshape(self.blocks, -1, size)
            excess = np.swapaxes(parts, 1, 2) @ parts / parts.shape[1] - np.eye(size)
            if not _whole(count, size):
                excess = excess * np.eye(size)
            moved = np.einsum("nd,bde,ne->bn", self.draws, excess, self.draws, optimize=True)
            weights -= (moved - np.trace(excess, axis1=1, axis2=2)[:, None]) / 2
        return weights / count

    def by_block(self, values: np.ndarray) -> np.ndarray:
        """The means over the blocks of values (draws, n): (blocks, n)."""
        return self.weights @ values

    def products(self, gradients: np.ndarray) -> np.ndarray:
        """The means over the blocks of gradients (draws, D) times draws: (blocks, D, size).

        What is linear in the draws is left out exactly, as all of it is where a density is Normal.
        """
        linear = np.zeros((gradients.shape[1], self.draws.shape[1]))
        if self.corrected and _whole(*self.draws.shape):
            linear = gradients.T @ self.draws / len(self.draws)
        rest = gradients - self.draws @ linear.T
        found = [(each[:, None] * rest).T @ self.draws for each in self.weights]
        return np.stack(found) + linear

    def own_products(self, gradients: np.ndarray) -> np.ndarray:
        """The diagonals of `products`, (blocks, size)."""
        if self.corrected and _whole(*self.draws.shape):
            return np.diagonal(self.products(gradients), axis1=1, axis2=2)
        linear = np.zeros(gradients.shape[1])
        if self.corrected:
            linear = (gradients * self.draws).mean(0)
        return self.by_block((gradients - linear * self.draws) * self.draws) + linear


def _whole(count: int, size: int) -> bool:
    """Whether so many draws are given all second moments, of which there are no more than pairs."""
    return size * (size + 1) <= count


class MeanFieldObjective:
    """The ELBO of independent Normals in some coordinates, over fixed draws.

    Its parameters are the means, then the logarithms of the standard deviations, (2D,).
    """

    def __init__(
        self, density: Density, curvature: Curvature, coordinates: Coordinates, fixed: Fixed
    ) -> None:
        self.density, self.curvature = density, curvature
        self.coordinates, self.fixed = coordinates, fixed
        factor = coordinates.factor
        self.scales = (
            factor if factor.ndim == 1 else 1 / np.linalg.norm(np.linalg.inv(factor), axis=0)
        )

    def points(self, parameters: np.ndarray) -> np.ndarray:
        """The draws of the guide in the unconstrained space, (draws, D)."""
        mean, log_scale = np.split(parameters, 2)
        return self.coordinates.to_u(mean + self.fixed.draws * np.exp(log_scale))

    def by_draw(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each draw's part of the ELBO and of its gradient: (draws,) and (draws, 2D)."""
        _, log_scale = np.split(parameters, 2)
        values, gradients = self.density.value_and_gradient(self.points(parameters))
        gradients = self.coordinates.gradient(gradients)
        by_scale = gradients * self.fixed.draws * np.exp(log_scale) + 1.0
        entropy = log_scale.sum() + self.coordinates.log_determinant
        entropy += 0.5 * len(log_scale) * (1 + LOG_2PI)
        return values + entropy, np.concatenate([gradients, by_scale], axis=1)

    def at(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient at parameters (2D,)."""
        with np.errstate(invalid="ignore", over="ignore"):
            values, gradients = self.by_draw(parameters)
            return float(values.mean()), gradients.mean(0)

    def by_block(self, parameters: np.ndarray) -> np.ndarray:
        """The gradient over each block of the draws, (blocks, 2D); see `Fixed.weights`."""
        scale = np.exp(np.split(parameters, 2)[1])
        _, gradients = self.density.value_and_gradient(self.points(parameters))
        gradients = self.coordinates.gradient(gradients)
        by_scale = self.fixed.own_products(gradients) * scale + 1.0
        return np.concatenate([self.fixed.by_block(gradients), by_scale], axis=1)

    def value_and_gradient(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ELBO and its gradient at parameters (n, 2D): (n,) and (n, 2D)."""
        parts = [self.at(each) for each in parameters]
        return np.array([value for value, _ in parts]), np.stack([each for _, each in parts])

    def precision(self, parameters: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Minus the Hessian at parameters (n, 2D): (n, 2D, 2D); `scales` are not needed."""
        return np.stack([self.precision_over(self.fixed.draws, each) for each in parameters])

    @np.errstate(over="ignore", invalid="ignore")
    def precision_over(self, draws: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Minus the Hessian over some draws at parameters (2D,): (2D, 2D)."""
        mean, log_scale = np.split(parameters, 2)
        size, scale = len(log_scale), np.exp(log_scale)
        points = self.coordinates.to_u(mean + draws * scale)
        _, gradients = self.density.value_and_gradient(points)
        gradients = self.coordinates.gradient(gradients)
        whole = np.zeros((2 * size, 2 * size))
        chunk = max(1, 4_000_000 // size**2)
        for begin in range(0, len(points), chunk):
            rows = slice(begin, begin + chunk)
            width = draws[rows] * scale  # (rows, D): of the draw from the mean
            precisions = self.coordinates.precision(self.curvature(points[rows], self.scales))
            whole[:size, :size] += precisions.sum(0)
            whole[:size, size:] += np.einsum("nij,nj->ij", precisions, width)
            whole[size:, size:] += np.einsum("ni,nij,nj->ij", width, precisions, width)
        whole[size:, :size] = whole[:size, size:].T
        whole /= len(points)
        diagonal = (gradients * draws * scale).mean(0)
        whole[size:, size:] -= np.diag(diagonal)
        return whole


class GaussianObjective:
    """The ELBO of a family of Normals over fixed draws.

    Its parameters are those of the family as one flat vector, (P,).
    """

    def __init__(self, density: Density, flat: Flat, fixed: Fixed) -> None:
        self.density, self.flat, self.fixed = density, flat, fixed

    def moments(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D) of the guide."""
        normal = self.flat.normal(torch.from_numpy(parameters))
        return normal.location.numpy(), normal.covariance.numpy()

    def at(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient."""
        draws = self.fixed.draws
        made = _Made.at(self.flat, parameters)
        values, gradients = self.density.value_and_gradient(made.points(draws))
        entropy = made.log_determinant.item() + 0.5 * self.density.dimension * (1 + LOG_2PI)
        with np.errstate(invalid="ignore"):
            if made.root.dim() == 1:
                by_root = (gradients * draws).mean(0)
            else:
                by_root = gradients.T @ draws / len(draws)
            return float(values.mean()) + entropy, made.gradient(gradients.mean(0), by_root)

    def by_block(self, parameters: np.ndarray) -> np.ndarray:
        """The gradient over each block of the draws, (blocks, P); see `Fixed.weights`."""
        made = _Made.at(self.flat, parameters)
        _, gradients = self.density.value_and_gradient(made.points(self.fixed.draws))
        alone = made.root.dim() == 1
        products = self.fixed.own_products(gradients) if alone else self.fixed.products(gradients)
        means = self.fixed.by_block(gradients)
        return np.stack([made.gradient(*each) for each in zip(means, products, strict=True)])

    def curvature(self, parameters: np.ndarray) -> np.ndarray:
        """What minus the Hessian has on its diagonal, about, (P,)."""
        return self.flat.curvature(torch.from_numpy(parameters)).numpy()


@dataclass(frozen=True)
class _Made:
    """A Normal with the way back to its parameters."""

    parameters: Tensor
    location: Tensor
    root: Tensor
    log_determinant: Tensor

    @classmethod
    def at(cls, flat: Flat, parameters: np.ndarray) -> "_Made":
        given = torch.tensor(parameters, requires_grad=True)
        normal = flat.normal(given)
        return cls(given, normal.location, normal.root, normal.log_determinant)

    def points(self, draws: np.ndarray) -> np.ndarray:
        """Draws of the Normal, (draws, D), from those of its noise."""
        location, root = self.location.detach().numpy(), self.root.detach().numpy()
        return location + (draws * root if root.ndim == 1 else draws @ root.T)

    def gradient(self, by_location: np.ndarray, by_root: np.ndarray) -> np.ndarray:
        """Of the ELBO, from the log density's by the location and by the root."""
        parts = [
            (self.location, torch.tensor(by_location)),
            (self.root, torch.tensor(by_root)),
            (self.log_determinant, torch.ones_like(self.log_determinant)),
        ]
        free = [(output, gradient) for output, gradient in parts if output.requires_grad]
        outputs, gradients = zip(*free, strict=True)
        (found,) = torch.autograd.grad(outputs, self.parameters, gradients, retain_graph=True)
        return found.numpy()
