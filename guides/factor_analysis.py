"""The guides written for `factor_analysis`."""

from collections.abc import Callable
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


@register(
    "exact",
    "each row's posterior in closed form, at the points as they are",
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
    "amortised: a row's mean is linear in the row, and all rows share a covariance",
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
    "every row its own mean and scale",
    model="factor_analysis",
    elbo="trace_mean_field",
    replaces="mean_field",
)
def local(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Stochastic variational inference without amortisation (Hoffman et al., 2013)."""
    return mean_field(space, start)
