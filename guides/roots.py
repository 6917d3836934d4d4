"""Cholesky factors of matrices that rounding may have left without one."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from elbowroom.errors import GuideError

SMALLEST = 1e-13
"""The smallest eigenvalue, relative to the largest, of a matrix with a unit diagonal."""


def _scaled(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix with a unit diagonal, and the square roots of its own, (..., D, D) and (..., D)."""
    tiny = torch.finfo(matrix.dtype).tiny
    scales = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(tiny).sqrt()
    return matrix / (scales.unsqueeze(-1) * scales.unsqueeze(-2)), scales


def _from_eigenvectors(vectors: Tensor, roots: Tensor) -> Tensor:
    """The lower Cholesky factor of vectors · diag(roots²) · vectorsᵀ."""
    upper = torch.linalg.qr((vectors * roots.unsqueeze(-2)).mT, mode="r").R
    signs = upper.diagonal(dim1=-2, dim2=-1).sign()
    return (upper * torch.where(signs == 0, 1.0, signs).unsqueeze(-1)).mT


def factor_of(covariance: Tensor) -> Tensor:
    """The lower Cholesky factor of a covariance, (..., D, D).

    Where rounding has left eigenvalues that are not positive, they are made so.

    Example:
        >>> factor = factor_of(torch.ones(2, 2, dtype=torch.float64))
        >>> torch.allclose(factor @ factor.T, torch.ones(2, 2, dtype=torch.float64))
        True
    """
    found, failed = torch.linalg.cholesky_ex(covariance)
    if not failed.any():
        return found
    scaled, scales = _scaled(covariance)
    values, vectors = torch.linalg.eigh(scaled)
    values = values.clamp_min(SMALLEST) if values.isfinite().all() else torch.ones_like(values)
    return _from_eigenvectors(scales.unsqueeze(-1) * vectors, values.sqrt())


def factor_of_inverse(precision: Tensor) -> Tensor:
    """The lower Cholesky factor of a precision's inverse, (..., D, D).

    Where the precision has no factor itself, it is made of the eigenvectors of the precision with a
    unit diagonal, so that directions of very different widths keep their digits.

    Example:
        >>> factor_of_inverse(torch.tensor([[4.0]]))
        tensor([[0.5000]])
    """
    flipped, failed = torch.linalg.cholesky_ex(precision.flip(-2, -1))
    if not failed.any():
        inverse = flipped.flip(-2, -1).mT  # lower, with inverseᵀ · inverse = precision
        unit = torch.eye(precision.shape[-1]).to(precision)
        return torch.linalg.solve_triangular(inverse, unit.expand_as(precision), upper=False)
    scaled, scales = _scaled(precision)
    values, vectors = torch.linalg.eigh(scaled)
    values = values.clamp_min(SMALLEST) if values.isfinite().all() else torch.ones_like(values)
    return _from_eigenvectors(vectors / scales.unsqueeze(-1), values.rsqrt())


@contextmanager
def numerical_failures() -> Iterator[None]:
    """Turns what a library says of a matrix that it cannot factorise into an error of a fit.

    Raises:
        GuideError: With the library's message, and what to do.

    Example:
        >>> with numerical_failures():
        ...     np.linalg.cholesky(-np.eye(2))
        Traceback (most recent call last):
        elbowroom.errors.GuideError: the posterior's curvature cannot be factorised (Matrix is ...
    """
    try:
        yield
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise GuideError(
            f"the posterior's curvature cannot be factorised ({reason}): the posterior is flat, or "
            "much narrower in some directions than in others. Bring the sites to similar scales, "
            "or fit with --engine svi --guide mean_field."
        ) from error
