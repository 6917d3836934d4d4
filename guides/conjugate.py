"""The guides written for `conjugate`: its posterior, and coordinate ascent."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.guides import Needs, Start, register
from elbowroom.guides.conjugate_families import Gammas, guide_parameters
from elbowroom.guides.conjugate_regression import PARAMETERS, RegressionCoordinates
from elbowroom.guides.space import LatentSpace


@register(
    "exact", "the posterior in closed form; nothing is optimised", model="conjugate", exact=True
)
def exact(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Gelman et al., 2013, "Bayesian data analysis", chapters 2, 3 and 14."""

    def guide(
        y: Tensor,
        likelihood: str,
        prior: Tensor,
        sigma: Tensor,
        prior_scale: float,
        design: Tensor,
        prior_mean: Tensor,
        **others: Any,
    ) -> None:
        first, second = prior
        if likelihood == "normal":
            precision = 1 / second**2 + len(y) / sigma**2
            mean = (first / second**2 + y.sum() / sigma**2) / precision
            pyro.sample("mean", dist.Normal(mean, precision.rsqrt()))
        elif likelihood == "bernoulli":
            ones = y.sum()
            pyro.sample("probability", dist.Beta(first + ones, second + len(y) - ones))
        elif likelihood == "poisson":
            pyro.sample("rate", dist.Gamma(first + y.sum(), second + len(y)))
        else:
            precision = torch.eye(design.shape[1]) / prior_scale**2
            precision, moment = precision + design.T @ design, precision @ prior_mean
            covariance = torch.linalg.inv(precision)
            mean = covariance @ (moment + design.T @ y)
            # Of what the coefficients do not explain, and of how far the prior is from them.
            misfit = (y - design @ mean).square().sum()
            misfit = misfit + (mean - prior_mean).square().sum() / prior_scale**2
            shape, scale = first + len(y) / 2, second + misfit / 2
            variance = pyro.sample("variance", dist.InverseGamma(shape, scale))
            factor = torch.linalg.cholesky(covariance)
            pyro.sample(
                "standardised_coefficients",
                dist.MultivariateNormal(mean, scale_tril=variance.sqrt()[..., None, None] * factor),
            )

    return guide


def coordinates(arguments: Mapping[str, Any]) -> RegressionCoordinates:
    """The updates of coordinate ascent for the arguments of a regression."""
    known = {k: v.double().cpu() for k, v in arguments.items() if isinstance(v, Tensor)}
    prior, scale = Gammas(*known["prior"]), float(arguments["prior_scale"])
    return RegressionCoordinates(known["design"], known["y"], known["prior_mean"], scale, prior)


@register(
    "coordinate_ascent",
    "Normal coefficients and an inverse-Gamma variance, by updates in closed form",
    model="conjugate",
    engines=("coordinate_ascent",),
    coordinates=coordinates,
    needs=Needs("likelihood", "regression", "one latent has its posterior by --guide exact"),
)
def coordinate_ascent(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Mean field between the coefficients, with all their correlations, and the variance."""

    def guide(**arguments: Any) -> None:
        known = guide_parameters(coordinates, arguments, PARAMETERS)
        variance = dist.InverseGamma(known["variance.shape"], known["variance.scale"])
        pyro.sample("variance", variance)
        pyro.sample(
            "standardised_coefficients",
            dist.MultivariateNormal(
                known["coefficients.location"], scale_tril=known["coefficients.factor"]
            ),
        )

    return guide
