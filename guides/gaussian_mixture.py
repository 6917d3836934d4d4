"""The guides written for `gaussian_mixture`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import one_hot

from elbowroom.guides import Start, register
from elbowroom.guides.auto import sample_normal
from elbowroom.guides.families import sample_site, scales
from elbowroom.guides.space import LatentSpace
from elbowroom.models.gaussian_mixture import allowed, starts

CONCENTRATION = 20.0
"""The Dirichlet's total concentration for each component, where a guide begins."""

LOG_TWO_PI = math.log(2 * math.pi)
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
    means, widths = values["standardised_means"], values["standardised_scales"]
    normal = dist.Normal(means, widths.expand_as(means)).to_event(1)
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
            means = named["standardised_means"]
            variances = named["standardised_scales"].square().expand_as(means)
            found.append(Components(named["weights"], means, torch.diag_embed(variances)))
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
        deviations = values.covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        factor = torch.linalg.cholesky(values.covariances)
        spherical = self.arguments["covariance_type"] == "spherical"
        return {
            "weights": values.weights,
            "standardised_means": values.means,
            "standardised_scales": deviations[:, :1] if spherical else deviations,
            "correlation_cholesky": factor / deviations.unsqueeze(-1),
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
