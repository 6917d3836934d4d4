"""Coordinate ascent for a linear regression with conjugate priors, which several models have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.guides.conjugate_families import LOG_TWO_PI, Gammas

PARAMETERS = {
    "coefficients.location": constraints.real,
    "coefficients.factor": constraints.lower_cholesky,
    "variance.shape": constraints.positive,
    "variance.scale": constraints.positive,
}
"""Of the guide, with their constraints."""


@dataclass(frozen=True)
class RegressionFactors:
    """The factors of a guide for a regression.

    Attributes:
        location: The mean of the coefficients, (terms,).
        covariance: Of the coefficients, (terms, terms).
        precision: One over the variance of the noise, ().
    """

    location: Tensor
    covariance: Tensor
    precision: Gammas


@dataclass(frozen=True)
class RegressionCoordinates:
    r"""Coordinate ascent for $y \sim N(Z b, v)$, $b \sim N(m, c^2 v)$, $v \sim IG$, in float64.

    The coefficients are Normal, the variance inverse-Gamma, each independent of the other; the
    means of the coefficients are those of the exact posterior. See
    `elbowroom.engines.coordinate_ascent.ascent.Coordinates`.

    Drugowitsch, 2013, "Variational Bayesian inference for linear and logistic regression".

    Attributes:
        design: A column for each term, (rows, terms).
        y: The response, (rows,).
        prior_mean: m, (terms,).
        prior_scale: c, the prior standard deviation of the terms in units of that of the noise.
        prior: Of the precision of the noise, ().
        units: What the logarithm of the response's scale takes from the log density.
    """

    design: Tensor
    y: Tensor
    prior_mean: Tensor
    prior_scale: float
    prior: Gammas
    units: float = 0.0

    @property
    def updates(self) -> Mapping[str, Callable[[RegressionFactors], RegressionFactors]]:
        """Of the coefficients, and of the variance."""
        return {"coefficients": self.coefficients, "variance": self.variance}

    @property
    def _gram(self) -> Tensor:
        return self.design.T @ self.design

    @property
    def _terms(self) -> int:
        return self.design.shape[1]

    def starts(self, count: int, seed: int) -> list[RegressionFactors]:
        """One: there is one optimum."""
        prior = replace(self.prior, rate=self.prior.shape)  # a precision of one
        zero = torch.zeros_like(self.prior_mean)
        first = RegressionFactors(zero, torch.eye(self._terms).to(zero), prior)
        return [self.variance(self.coefficients(first))]

    def coefficients(self, factors: RegressionFactors) -> RegressionFactors:
        """The ridge regression of the response, with the noise that is expected."""
        weight = self.prior_scale**-2
        precision = self._gram + weight * torch.eye(self._terms).to(self.design)
        moment = self.design.T @ self.y + weight * self.prior_mean
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        covariance = inverse / factors.precision.mean
        return replace(factors, location=inverse @ moment, covariance=covariance)

    def variance(self, factors: RegressionFactors) -> RegressionFactors:
        """What the coefficients do not explain, and how far they are from their prior."""
        count = len(self.y) + self._terms
        squares = self._misfit(factors) + self._distance(factors)
        shape, rate = self.prior.shape + count / 2, self.prior.rate + squares / 2
        return replace(factors, precision=Gammas(shape, rate))

    def _misfit(self, factors: RegressionFactors) -> Tensor:
        """The expected squared distance of the response from its mean."""
        apart = self.y - self.design @ factors.location
        return apart.square().sum() + (self._gram * factors.covariance).sum()

    def _distance(self, factors: RegressionFactors) -> Tensor:
        """The expected squared distance of the coefficients from their prior's mean, over c²."""
        apart = factors.location - self.prior_mean
        return (apart.square().sum() + factors.covariance.trace()) / self.prior_scale**2

    def elbo(self, factors: RegressionFactors) -> float:
        """Of the rows, less the divergences of the factors from their priors."""
        precision, terms, rows = factors.precision, self._terms, len(self.y)
        normal = rows * (LOG_TWO_PI - precision.mean_log) + precision.mean * self._misfit(factors)
        log_determinant = torch.linalg.slogdet(factors.covariance / self.prior_scale**2).logabsdet
        coefficients = (
            precision.mean * self._distance(factors)
            - terms * (1 + precision.mean_log)
            - log_determinant
        )
        divergence = precision.divergence(self.prior)
        return float(-0.5 * (normal + coefficients) - divergence) - self.units

    def remarks(self, factors: RegressionFactors) -> list[str]:
        """None: the means are exact."""
        return []

    def parameters(self, factors: RegressionFactors) -> dict[str, Tensor]:
        """The guide's."""
        return {
            "coefficients.location": factors.location,
            "coefficients.factor": torch.linalg.cholesky(factors.covariance),
            "variance.shape": factors.precision.shape,
            "variance.scale": factors.precision.rate,
        }
