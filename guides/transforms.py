"""Bijections from unconstrained vectors to supports, also where torch has none."""

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.nn import functional

SUPPORT_OF_COMPONENTS: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())
"""What torch 2.7 and later wrap the support of a mixture's components in."""


class CholeskyFactor(Transform):
    """From n(n+1)/2 numbers to a lower triangular matrix with a positive diagonal, (n, n).

    The numbers fill the lower triangle row by row; those on the diagonal are logarithms.

    Example:
        >>> CholeskyFactor()(torch.tensor([0.0, 0.5, 0.0]))
        tensor([[1.0000, 0.0000],
                [0.5000, 1.0000]])
    """

    domain = constraints.real_vector
    codomain: Any = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    __hash__ = Transform.__hash__

    @staticmethod
    def _places(size: int) -> tuple[Tensor, Tensor]:
        """Where each cell of the matrix is in the vector, and each diagonal cell."""
        rows, columns = torch.tril_indices(size, size)
        place = torch.full((size, size), len(rows))  # one past the end: a zero
        place[rows, columns] = torch.arange(len(rows))
        return place, place.diagonal()

    def _call(self, x: Tensor) -> Tensor:
        size = self.forward_shape(x.shape)[-1]
        place, _ = self._places(size)
        padded = torch.cat([x, torch.zeros_like(x[..., :1])], -1)
        matrix = padded[..., place.to(x.device).reshape(-1)].reshape(*x.shape[:-1], size, size)
        eye = torch.eye(size, dtype=x.dtype, device=x.device)
        # Where there is no diagonal, exp might overflow, and its gradient spoil the others.
        return matrix.tril(-1) + torch.where(eye > 0, matrix, 0.0).exp() * eye

    def _inverse(self, y: Tensor) -> Tensor:
        size = y.shape[-1]
        logs = y.diagonal(dim1=-2, dim2=-1).log()
        filled = y.tril(-1) + torch.diag_embed(logs)
        rows, columns = torch.tril_indices(size, size)
        return filled[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the logarithms on the diagonal."""
        _, diagonal = self._places(y.shape[-1])
        return x[..., diagonal.to(x.device)].sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """Of the matrix."""
        size = round((8 * shape[-1] + 1) ** 0.5 - 1) // 2
        return torch.Size([*shape[:-1], size, size])

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Of the vector."""
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])


class PositiveDefinite(CholeskyFactor):
    """From n(n+1)/2 numbers to a positive definite matrix, by its Cholesky factor.

    Example:
        >>> PositiveDefinite()(torch.tensor([0.0, 0.5, 0.0]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.2500]])
    """

    codomain = constraints.positive_definite

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        factor = super()._call(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """That of the factor, and of its product: 2ⁿ Π Lᵢᵢⁿ⁻ⁱ⁺¹ (Muirhead, 1982, theorem 2.1.9)."""
        size = y.shape[-1]
        _, diagonal = self._places(size)
        logs = x[..., diagonal.to(x.device)]
        powers = torch.arange(size, 0, -1, dtype=x.dtype, device=x.device)
        return logs.sum(-1) + (powers * logs).sum(-1) + size * torch.log(x.new_tensor(2.0))


def bijection(support: Any) -> Transform:
    """A bijection from unconstrained values to a support.

    Raises:
        NotImplementedError: If there is none.
    """
    if isinstance(support, SUPPORT_OF_COMPONENTS):
        support = support.base_constraint  # of every component
    if support is constraints.lower_cholesky:
        return CholeskyFactor()
    if support is constraints.positive_definite:
        return PositiveDefinite()
    return biject_to(support)


class Wrapped(Transform):
    """From a real number to the angle that it is, between `low` and `low + 2 pi`.

    It is its own inverse there, and no bijection: all turns are the same angle.

    Args:
        low: Where the angles begin.

    Example:
        >>> Wrapped(0.0)(torch.tensor([1.0, 1.0 + 2 * torch.pi])).round(decimals=4)
        tensor([1., 1.])
    """

    domain = constraints.real
    codomain: Any = constraints.real
    bijective = True

    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapped) and other.low == self.low

    __hash__ = Transform.__hash__

    def with_cache(self, cache_size: int = 1) -> "Wrapped":
        """Itself: it has none."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        return torch.remainder(x - self.low, 2 * torch.pi) + self.low

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(x)


class Circle(Transform):
    """From a real number to an angle, with the cut of the circle opposite a centre.

    The angle is the centre plus 2 pi (sigmoid(x) - 1/2), turned to lie between `low` and
    `low + 2 pi`. Whatever is near the centre is near zero, wherever the angles begin and end.

    Args:
        low: Where the angles begin.
        centre: Of each of them.

    Example:
        >>> circle = Circle(-torch.pi, torch.tensor(3.0))
        >>> circle(torch.tensor([0.0, 0.5])).round(decimals=3)
        tensor([ 3.0000, -2.5140])
        >>> circle.inv(circle(torch.tensor([0.0, 0.5]))).round(decimals=4)
        tensor([0.0000, 0.5000])
    """

    domain = constraints.real
    codomain: Any = constraints.real
    bijective = True

    def __init__(self, low: float, centre: Tensor) -> None:
        super().__init__()
        self.wrapped, self.centre = Wrapped(low), centre

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circle) or other.wrapped != self.wrapped:
            return False
        return torch.equal(other.centre, self.centre)

    __hash__ = Transform.__hash__

    def with_cache(self, cache_size: int = 1) -> "Circle":
        """Itself: it has none."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        centre = self.centre.to(x.device, x.dtype)
        return self.wrapped(centre + 2 * torch.pi * (x.sigmoid() - 0.5))

    def _inverse(self, y: Tensor) -> Tensor:
        gap = Wrapped(-torch.pi)(y - self.centre.to(y.device, y.dtype))
        return torch.logit(gap / (2 * torch.pi) + 0.5)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """That of the sigmoid, times 2 pi."""
        return math.log(2 * math.pi) - functional.softplus(x) - functional.softplus(-x)
