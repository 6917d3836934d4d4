"""Mixtures of multivariate t distributions, which importance draws are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.special import gammaln, logsumexp
from scipy.stats import f

from elbowroom.guides.roots import factor_of


@dataclass(frozen=True)
class ProposalTails:
    """The tails of a proposal.

    They bound the weights where the target's tails are heavier than the other components'
    (Hesterberg, 1995, "Weighted average importance sampling and defensive mixture distributions"),
    and reach so far that the draws tell whether a quantity has a variance. In many dimensions they
    would all miss the target.
    """

    freedom: float = 7.0
    """The fewest degrees of freedom of a component."""
    defensive: float = 0.1
    """The share of draws with Cauchy tails."""
    reach: float = 100.0
    """Where these tails end, in scales."""
    digits: float = 1e3
    """How many times as wide as the rounding error of a draw a component is, at least, so that the
    draw tells how far from its centre it is."""
    clear: float = 1e-5
    """Widths, relative to the coordinates, from which all components are."""
    most_coordinates: int = 20
    """The most coordinates in which there are such draws."""


TAILS = ProposalTails()


@dataclass(frozen=True)
class LowRankNormal:
    """A Normal whose covariance is diag(scale²) plus a factor times its transpose.

    Attributes:
        mean: (D,).
        scale: (D,).
        factor: (D, R).
    """

    mean: np.ndarray
    scale: np.ndarray
    factor: np.ndarray

    def covariance(self, coordinates: np.ndarray) -> np.ndarray:
        """Of some coordinates, (n,), with each other, (n, n)."""
        rows = self.factor[coordinates]
        return rows @ rows.T + np.diag(np.square(self.scale[coordinates]))


@dataclass(frozen=True)
class Mixture:
    """A mixture of multivariate t distributions over unconstrained coordinates.

    Attributes:
        shares: Of the components, (K,), summing to one.
        means: (K, D).
        factors: Lower Cholesky factors of the scale matrices, (K, D, D). Where a component is
            narrower than float64 tells its draws from each other, it is made as wide as that: they
            would have another density than it says.
        freedom: Degrees of freedom.
    """

    shares: np.ndarray
    means: np.ndarray
    factors: np.ndarray
    freedom: float

    def __post_init__(self) -> None:
        sizes = np.abs(self.means) + np.linalg.norm(self.factors, axis=2)
        own = np.diagonal(self.factors, axis1=1, axis2=2)
        if (own < TAILS.clear * sizes).any():
            object.__setattr__(self, "factors", _resolved(self.factors, sizes))

    def marginal(self, coordinates: np.ndarray) -> "Mixture":
        """The mixture of some coordinates, (S,), with tails that suit their number."""
        rows = self.factors[:, coordinates]
        covariances = rows @ np.swapaxes(rows, 1, 2)
        return Mixture.of(self.shares, self.means[:, coordinates], covariances)

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draws, (count, D); each component gives its share of them as nearly as can be."""
        ends = np.floor(np.cumsum(self.shares) * count + 0.5).astype(int)
        ends[-1] = count
        size = self.means.shape[1]
        normal = random.standard_normal((count, size))
        radius = np.sqrt(random.chisquare(self.freedom, count) / self.freedom)
        standard = normal / radius[:, None]
        far = random.permutation(count) < TAILS.defensive * count * (size <= TAILS.most_coordinates)
        # A ratio of chi-squares has an F distribution; its share within reach, inverted.
        ratio = f.ppf(random.uniform(size=far.sum()) * np.exp(_log_reached(size)), size, 1)
        lengths = np.linalg.norm(normal[far], axis=1)
        standard[far] = normal[far] * (np.sqrt(size * ratio) / lengths)[:, None]
        parts, begin = [], 0
        for mean, factor, end in zip(self.means, self.factors, ends, strict=True):
            parts.append(mean + standard[begin:end] @ factor.T)
            begin = end
        return np.concatenate(parts)

    def log_densities(self, points: np.ndarray) -> np.ndarray:
        """Log share plus log density of each component, (n, K)."""
        size, columns = points.shape[1], []
        for share, mean, factor in zip(self.shares, self.means, self.factors, strict=True):
            standard = solve_triangular(factor, (points - mean).T, lower=True, check_finite=False)
            distance = np.square(standard).sum(0)
            log_density = _log_t(distance, size, self.freedom)
            if size <= TAILS.most_coordinates:
                log_density = np.logaddexp(
                    np.log1p(-TAILS.defensive) + log_density,
                    np.log(TAILS.defensive) + _log_far(distance, size),
                )
            log_determinant = np.log(np.diag(factor)).sum()
            columns.append(np.log(share) + log_density - log_determinant)
        return np.stack(columns, axis=1)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Of the mixture, (n,)."""
        return logsumexp(self.log_densities(points), axis=1)

    @classmethod
    def of(cls, shares: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> "Mixture":
        """A mixture with tails that suit the dimension.

        Against a Normal target a t with half as many degrees of freedom as dimensions keeps three
        quarters of its draws; fewer in high dimensions would waste most of them.
        """
        freedom = max(TAILS.freedom, means.shape[1] / 2)
        return cls(
            shares / shares.sum(), means, factor_of(torch.as_tensor(covariances)).numpy(), freedom
        )


def _resolved(factors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Factors, (K, D, D), by which standardised draws can be told back from the draws.

    Args:
        factors: Lower triangular.
        sizes: Of the coordinates of draws, (K, D), whose last digit is lost.
    """
    found, lost = factors.copy(), np.zeros(sizes.shape)
    for j in range(sizes.shape[1]):
        error = np.finfo(float).eps * sizes[:, j]
        error += (np.abs(found[:, j, :j]) * lost[:, :j]).sum(1)
        found[:, j, j] = np.maximum(found[:, j, j], TAILS.digits * error)
        lost[:, j] = error / found[:, j, j]
    return found


def _log_t(distance: np.ndarray, size: int, freedom: float) -> np.ndarray:
    """Log density of a standard multivariate t distribution at squared distances."""
    constant = gammaln((freedom + size) / 2) - gammaln(freedom / 2)
    constant -= size / 2 * np.log(freedom * np.pi)
    return constant - (freedom + size) / 2 * np.log1p(distance / freedom)


@cache
def _log_reached(size: int) -> float:
    """The log probability of a multivariate Cauchy distribution within `TAILS.reach`."""
    return float(f.logcdf(TAILS.reach**2, size, 1))


def _log_far(distance: np.ndarray, size: int) -> np.ndarray:
    """Log density of a standard multivariate Cauchy distribution that ends at `TAILS.reach`."""
    within = _log_t(distance, size, 1.0) - _log_reached(size)
    return np.where(distance <= size * TAILS.reach**2, within, -np.inf)


def mixed(mixtures: list[Mixture], counts: Sequence[float]) -> Mixture:
    """The mixture that so many draws of each are drawn from."""
    weight = np.array(counts) / sum(counts)
    return replace(
        mixtures[0],
        shares=np.concatenate([w * m.shares for w, m in zip(weight, mixtures, strict=True)]),
        means=np.concatenate([mixture.means for mixture in mixtures]),
        factors=np.concatenate([mixture.factors for mixture in mixtures]),
    )
