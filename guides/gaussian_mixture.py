"""The guides written for `gaussian_mixture`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.guides import Start, register
from elbowroom.guides.auto import sample_normal, sample_site, scales
from elbowroom.guides.space import LatentSpace

CONCENTRATION = 20.0
"""The Dirichlet's total concentration for each component, where a guide begins."""


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
    "global parameters, each component's correlated; assignments enumerated out",
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
    "full mean field: independent Normals, and a categorical of its own for every row",
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
            pyro.sample("assignments", dist.Categorical(logits=logits), infer=ASSIGNMENTS)

    return guide


def initial_logits(values: dict[str, Tensor], arguments: Any) -> Tensor:
    """Log responsibilities of diagonal Normals at the start, up to a constant, (rows, K)."""
    x = (arguments["x"] - arguments["centre"]) / arguments["spread"]  # (rows, columns)
    means, widths = values["standardised_means"], values["standardised_scales"]
    normal = dist.Normal(means, widths.expand_as(means)).to_event(1)
    return normal.log_prob(x.unsqueeze(1)) + values["weights"].log()
