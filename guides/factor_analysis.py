"""The guides written for `factor_analysis`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.guides import Needs, Start, register
from elbowroom.guides.auto import mean_field
from elbowroom.guides.conjugate_families import LOG_TWO, LOG_TWO_PI, Gammas, guide_parameters
from elbowroom.guides.space import LatentSpace
from elbowroom.models import ROWS
from elbowroom.models.factor_analysis import CONJUGATE, below, points, posterior

NARROWEST = 1e-10
"""The share of a column's variance that is noise, at which it counts as zero."""
HEYWOOD = 1e-3
"""The same at which it may become zero."""
POINTS = Needs(
    "priors", "none", "it estimates mean, loadings and noise as points, and here they have priors"
)
PRIORS = Needs("priors", "conjugate", "mean, loadings and noise are points, which have no priors")


@register(
    "exact",
    "each row's posterior in closed form, given the point parameters",
    model="factor_analysis",
    elbo="trace",
    amortised=True,
    exact=True,
    needs=POINTS,
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
        **others: Any,
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
    needs=POINTS,
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
        **others: Any,
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
    needs=POINTS,
)
def em(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The same guide as `exact`, at the points that `FactorSteps` found."""
    return exact(space, start)


@dataclass(frozen=True)
class FactorFactors:
    """The factors of a guide for factor analysis with conjugate priors, in scaled columns.

    A column's coefficients are its loadings, zero above the diagonal, and last its mean.

    Attributes:
        slope: Of a row's expected latents in the row, (columns, latent).
        level: Those of a row of zeros, (latent,).
        spread: The latents' covariance, which all rows share, (latent, latent).
        location: Of the coefficients, (columns, latent + 1).
        covariance: Of each column's, (columns, latent + 1, latent + 1), that of those that are
            always zero being zero.
        precision: Of the noise, (columns,) or (1,).
    """

    slope: Tensor
    level: Tensor
    spread: Tensor
    location: Tensor
    covariance: Tensor
    precision: Gammas


@dataclass(frozen=True)
class FactorCoordinates:
    """Coordinate ascent for factor analysis with conjugate priors, in float64.

    Ghahramani and Beal, 2000, "Variational inference for Bayesian mixtures of factor analysers";
    Bishop, 1999, "Variational principal components". See
    `elbowroom.engines.coordinate_ascent.ascent.Coordinates`.

    Attributes:
        x: Scaled rows, (rows, columns).
        latent: Latent dimensions.
        shared: Whether all columns have the same noise.
        units: What the logarithms of the columns' scales take from the log density.
    """

    x: Tensor
    latent: int
    shared: bool
    units: float

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "FactorCoordinates":
        """The updates for a model's arguments."""
        centre, spread, x = (arguments[n].double().cpu() for n in ("centre", "spread", "x"))
        units = len(x) * float(spread.log().sum())
        return cls((x - centre) / spread, arguments["latent"], arguments["shared"], units)

    @property
    def updates(self) -> Mapping[str, Callable[[FactorFactors], FactorFactors]]:
        """Of the rows' latents, of loadings and means together, and of the noise."""
        return {"latents": self.latents, "coefficients": self.coefficients, "noise": self.noise}

    @property
    def _free(self) -> Tensor:
        """One for each coefficient that is not always zero, (columns, latent + 1)."""
        ones = torch.ones(self.x.shape[1], self.latent).tril()
        return torch.cat([ones, torch.ones_like(ones[:, :1])], 1).to(self.x)

    @property
    def _prior(self) -> Gammas:
        """Of the noise."""
        one = self.x.new_ones(1 if self.shared else self.x.shape[1])
        return Gammas(CONJUGATE.shape * one, CONJUGATE.rate * one)

    def starts(self, count: int, seed: int) -> list[FactorFactors]:
        """Random loadings: if all are zero, no row says anything about the latents."""
        random, columns = torch.Generator().manual_seed(seed), self.x.shape[1]
        found = []
        for _ in range(count):
            drawn = torch.randn(columns, self.latent + 1, generator=random, dtype=torch.float64)
            location = 0.3 * drawn * self._free
            location[:, -1] = self.x.mean(0)
            first = FactorFactors(
                self.x.new_zeros(columns, self.latent),
                self.x.new_zeros(self.latent),
                torch.eye(self.latent).to(self.x),
                location,
                self.x.new_zeros(columns, self.latent + 1, self.latent + 1),
                Gammas(self._prior.shape, self._prior.shape / 2),  # half of the variance is noise
            )
            found.append(self.noise(self.coefficients(self.latents(first))))
        return found

    def _weight(self, factors: FactorFactors) -> Tensor:
        """The expected precision of each column's noise, (columns,)."""
        return factors.precision.mean.expand(self.x.shape[1])

    @staticmethod
    def _squares(factors: FactorFactors) -> Tensor:
        """The expected products of each column's coefficients."""
        location = factors.location
        return factors.covariance + location.unsqueeze(-1) * location.unsqueeze(-2)

    def latents(self, factors: FactorFactors) -> FactorFactors:
        """A row's expected latents are linear in the row, and all rows share their covariance."""
        weight, latent = self._weight(factors), self.latent
        squares = torch.einsum("j,jab->ab", weight, self._squares(factors))
        precision = torch.eye(latent).to(self.x) + squares[:latent, :latent]
        spread = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        slope = weight.unsqueeze(-1) * factors.location[:, :latent] @ spread
        return replace(
            factors, slope=slope, level=-squares[latent, :latent] @ spread, spread=spread
        )

    def _scores(self, factors: FactorFactors) -> tuple[Tensor, Tensor]:
        """Expected latents of the rows with a one, (rows, latent + 1), and their products' sum."""
        means = factors.level + self.x @ factors.slope
        design = torch.cat([means, torch.ones_like(means[:, :1])], 1)
        products = design.T @ design
        products[: self.latent, : self.latent] += len(self.x) * factors.spread
        return design, products

    def coefficients(self, factors: FactorFactors) -> FactorFactors:
        """The regression of each column on the latents, with the uncertainty of these."""
        design, products = self._scores(factors)
        free, weight = self._free, self._weight(factors)
        both = free.unsqueeze(-1) * free.unsqueeze(-2)
        unit = torch.eye(self.latent + 1).to(self.x)
        precision = weight[:, None, None] * products + CONJUGATE.width**-2 * unit
        # Those that are always zero stand apart.
        precision = both * precision + (1 - free).unsqueeze(-1) * unit
        covariance = both * torch.cholesky_inverse(torch.linalg.cholesky(precision))
        moment = weight * (design.T @ self.x)  # (latent + 1, columns)
        location = torch.einsum("jab,bj->ja", covariance, moment)
        return replace(factors, location=location, covariance=covariance)

    def _misfit(self, factors: FactorFactors) -> Tensor:
        """The expected squared distance of each column from its mean, (columns,)."""
        design, products = self._scores(factors)
        along = torch.einsum("ja,aj->j", factors.location, design.T @ self.x)
        squares = torch.einsum("ab,jab->j", products, self._squares(factors))
        return self.x.square().sum(0) - 2 * along + squares

    def noise(self, factors: FactorFactors) -> FactorFactors:
        """What the latents do not explain of the columns."""
        misfit, prior = self._misfit(factors), self._prior
        rows = torch.full_like(misfit, len(self.x))
        if self.shared:
            misfit, rows = misfit.sum(0, keepdim=True), rows.sum(0, keepdim=True)
        return replace(factors, precision=Gammas(prior.shape + rows / 2, prior.rate + misfit / 2))

    def elbo(self, factors: FactorFactors) -> float:
        """Of the rows, less the divergences of the factors from their priors."""
        _, products = self._scores(factors)
        rows, free, precision = len(self.x), self._free, factors.precision
        logs = precision.mean_log.expand(self.x.shape[1])
        misfit = (self._weight(factors) * self._misfit(factors)).sum()
        normal = rows * (LOG_TWO_PI - logs).sum() + misfit
        sizes = products[: self.latent, : self.latent].trace()
        latents = sizes - rows * (self.latent + torch.linalg.slogdet(factors.spread).logabsdet)
        filled = factors.covariance + torch.diag_embed(1 - free)
        squares = self._squares(factors).diagonal(dim1=-2, dim2=-1).sum() / CONJUGATE.width**2
        log_ratio = torch.linalg.slogdet(filled).logabsdet.sum()
        log_ratio = log_ratio - free.sum() * torch.tensor(CONJUGATE.width).log() * 2
        coefficients = squares - free.sum() - log_ratio
        divergence = precision.divergence(self._prior).sum()
        return float(-0.5 * (normal + latents + coefficients) - divergence) - self.units

    def remarks(self, factors: FactorFactors) -> list[str]:
        """What the signs of the latents, which say nothing, are in log p(data)."""
        return [
            f"log p(data) counts one choice of the latents' signs: of all {2**self.latent} it is "
            f"{self.latent * LOG_TWO:.4g} nats larger, if the draws keep to theirs."
        ]

    def parameters(self, factors: FactorFactors) -> dict[str, Tensor]:
        """The guide's."""
        filled = factors.covariance + torch.diag_embed(1 - self._free)
        return {
            "latents.slope": factors.slope,
            "latents.level": factors.level,
            "latents.factor": torch.linalg.cholesky(factors.spread),
            "coefficients.location": factors.location,
            "coefficients.factor": torch.linalg.cholesky(filled),
            "precisions.shape": factors.precision.shape,
            "precisions.rate": factors.precision.rate,
        }


def _sample_coefficients(location: Tensor, factor: Tensor, latent: int) -> Tensor:
    """Draws each column's loadings and mean together, (columns, latent + 1).

    The first columns have fewer loadings.

    Args:
        location: (columns, latent + 1).
        factor: Lower Cholesky factors, (columns, latent + 1, latent + 1).
        latent: Latent dimensions.
    """
    parts = []
    for column in range(latent - 1):
        kept = torch.tensor([*range(column + 1), latent])
        own = dist.MultivariateNormal(
            location[column, kept], scale_tril=factor[column, kept][:, kept]
        )
        drawn = pyro.sample(f"guide.coefficients.{column}", own, infer={"is_auxiliary": True})
        zeros = torch.zeros_like(location[column, column + 1 : latent])
        parts.append(torch.cat([drawn[:-1], zeros, drawn[-1:]]).unsqueeze(0))
    rest = dist.MultivariateNormal(location[latent - 1 :], scale_tril=factor[latent - 1 :])
    parts.append(pyro.sample("guide.coefficients", rest.to_event(1), infer={"is_auxiliary": True}))
    return torch.cat(parts)


@register(
    "coordinate_ascent",
    "conjugate families, by updates in closed form; a row's mean is linear in the row",
    model="factor_analysis",
    amortised=True,
    engines=("coordinate_ascent",),
    coordinates=FactorCoordinates.of,
    needs=PRIORS,
)
def coordinate_ascent(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Ghahramani and Beal, 2000, "Variational inference for Bayesian mixtures of factor analysers".

    Each column's loadings and mean are Normal together, the precision of its noise is Gamma, and
    the rows' latents are Normal.
    """

    def guide(
        x: Tensor,
        centre: Tensor,
        spread: Tensor,
        rows: int,
        latent: int,
        shared: bool,
        batch_size: int | None = None,
        **others: Any,
    ) -> None:
        arguments = {"x": x, "centre": centre, "spread": spread, "latent": latent}
        arguments["shared"] = shared
        known = guide_parameters(FactorCoordinates.of, arguments, PARAMETERS)
        both = _sample_coefficients(
            known["coefficients.location"], known["coefficients.factor"], latent
        )
        pyro.sample("mean", dist.Delta(both[:, -1], event_dim=1))
        columns, places = below(len(centre), latent)
        pyro.sample("free_loadings", dist.Delta(both[columns, places], event_dim=1))
        gammas = dist.Gamma(known["precisions.shape"], known["precisions.rate"])
        pyro.sample("noise_precision", gammas.to_event(1))
        with pyro.plate(ROWS, rows, subsample_size=batch_size):
            batch = (pyro.subsample(x, event_dim=1) - centre) / spread
            means = known["latents.level"] + batch @ known["latents.slope"]
            pyro.sample("z", dist.MultivariateNormal(means, scale_tril=known["latents.factor"]))

    return guide


PARAMETERS = {
    "latents.slope": constraints.real,
    "latents.level": constraints.real,
    "latents.factor": constraints.lower_cholesky,
    "coefficients.location": constraints.real,
    "coefficients.factor": constraints.lower_cholesky,
    "precisions.shape": constraints.positive,
    "precisions.rate": constraints.positive,
}
"""Of the guide of coordinate ascent, with their constraints."""
