"""The guide written for `bayesian_regression`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.guides import Start, register
from elbowroom.guides.space import LatentSpace
from elbowroom.models.bayesian_regression import PRIOR_SCALE


@register(
    "structured",
    "coefficients Normal given the noise, with all correlations",
    model="bayesian_regression",
    elbo="sticking_the_landing",
)
def structured(space: LatentSpace, start: Start) -> Callable[..., Any]:
    r"""$q(\tau)\,q(a, b \mid \tau)$: the form of the conjugate posterior, with free parameters.

    The noise $\tau$ is LogNormal; given it, the intercept and coefficients are Normal with a mean
    that moves with $\log\tau$ and a covariance in proportion to $\tau^2$. They are drawn in the
    coordinates in which the conjugate posterior is round.
    """
    values = space.constrain(start.location)

    def whitening(predictors: Tensor, centre: Tensor, spread: Tensor, intercept: bool) -> Tensor:
        """Cholesky factor of the coefficients' posterior covariance where the noise is one."""
        design = (predictors - centre) / spread  # (rows, columns)
        if intercept:
            design = torch.cat([torch.ones(len(design), 1), design], 1)
        prior = torch.eye(design.shape[1]) / PRIOR_SCALE**2
        return torch.linalg.cholesky(torch.linalg.inv(design.mT @ design + prior))

    def initial(to_round: Tensor, intercept: bool) -> Tensor:
        parts = [values["standardised_intercept"].reshape(1)] if intercept else []
        return torch.linalg.solve(
            to_round, torch.cat([*parts, values["standardised_coefficients"]])
        )

    def guide(
        predictors: Tensor,
        response: Tensor | None,
        centre: Tensor,
        spread: Tensor,
        response_centre: Tensor,
        response_spread: Tensor,
        has_intercept: bool = True,
        batch_size: int | None = None,
    ) -> None:
        to_coefficients = whitening(predictors, centre, spread, has_intercept)
        size, rows = len(to_coefficients), len(predictors)
        centre_noise = pyro.param("guide.log_noise.location", values["standardised_sigma"].log())
        width_noise = pyro.param(
            "guide.log_noise.scale",
            torch.tensor((2 * rows) ** -0.5),
            constraint=constraints.positive,
        )
        noise = pyro.sample("standardised_sigma", dist.LogNormal(centre_noise, width_noise))
        location = pyro.param(
            "guide.coefficients.location", lambda: initial(to_coefficients, has_intercept)
        )
        slope = pyro.param("guide.coefficients.slope", torch.zeros(size))
        factor = pyro.param(
            "guide.coefficients.factor", torch.eye(size), constraint=constraints.lower_cholesky
        )
        moved = location + slope * (noise.log() - centre_noise) / width_noise
        both = pyro.sample(
            "guide.coefficients",
            dist.MultivariateNormal(
                to_coefficients @ moved, scale_tril=noise * (to_coefficients @ factor)
            ),
            infer={"is_auxiliary": True},
        )
        slopes = both[1:] if has_intercept else both
        if has_intercept:
            pyro.sample("standardised_intercept", dist.Delta(both[0]))
        pyro.sample("standardised_coefficients", dist.Delta(slopes, event_dim=1))

    return guide
