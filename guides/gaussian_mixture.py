"""The guides written for `gaussian_mixture`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import one_hot

from elbowroom.guides import Needs, Start, register
from elbowroom.guides.auto import sample_normal
from elbowroom.guides.conjugate_families import (
    LOG_TWO_PI,
    DiagonalPrecisions,
    Dirichlet,
    Gammas,
    Wisharts,
    divergence_of_means,
    guide_parameters,
)
from elbowroom.guides.families import sample_site, scales
from elbowroom.guides.space import LatentSpace
from elbowroom.models._wishart import Wishart
from elbowroom.models.gaussian_mixture import (
    CONJUGATE,
    allowed,
    covariance_sites,
    covariances_of,
    means_given,
    starts,
)

CONCENTRATION = 20.0
"""The Dirichlet's total concentration for each component, where a guide begins."""

NARROWEST = 1e-10
"""A component's variance in a direction, over that of all rows, at which it has collapsed."""


def _weights(value: Tensor) -> None:
    """Samples the weights from a Dirichlet that begins around `value`."""
    pyro.sample(
        "weights",
        dist.Dirichlet(
            pyro.param(
                "guide.weights.concentration",
                CONCENTRATION * len(value) * value,
                constraint=constraints.positive,
            )
        ),
    )


@register(
    "collapsed",
    "a Normal for each component's parameters; assignments are summed over",
    model="gaussian_mixture",
    elbo="trace_enum",
)
def collapsed(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Independent components; within one, mean, scales and correlations are jointly Normal.

    The assignments are not in the guide: the objective sums over them.
    """
    parts, widths = space.split(start.location), space.split(scales(start))
    sites = [site for site in space.sites if site.name != "weights"]
    components = sites[0].shape[0]
    weights = space.constrain(start.location)["weights"]

    def block(values: dict[str, Tensor]) -> Tensor:  # (components, block)
        return torch.cat([values[site.name].reshape(components, -1) for site in sites], 1)

    location, width = block(parts), block(widths)
    sizes = [parts[site.name][0].numel() for site in sites]
    shapes = [site.unconstrained_shape for site in sites]

    def initial_factor() -> Tensor:  # (components, block, block)
        size = location.shape[1]
        if start.precision is None:
            return torch.eye(size).expand(components, -1, -1).clone()
        index = block(space.split(torch.arange(space.dimension))).long()
        precision = torch.stack([start.precision[row][:, row] for row in index])
        covariance = torch.linalg.inv(precision)
        scaling = width.unsqueeze(-1) * width.unsqueeze(-2)
        return torch.linalg.cholesky(covariance / scaling)

    def guide(**arguments: Any) -> None:
        _weights(weights)
        offset = pyro.param("guide.components.offset", torch.zeros_like(location))
        factor = pyro.param(
            "guide.components.factor", initial_factor, constraint=constraints.lower_cholesky
        )
        with space.plates(arguments)(sites[0].plates):
            drawn = pyro.sample(
                "guide.component",
                dist.MultivariateNormal(
                    location + width * offset, scale_tril=width.unsqueeze(-1) * factor
                ),
                infer={"is_auxiliary": True},
            )  # (components, block)
            for site, part, shape in zip(sites, drawn.split(sizes, -1), shapes, strict=True):
                sample_site(site, part.reshape(shape))

    return guide


# Summed over by `trace_enum`; drawn by `trace_graph`, whose score function takes the baseline.
ASSIGNMENTS: Any = {
    "enumerate": "parallel",
    "baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.95},
}


@register(
    "local",
    "mean field: independent Normals, and a Categorical for each row",
    model="gaussian_mixture",
)
def local(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The factorisation of Bishop, 2006, "Pattern recognition and machine learning", 10.2.

    Each row has free probabilities of its assignment, which can be summed over (`trace_enum`) or
    drawn, with a decaying-average baseline for the score function (`trace_graph`).
    """
    values = space.constrain(start.location)
    sites = [site for site in space.sites if site.name != "weights"]
    parts, widths = space.split(start.location), space.split(scales(start))

    def guide(**arguments: Any) -> None:
        _weights(values["weights"])
        plates = space.plates(arguments)
        for site in sites:
            with plates(site.plates):
                sample_normal(site, parts[site.name], widths[site.name])
        with plates(space.discrete["assignments"]):
            logits = pyro.param(
                "guide.assignments.logits",
                lambda: initial_logits(values, arguments),
                event_dim=1,
            )
            if arguments.get("labels") is not None:
                known = pyro.subsample(arguments["labels"], event_dim=0)
                logits = logits + allowed(known, arguments["components"])
            pyro.sample("assignments", dist.Categorical(logits=logits), infer=ASSIGNMENTS)

    return guide


def initial_logits(values: dict[str, Tensor], arguments: Any) -> Tensor:
    """Log responsibilities of diagonal Normals at the start, up to a constant, (rows, K)."""
    x = (arguments["x"] - arguments["centre"]) / arguments["spread"]  # (rows, columns)
    means = values["standardised_means"]
    variances = covariances_of(values).diagonal(dim1=-2, dim2=-1)
    normal = dist.Normal(means, variances.sqrt()).to_event(1)
    return normal.log_prob(x.unsqueeze(1)) + values["weights"].log()


@dataclass(frozen=True)
class Components:
    """A mixture of Normals of scaled columns: what expectation-maximisation estimates.

    Attributes:
        weights: (components,).
        means: (components, columns).
        covariances: (components, columns, columns).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


@dataclass(frozen=True)
class MixtureSteps:
    """Expectation-maximisation for a mixture of Normals, in scaled columns, float64.

    Dempster, Laird and Rubin, 1977, "Maximum likelihood from incomplete data via the EM algorithm".
    See `elbowroom.engines.em.expectation_maximisation.Steps`.

    Attributes:
        arguments: Of the model.
        columns: Their names.
        x: Scaled rows, (rows, columns).
        units: What the logarithms of the columns' scales take from the log density.
        whole: Lower Cholesky factor of the covariance of all rows, as far as components have one;
            None if it is singular.
        hard: Whether each row has its most probable component alone. The ELBO is then the log
            density of the rows and their components, which no step lowers either (Celeux and
            Govaert, 1992, "A classification EM algorithm for clustering and two stochastic
            versions").
        left: Minus infinity where a row has the label of another component, else zero, (rows,
            components).
    """

    arguments: Mapping[str, Any]
    columns: Sequence[str]
    x: Tensor
    units: float
    whole: Tensor | None
    hard: bool = False
    left: Tensor | None = None

    @classmethod
    def of(
        cls, arguments: Mapping[str, Any], columns: Sequence[str], hard: bool = False
    ) -> "MixtureSteps":
        """The steps for a model's arguments and the columns' names.

        Example:
            >>> x = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
            >>> steps = MixtureSteps.of(
            ...     {"x": x, "centre": x.mean(0), "spread": x.std(0), "components": 2,
            ...      "covariance_type": "full"},
            ...     ["a"],
            ... )
            >>> values = steps.starts(1, 0)[0]
            >>> again = steps.maximise(steps.expect(values))
            >>> steps.log_likelihood(again) > steps.log_likelihood(values)
            True
        """
        centre, spread, x = (arguments[n].double().cpu() for n in ("centre", "spread", "x"))
        units = len(x) * float(spread.log().sum())
        scaled = (x - centre) / spread
        whole = torch.cov(scaled.T, correction=0).reshape(len(centre), len(centre))
        if arguments["covariance_type"] != "full":
            whole = torch.diag(whole.diagonal())
        singular = float(torch.linalg.eigvalsh(whole)[0]) < NARROWEST
        factor = None if singular else torch.linalg.cholesky(whole)
        labels = arguments.get("labels")
        left = None if labels is None else allowed(labels.cpu(), arguments["components"]).double()
        return cls(arguments, columns, scaled, units, factor, hard, left)

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.x)

    def starts(self, count: int, seed: int) -> list[Components]:
        """Those of the model, by k-means."""
        found = []
        for values in starts(self.arguments, count, seed):
            named = {name: value.double().cpu() for name, value in values.items()}
            means, covariances = named["standardised_means"], covariances_of(named)
            found.append(Components(named["weights"], means, covariances))
        return found

    def _joint(self, values: Components) -> Tensor:
        """Log p(row, component), and its label if it has one, (rows, components)."""
        factor = torch.linalg.cholesky(values.covariances)  # (components, columns, columns)
        apart = self.x - values.means.unsqueeze(1)  # (components, rows, columns)
        standard = torch.linalg.solve_triangular(factor, apart.mT, upper=False)
        log_determinant = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        columns = self.x.shape[1]
        log_density = -0.5 * (standard.square().sum(1) + columns * LOG_TWO_PI).T - log_determinant
        joint = log_density + values.weights.log()
        return joint if self.left is None else joint + self.left

    def expect(self, values: Components) -> Tensor:
        """The responsibilities: each row's probabilities of the components, (rows, components)."""
        if self.hard:
            joint = self._joint(values)
            return one_hot(joint.argmax(-1), joint.shape[-1]).to(joint)
        return self._joint(values).softmax(-1)

    def maximise(self, expected: Tensor) -> Components:
        """The weighted means and covariances of the rows; the latter in the shape asked for."""
        total = expected.sum(0)  # (components,)
        shares = expected / total  # (rows, components)
        means = shares.T @ self.x
        apart = self.x.unsqueeze(1) - means  # (rows, components, columns)
        kind = self.arguments["covariance_type"]
        if kind == "full":
            covariances = torch.einsum("nk,nki,nkj->kij", shares, apart, apart)
        else:
            variances = torch.einsum("nk,nki->ki", shares, apart.square())
            if kind == "spherical":
                variances = variances.mean(1, keepdim=True).expand_as(variances)
            covariances = torch.diag_embed(variances)
        return Components(total / self.rows, means, covariances)

    def elbo(self, values: Components, expected: Tensor) -> float:
        """The expected log density of rows and components, and the entropy of the latter."""
        energy = torch.where(expected > 0, expected * self._joint(values), 0.0).sum()
        return float(energy - torch.xlogy(expected, expected).sum()) - self.units

    def log_likelihood(self, values: Components) -> float:
        """Log p(x), in the user's units."""
        return float(self._joint(values).logsumexp(-1).sum()) - self.units

    def closing_in(self, values: Components, expected: Tensor) -> str | None:
        """A component without width in some direction, or without rows."""
        if self.whole is None:
            return f"the columns {', '.join(self.columns)} determine each other."
        lost = ~torch.isfinite(values.means).all(-1)
        if lost.any():
            return f"{int(lost.sum())} of {len(lost)} components lost all their rows."
        half = torch.linalg.solve_triangular(self.whole, values.covariances, upper=False)
        relative = torch.linalg.solve_triangular(self.whole, half.mT, upper=False)
        widths = torch.linalg.eigvalsh(relative)[:, 0]  # (components,)
        number = int(widths.argmin())
        if float(widths[number]) > NARROWEST:
            return None
        rows = (expected[:, number] > 0.5).nonzero()[:, 0].tolist()
        named = ", ".join(str(row + 1) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
        return (
            f"{self._named(values, number)} collapses onto {len(rows)} "
            f"row{'' if len(rows) == 1 else 's'} ({named})."
        )

    def _named(self, values: Components, number: int) -> str:
        """A component by its label, or its number in the order of the first column and its mean."""
        levels = self.arguments.get("levels", ())
        if number < len(levels):
            return f"component '{levels[number]}'"
        number, at = number - len(levels), values.means[len(levels) :, 0]
        rank = int((at < at[number]).sum()) + 1
        centre, spread = (float(self.arguments[name][0]) for name in ("centre", "spread"))
        mean = centre + spread * float(at[number])
        kind = "unlabelled component" if levels else "component"
        return f"{kind} {rank} of {len(at)}, at {self.columns[0]} {mean:.4g},"

    def sites(self, values: Components) -> dict[str, Tensor]:
        """The model's sites, in scaled columns."""
        return {
            "weights": values.weights,
            "standardised_means": values.means,
            **covariance_sites(self.arguments, values.covariances),
        }

    def remarks(self, values: Components, expected: Tensor) -> list[str]:
        """Components whose covariance is estimated from hardly more rows than it needs."""
        columns = self.x.shape[1]
        least = {"full": columns + 1, "diagonal": 2, "spherical": 2}
        fewest = 2 * least[self.arguments["covariance_type"]]
        few = [k for k, rows in enumerate(expected.sum(0).tolist()) if rows < fewest]
        if not few:
            return []
        rows = float(expected[:, few[0]].sum())
        named = f"{self._named(values, few[0])} rests on only {rows:.1f} rows"
        others = f"; so do {len(few) - 1} more" if len(few) > 1 else ""
        return [
            f"{named}{others}. A component of so few rows may be chance: {self._more_rows}, or "
            "--guide map."
        ]

    @property
    def _more_rows(self) -> str:
        """How a component gets more of them."""
        fewer = self.arguments["components"] > len(self.arguments.get("levels", ()))
        return "give fewer --components" if fewer else "label more rows"

    @property
    def remedy(self) -> str:
        """What to do if a component collapses."""
        simpler = {"full": "diagonal", "diagonal": "spherical"}
        kind = simpler.get(self.arguments["covariance_type"])
        other = f"--covariance-type {kind}, " if kind else ""
        return f"{self._more_rows}, {other}or --guide map, whose priors prevent this."


@register(
    "em",
    "maximum likelihood by expectation-maximisation: a point, without priors",
    model="gaussian_mixture",
    point=True,
    likelihood=True,
    engines=("em",),
    steps=MixtureSteps.of,
)
def em(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The point that `MixtureSteps` found; nothing is left to optimise."""
    values = space.constrain(start.location)

    def guide(**arguments: Any) -> None:
        plates = space.plates(arguments)
        for site in space.sites:
            with plates(site.plates):
                pyro.sample(site.name, dist.Delta(values[site.name], event_dim=site.event_dim))

    return guide


@register(
    "hard_em",
    "each row in its most probable component alone: a point, without priors, as k-means is",
    model="gaussian_mixture",
    point=True,
    likelihood=True,
    engines=("em",),
    steps=partial(MixtureSteps.of, hard=True),
    hard=True,
)
def hard_em(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The point that the steps found: the best parameters for the best components of the rows.

    It is not at the maximum of the likelihood: the components overlap too little, since rows
    between two of them belong to one.
    """
    return em(space, start)


@dataclass(frozen=True)
class MixtureFactors:
    """The factors of a guide for a mixture with conjugate priors, in scaled columns.

    Attributes:
        responsibilities: Each row's probabilities of the components, (rows, components).
        weights: Of the components.
        means: (components, columns).
        counts: The precision of each component's mean is so many times its own, (components,).
        precisions: Of the components.
    """

    responsibilities: Tensor
    weights: Dirichlet
    means: Tensor
    counts: Tensor
    precisions: Wisharts | DiagonalPrecisions


@dataclass(frozen=True)
class MixtureCoordinates:
    """Coordinate ascent for a mixture of Normals with conjugate priors, in float64.

    Attias, 1999, "Inferring parameters and structure of latent variable models by variational
    Bayes"; Bishop, 2006, "Pattern recognition and machine learning", 10.2. See
    `elbowroom.engines.coordinate_ascent.ascent.Coordinates`.

    Attributes:
        arguments: Of the model.
        x: Scaled rows, (rows, columns).
        units: What the logarithms of the columns' scales take from the log density.
        left: What a row's label leaves of the components; see
            `elbowroom.models.gaussian_mixture.allowed`. None if no row has one.
    """

    arguments: Mapping[str, Any]
    x: Tensor
    units: float
    left: Tensor | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "MixtureCoordinates":
        """The updates for a model's arguments."""
        centre, spread, x = (arguments[n].double().cpu() for n in ("centre", "spread", "x"))
        labels, units = arguments.get("labels"), len(x) * float(spread.log().sum())
        left = None if labels is None else allowed(labels.cpu(), arguments["components"]).double()
        return cls(arguments, (x - centre) / spread, units, left)

    @property
    def _prior(self) -> tuple[Dirichlet, Wisharts | DiagonalPrecisions]:
        """Of the weights, and of one component's precision."""
        columns, kind = self.x.shape[1], self.arguments["covariance_type"]
        components = self.arguments["components"]
        concentration = torch.full_like(self.x[0, :1], CONJUGATE.concentration)
        weights = Dirichlet(concentration.expand(components))
        if kind == "full" and columns > 1:
            scatter = CONJUGATE.variance * torch.eye(columns).to(self.x)
            freedom = torch.tensor(columns + CONJUGATE.freedom).to(self.x)
            return weights, Wisharts(freedom, scatter)
        width = self.x[0, : 1 if kind == "spherical" else columns]
        rate = torch.full_like(width, CONJUGATE.variance / 2)
        shape = torch.full_like(width, (1 + CONJUGATE.freedom) / 2)
        return weights, DiagonalPrecisions(Gammas(shape, rate), columns)

    @property
    def updates(self) -> Mapping[str, Callable[[MixtureFactors], MixtureFactors]]:
        """Of the assignments, the weights, and the means and precisions together."""
        return {
            "assignments": self.assignments,
            "weights": self.weights,
            "components": self.components,
        }

    def starts(self, count: int, seed: int) -> list[MixtureFactors]:
        """Those of the model, by k-means, with the responsibilities of its components."""
        found = []
        for values in starts(self.arguments, count, seed):
            named = {name: value.double().cpu() for name, value in values.items()}
            centre, spread = torch.zeros(()), torch.ones(())
            scaled = {"x": self.x, "centre": centre, "spread": spread}
            logits = initial_logits(named, scaled)
            logits = logits if self.left is None else logits + self.left
            found.append(self.begun(logits.softmax(-1)))
        return found

    def begun(self, responsibilities: Tensor) -> MixtureFactors:
        """All other factors at their optimum given responsibilities, (rows, components)."""
        weights, precisions = self._prior
        components = responsibilities.shape[1]
        means = self.x.new_zeros(components, self.x.shape[1])
        counts = self.x.new_ones(components)
        first = MixtureFactors(responsibilities, weights, means, counts, precisions)
        return self.components(self.weights(first))

    def _joint(self, factors: MixtureFactors) -> Tensor:
        """The expected log p(row, component), (rows, components)."""
        columns, precisions = self.x.shape[1], factors.precisions
        apart = self.x.unsqueeze(1) - factors.means  # (rows, components, columns)
        squares = precisions.expected_square(apart) + columns / factors.counts
        log_density = 0.5 * (precisions.mean_log_determinant - columns * LOG_TWO_PI - squares)
        joint = factors.weights.mean_log + log_density
        return joint if self.left is None else joint + self.left

    def assignments(self, factors: MixtureFactors) -> MixtureFactors:
        """Each row's probabilities."""
        return replace(factors, responsibilities=self._joint(factors).softmax(-1))

    def weights(self, factors: MixtureFactors) -> MixtureFactors:
        """The Dirichlet counts the rows of each component."""
        prior, _ = self._prior
        counts = factors.responsibilities.sum(0)
        return replace(factors, weights=Dirichlet(prior.concentration + counts))

    def components(self, factors: MixtureFactors) -> MixtureFactors:
        """Normal-Wishart, or Normal-Gamma, of each component."""
        shares, (_, prior) = factors.responsibilities, self._prior
        rows = shares.sum(0)  # (components,)
        counts = CONJUGATE.rows + rows
        means = (shares.T @ self.x) / counts.unsqueeze(-1)  # the prior's mean is zero
        apart = self.x.unsqueeze(1) - means  # (rows, components, columns)
        if isinstance(prior, Wisharts):
            squares = torch.einsum("nk,nki,nkj->kij", shares, apart, apart)
            squares = squares + CONJUGATE.rows * means.unsqueeze(-1) * means.unsqueeze(-2)
            precisions: Any = Wisharts(prior.freedom + rows, prior.scatter + squares)
        else:
            squares = torch.einsum("nk,nki->ki", shares, apart.square())
            squares = squares + CONJUGATE.rows * means.square()
            numbers = rows.unsqueeze(-1)
            if prior.gammas.rate.shape[-1] < self.x.shape[1]:  # one of all columns
                squares, numbers = squares.sum(-1, keepdim=True), self.x.shape[1] * numbers
            gammas = Gammas(prior.gammas.shape + numbers / 2, prior.gammas.rate + squares / 2)
            precisions = DiagonalPrecisions(gammas, self.x.shape[1])
        return replace(factors, means=means, counts=counts, precisions=precisions)

    def elbo(self, factors: MixtureFactors) -> float:
        """Of rows and assignments, less the divergences of the factors from their priors."""
        shares, (weights, prior) = factors.responsibilities, self._prior
        # A component that a label excludes has no share of the row.
        rows = torch.where(shares > 0, shares * self._joint(factors), 0.0).sum()
        rows = rows - torch.xlogy(shares, shares).sum()
        divergence = factors.weights.divergence(weights)
        precisions: Any = factors.precisions
        divergence = divergence + precisions.divergence(prior).sum()
        square = precisions.expected_square(factors.means)
        columns = self.x.shape[1]
        means = divergence_of_means(factors.counts, CONJUGATE.rows, square, columns)
        return float(rows - divergence - means.sum()) - self.units

    def remarks(self, factors: MixtureFactors) -> list[str]:
        """How many components have no rows."""
        empty = int((factors.responsibilities.sum(0) < 1).sum())
        if not empty:
            return []
        return [
            f"{empty} of {len(factors.counts)} components have less than one row: their posterior "
            "is about their prior. Fewer --components may do."
        ]

    def parameters(self, factors: MixtureFactors) -> dict[str, Tensor]:
        """The guide's."""
        precisions = factors.precisions
        if isinstance(precisions, Wisharts):
            scale = torch.cholesky_inverse(precisions.factor)
            own = {
                "precisions.freedom": precisions.freedom,
                "precisions.factor": torch.linalg.cholesky(scale),
            }
        else:
            gammas = precisions.gammas
            own = {
                "precisions.shape": gammas.shape.expand_as(gammas.rate),
                "precisions.rate": gammas.rate,
            }
        return {
            "weights.concentration": factors.weights.concentration,
            "means.location": factors.means,
            "means.count": factors.counts,
            "assignments.probabilities": factors.responsibilities,
            **own,
        }


@register(
    "coordinate_ascent",
    "conjugate families, by updates in closed form; a Categorical for each row",
    model="gaussian_mixture",
    elbo="trace_enum",
    engines=("coordinate_ascent",),
    coordinates=MixtureCoordinates.of,
    needs=Needs(
        "priors",
        "conjugate",
        "the priors of 'standardised_means' and 'standardised_scales' are not conjugate",
    ),
)
def coordinate_ascent(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Bishop, 2006, "Pattern recognition and machine learning", 10.2.

    The weights are Dirichlet, a component's precision Wishart or Gamma, its mean Normal given the
    precision, and each row has probabilities of its own.
    """
    plates_of = {site.name: site.plates for site in space.sites}

    def guide(**arguments: Any) -> None:
        columns = len(arguments["centre"])
        full = arguments["covariance_type"] == "full" and columns > 1
        kinds = FULL if full else INDEPENDENT
        known = guide_parameters(MixtureCoordinates.of, arguments, {**SHARED, **kinds})
        plates = space.plates(arguments)
        pyro.sample("weights", dist.Dirichlet(known["weights.concentration"]))
        counts = known["means.count"]
        with plates(plates_of["standardised_means"]):
            if full:
                own: Any = Wishart(
                    known["precisions.freedom"], scale_tril=known["precisions.factor"]
                )
            else:
                own = dist.Gamma(known["precisions.shape"], known["precisions.rate"]).to_event(1)
            precision = pyro.sample("standardised_precisions", own)
            means = means_given(precision, full, known["means.location"], counts)
            pyro.sample("standardised_means", means)
        with plates(space.discrete["assignments"]):
            probabilities = pyro.subsample(known["assignments.probabilities"], event_dim=1)
            pyro.sample("assignments", dist.Categorical(probabilities), infer=ASSIGNMENTS)

    return guide


SHARED = {
    "weights.concentration": constraints.positive,
    "means.location": constraints.real,
    "means.count": constraints.positive,
    "assignments.probabilities": constraints.simplex,
}
FULL = {
    "precisions.freedom": constraints.positive,
    "precisions.factor": constraints.lower_cholesky,
}
INDEPENDENT = {"precisions.shape": constraints.positive, "precisions.rate": constraints.positive}
