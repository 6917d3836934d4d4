"""Conjugate families: what coordinate ascent needs of them, and guides that are products of them.

Each is the approximate posterior of a part of a model; its expectations and its divergence from a
prior of the same family have closed forms (Bishop, 2006, "Pattern recognition and machine
learning", appendix B).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

LOG_TWO, LOG_TWO_PI = math.log(2), math.log(2 * math.pi)


def log_normaliser(concentration: Tensor) -> Tensor:
    """That of a Dirichlet's density, (..., K) to (...).

    Example:
        >>> log_normaliser(torch.tensor([1.0, 1.0, 1.0])).exp()  # of the simplex's area, a half
        tensor(2.)
    """
    return torch.lgamma(concentration.sum(-1)) - torch.lgamma(concentration).sum(-1)


@dataclass(frozen=True)
class Dirichlet:
    """Of shares that sum to one.

    Attributes:
        concentration: (K,).
    """

    concentration: Tensor

    @property
    def mean_log(self) -> Tensor:
        """The expected logarithms, (K,)."""
        return torch.digamma(self.concentration) - torch.digamma(self.concentration.sum())

    def divergence(self, prior: "Dirichlet") -> Tensor:
        """From a prior, in nats."""
        more = self.concentration - prior.concentration
        normalisers = log_normaliser(self.concentration) - log_normaliser(prior.concentration)
        return normalisers + (more * self.mean_log).sum()


@dataclass(frozen=True)
class Gammas:
    """Independent Gammas of precisions.

    Attributes:
        shape: Broadcasts with the rate.
        rate: One for each precision.
    """

    shape: Tensor
    rate: Tensor

    @property
    def mean(self) -> Tensor:
        """The expected precisions."""
        return self.shape / self.rate

    @property
    def mean_log(self) -> Tensor:
        """Their expected logarithms."""
        return torch.digamma(self.shape) - self.rate.log()

    def divergence(self, prior: "Gammas") -> Tensor:
        """Of each from its prior, in nats, of the rate's shape.

        Example:
            >>> one, other = Gammas(torch.tensor(2.0), torch.tensor(3.0)), Gammas(
            ...     torch.tensor(1.0), torch.tensor(1.0))
            >>> p, q = (torch.distributions.Gamma(g.shape, g.rate) for g in (one, other))
            >>> bool(one.divergence(other).isclose(torch.distributions.kl_divergence(p, q)))
            True
        """
        return (
            (self.shape - prior.shape) * torch.digamma(self.shape)
            - torch.lgamma(self.shape)
            + torch.lgamma(prior.shape)
            + prior.shape * (self.rate.log() - prior.rate.log())
            + self.mean * (prior.rate - self.rate)
        )


@dataclass(frozen=True)
class DiagonalPrecisions:
    """Of matrices that are diagonal, of numbers that are independent, or the same one.

    Attributes:
        gammas: Of the numbers, (..., columns), or (..., 1) for the same one.
        columns: How many.
    """

    gammas: Gammas
    columns: int

    @property
    def mean_log_determinant(self) -> Tensor:
        """The expected log determinants, (...)."""
        return self.gammas.mean_log.expand(*self.gammas.rate.shape[:-1], self.columns).sum(-1)

    def expected_square(self, apart: Tensor) -> Tensor:
        """The expected quadratic form of vectors (..., columns), (...)."""
        return (self.gammas.mean * apart.square()).sum(-1)

    def divergence(self, prior: "DiagonalPrecisions") -> Tensor:
        """From a prior, (...), in nats."""
        return self.gammas.divergence(prior.gammas).sum(-1)


@dataclass(frozen=True)
class Wisharts:
    """Of precision matrices.

    Attributes:
        freedom: (...).
        scatter: The inverse of the scale matrix, (..., columns, columns).
    """

    freedom: Tensor
    scatter: Tensor

    @property
    def columns(self) -> int:
        """How many."""
        return self.scatter.shape[-1]

    @property
    def factor(self) -> Tensor:
        """The Cholesky factor of the scatter."""
        return torch.linalg.cholesky(self.scatter)

    @property
    def _log_determinant(self) -> Tensor:
        return 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @property
    def mean_log_determinant(self) -> Tensor:
        """The expected log determinants, (...)."""
        steps = torch.arange(self.columns).to(self.scatter)
        digammas = torch.digamma((self.freedom.unsqueeze(-1) - steps) / 2).sum(-1)
        return digammas + self.columns * LOG_TWO - self._log_determinant

    def expected_square(self, apart: Tensor) -> Tensor:
        """The expected quadratic form of vectors (..., columns), (...)."""
        standard = torch.linalg.solve_triangular(self.factor, apart.unsqueeze(-1), upper=False)
        return self.freedom * standard.squeeze(-1).square().sum(-1)

    @property
    def log_normaliser(self) -> Tensor:
        """That of the density, (...)."""
        half = self.freedom / 2
        constant = half * self.columns * LOG_TWO + torch.mvlgamma(half, self.columns)
        return half * self._log_determinant - constant

    def divergence(self, prior: "Wisharts") -> Tensor:
        """From a prior, (...), in nats."""
        inverse = torch.cholesky_inverse(self.factor)
        traces = (prior.scatter * inverse).sum((-2, -1))
        return (
            self.log_normaliser
            - prior.log_normaliser
            + (self.freedom - prior.freedom) / 2 * self.mean_log_determinant
            + self.freedom / 2 * (traces - self.columns)
        )


def divergence_of_means(
    count: Tensor, prior_count: float, expected_square: Tensor, columns: int
) -> Tensor:
    """Of Normal means given their precisions P from a prior, expected over P, in nats.

    Args:
        count: The guide's precision is so many times P, (...).
        prior_count: The prior's.
        expected_square: Of the guide's mean about the prior's, by P, (...).
        columns: How many numbers a mean has.
    """
    ratio = prior_count / count
    return 0.5 * (columns * (ratio - 1 - ratio.log()) + prior_count * expected_square)


def guide_parameters(
    make: Callable[[Mapping[str, Any]], Any],
    arguments: Mapping[str, Any],
    constraints: Mapping[str, Any],
) -> dict[str, Tensor]:
    """The parameters of a product of conjugate families, those where an ascent begins at first.

    Args:
        make: The updates of coordinate ascent, given the model's arguments.
        arguments: Of the model.
        constraints: Of each parameter, by name.
    """
    found: dict[str, Tensor] = {}

    def initial(name: str) -> Tensor:
        if not found:
            coordinates = make(arguments)
            found.update(coordinates.parameters(coordinates.starts(1, 0)[0]))
        return found[name].to(torch.empty(()))

    return {
        name: pyro.param(f"guide.{name}", partial(initial, name), constraint=kind)
        for name, kind in constraints.items()
    }
