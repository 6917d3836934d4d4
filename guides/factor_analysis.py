"""The guides written for `factor_analysis`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.guides import Start, register
from elbowroom.guides.auto import mean_field
from elbowroom.guides.space import LatentSpace
from elbowroom.models import ROWS
from elbowroom.models.factor_analysis import points, posterior

LOG_TWO_PI = math.log(2 * math.pi)
NARROWEST = 1e-10
"""The share of a column's variance that is noise, at which it counts as zero."""
HEYWOOD = 1e-3
"""The same at which it may become zero."""


@register(
    "exact",
    "each row's posterior in closed form, given the point parameters",
    model="factor_analysis",
    elbo="trace",
    amortised=True,
    exact=True,
)
def exact(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Tipping and Bishop, 1999, "Probabilistic principal component analysis".

    The ELBO is the log likelihood of the points at every draw, and so is its gradient, without
    noise: what is maximised is the likelihood.
    """

    def guide(
        x: Tensor,
        centre: Tensor,
        spread: Tensor,
        rows: int,
        latent: int,
        shared: bool,
        batch_size: int | None = None,
    ) -> None:
        known = points(len(centre), latent, shared)
        with pyro.plate(ROWS, rows, subsample_size=batch_size):
            batch = (pyro.subsample(x, event_dim=1) - centre) / spread
            means, covariance = posterior(batch, *known)
            factor = torch.linalg.cholesky(covariance)
            pyro.sample("z", dist.MultivariateNormal(means, scale_tril=factor))

    return guide


@register(
    "linear",
    "amortised: a row's mean is linear in the row, and all rows share one covariance",
    model="factor_analysis",
    elbo="sticking_the_landing",
    amortised=True,
)
def linear(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The form of the posterior, with free parameters: what a network would have to learn."""

    def guide(
        x: Tensor,
        centre: Tensor,
        spread: Tensor,
        rows: int,
        latent: int,
        shared: bool,
        batch_size: int | None = None,
    ) -> None:
        slope = pyro.param("guide.slope", lambda: 0.1 * torch.randn(len(centre), latent))
        level = pyro.param("guide.level", lambda: torch.zeros(latent))
        factor = pyro.param(
            "guide.factor", lambda: torch.eye(latent), constraint=constraints.lower_cholesky
        )
        with pyro.plate(ROWS, rows, subsample_size=batch_size):
            batch = (pyro.subsample(x, event_dim=1) - centre) / spread
            pyro.sample("z", dist.MultivariateNormal(level + batch @ slope, scale_tril=factor))

    return guide


@register(
    "local",
    "each row has its own mean and scale",
    model="factor_analysis",
    elbo="trace_mean_field",
    replaces="mean_field",
)
def local(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Stochastic variational inference without amortisation (Hoffman et al., 2013)."""
    return mean_field(space, start)


@dataclass(frozen=True)
class Factors:
    """Factor analysis of scaled columns: what expectation-maximisation estimates.

    Attributes:
        mean: (columns,).
        loadings: In any rotation, (columns, latent).
        variances: Of the noise, (columns,).
    """

    mean: Tensor
    loadings: Tensor
    variances: Tensor


@dataclass(frozen=True)
class FactorSteps:
    """Expectation-maximisation for factor analysis and probabilistic PCA, float64.

    Rubin and Thayer, 1982, "EM algorithms for ML factor analysis"; Tipping and Bishop, 1999,
    "Probabilistic principal component analysis". See
    `elbowroom.engines.em.expectation_maximisation.Steps`.

    Attributes:
        columns: Their names.
        x: Scaled rows, (rows, columns).
        latent: Latent dimensions.
        shared: Whether all columns have the same noise.
        units: What the logarithms of the columns' scales take from the log density.
    """

    columns: Sequence[str]
    x: Tensor
    latent: int
    shared: bool
    units: float

    @classmethod
    def of(cls, arguments: Mapping[str, Any], columns: Sequence[str]) -> "FactorSteps":
        """The steps for a model's arguments and the columns' names.

        Example:
            >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.5], [2.0, 4.0], [4.0, 5.0]])
            >>> steps = FactorSteps.of(
            ...     {"x": x, "centre": x.mean(0), "spread": x.std(0), "latent": 1, "shared": True},
            ...     ["a", "b"],
            ... )
            >>> values = steps.starts(1, 0)[0]
            >>> again = steps.maximise(steps.expect(values))
            >>> steps.log_likelihood(again) > steps.log_likelihood(values)
            True
        """
        centre, spread, x = (arguments[n].double().cpu() for n in ("centre", "spread", "x"))
        units = len(x) * float(spread.log().sum())
        latent, shared = arguments["latent"], arguments["shared"]
        return cls(columns, (x - centre) / spread, latent, shared, units)

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.x)

    def starts(self, count: int, seed: int) -> list[Factors]:
        """Random loadings: if all are zero, no row says anything about the latents."""
        random, columns = torch.Generator().manual_seed(seed), self.x.shape[1]
        drawn = [
            torch.randn(columns, self.latent, generator=random, dtype=torch.float64)
            for _ in range(count)
        ]
        even = torch.full((columns,), 0.5, dtype=torch.float64)
        return [Factors(self.x.mean(0), 0.3 * loadings, even) for loadings in drawn]

    def expect(self, values: Factors) -> tuple[Tensor, Tensor]:
        """The latents' posterior: means (rows, latent), and the covariance of every row."""
        return posterior(self.x, values.mean, values.loadings, values.variances.sqrt())

    def maximise(self, expected: tuple[Tensor, Tensor]) -> Factors:
        """The regression of the rows on their latents, with the uncertainty of these."""
        means, covariance = expected
        design = torch.cat([means, torch.ones_like(means[:, :1])], 1)  # (rows, latent + 1)
        moments = design.T @ design
        moments[:-1, :-1] += self.rows * covariance
        coefficients = torch.linalg.solve(moments, design.T @ self.x).T  # (columns, latent + 1)
        loadings, mean = coefficients[:, :-1], coefficients[:, -1]
        return Factors(mean, loadings, self._noise(self._misfit(mean, loadings, expected)))

    def _misfit(self, mean: Tensor, loadings: Tensor, expected: tuple[Tensor, Tensor]) -> Tensor:
        """The expected squared distance of a row from its image, (columns,)."""
        means, covariance = expected
        squares = (self.x - mean - means @ loadings.T).square().mean(0)
        return squares + ((loadings @ covariance) * loadings).sum(1)

    def _noise(self, variances: Tensor) -> Tensor:
        return variances.mean().expand_as(variances) if self.shared else variances

    def elbo(self, values: Factors, expected: tuple[Tensor, Tensor]) -> float:
        """The expected log density of rows and latents, and the entropy of the latter."""
        means, covariance = expected
        misfit = self._misfit(values.mean, values.loadings, expected)
        rows = (values.variances.log() + LOG_TWO_PI + misfit / values.variances).sum()
        size = means.square().sum(1).mean() + covariance.trace()
        latents = size - self.latent - torch.linalg.slogdet(covariance).logabsdet
        return float(-0.5 * self.rows * (rows + latents)) - self.units

    def log_likelihood(self, values: Factors) -> float:
        """Log p(x), in the user's units."""
        covariance = values.loadings @ values.loadings.T + torch.diag(values.variances)
        normal = torch.distributions.MultivariateNormal(
            values.mean, covariance, validate_args=False
        )
        return float(normal.log_prob(self.x).sum()) - self.units

    def closing_in(self, values: Factors, expected: tuple[Tensor, Tensor]) -> str | None:
        """A column without noise."""
        number = int(values.variances.argmin())
        if float(values.variances[number]) > NARROWEST:
            return None
        what = "all columns" if self.shared else f"'{self.columns[number]}'"
        return f"the noise of {what} goes to zero."

    def sites(self, values: Factors) -> dict[str, Tensor]:
        """The model's point parameters, the loadings in its rotation."""
        deviations = values.variances.sqrt()
        return {
            "mean": values.mean,
            "loadings": _triangular(values.loadings),
            "noise": deviations[:1] if self.shared else deviations,
        }

    def remarks(self, values: Factors, expected: tuple[Tensor, Tensor]) -> list[str]:
        """Columns that are nearly without noise (Heywood, 1931)."""
        return [
            f"the noise sd of '{self.columns[number]}' is {variance**0.5:.1%} of the column's sd: "
            "the maximum may be at zero noise (a Heywood case); give a smaller --latent, or "
            "--noise shared."
            for number, variance in enumerate(values.variances.tolist())
            if variance < HEYWOOD and not self.shared
        ]

    @property
    def remedy(self) -> str:
        """What to do if a column's noise goes to zero."""
        return (
            "give a smaller --latent, give --noise shared, or --exclude a column that the others "
            "determine."
        )


def _triangular(loadings: Tensor) -> Tensor:
    """The rotation of loadings whose upper triangle is zero, and whose diagonal is not negative.

    Example:
        >>> _triangular(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        tensor([[5.0000, 0.0000],
                [0.6000, 0.8000]])
    """
    rotation, upper = torch.linalg.qr(loadings[: loadings.shape[1]].T)
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0)
    return (loadings @ (rotation * signs)).tril()


@register(
    "em",
    "expectation-maximisation; each row's posterior in closed form",
    model="factor_analysis",
    elbo="trace",
    amortised=True,
    engines=("em",),
    steps=FactorSteps.of,
)
def em(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The same guide as `exact`, at the points that `FactorSteps` found."""
    return exact(space, start)
