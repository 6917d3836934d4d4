"""The guides written for `bayesian_regression`."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.errors import GuideError
from elbowroom.guides import Needs, Start, register
from elbowroom.guides.conjugate_families import Gammas, guide_parameters
from elbowroom.guides.conjugate_regression import PARAMETERS, RegressionCoordinates
from elbowroom.guides.space import LatentSpace
from elbowroom.models._term_priors import CONJUGATE, PRIOR_SCALE

SITES = {
    "standardised_variance", "standardised_sigma", "standardised_intercept",
    "standardised_coefficients",
}  # fmt: skip
"""What the guides here draw."""


@register(
    "structured",
    "coefficients Normal given the noise, with all correlations",
    model="bayesian_regression",
    elbo="sticking_the_landing",
    needs=Needs("family", "normal", "it draws coefficients in proportion to the noise 'sigma'"),
)
def structured(space: LatentSpace, start: Start) -> Callable[..., Any]:
    r"""$q(\tau)\,q(a, b \mid \tau)$: the form of the conjugate posterior, with free parameters.

    The noise $\tau$ is LogNormal; given it, the intercept and coefficients are Normal with a mean
    that moves with $\log\tau$ and a covariance in proportion to $\tau^2$. They are drawn in the
    coordinates in which the conjugate posterior is round.
    """
    values = space.constrain(start.location)
    others = sorted(set(values) - SITES)
    if others:
        raise GuideError(
            f"the guide 'structured' draws coefficients and one noise, and not '{others[0]}'; "
            "leave out --parameter, --priors r2d2 and group effects, or give --guide auto."
        )
    conjugate = "standardised_variance" in values
    begin = values["standardised_variance"].sqrt() if conjugate else values["standardised_sigma"]

    def whitening(predictors: Tensor, centre: Tensor, spread: Tensor, intercept: bool) -> Tensor:
        """Cholesky factor of the coefficients' posterior covariance where the noise is one."""
        design = standardised(predictors, centre, spread, intercept)
        prior = torch.eye(design.shape[1]) / PRIOR_SCALE**2
        return torch.linalg.cholesky(torch.linalg.inv(design.mT @ design + prior))

    def initial(to_round: Tensor, intercept: bool) -> Tensor:
        parts = [values["standardised_intercept"].reshape(1)] if intercept else []
        if "standardised_coefficients" in values:
            parts.append(values["standardised_coefficients"])
        return torch.linalg.solve(to_round, torch.cat(parts))

    def guide(
        predictors: Tensor,
        response: Tensor | None,
        centre: Tensor,
        spread: Tensor,
        response_centre: Tensor,
        response_spread: Tensor,
        has_intercept: bool = True,
        conjugate: bool = False,
        **others: Any,
    ) -> None:
        to_coefficients = whitening(predictors, centre, spread, has_intercept)
        size, rows = len(to_coefficients), len(predictors)
        centre_noise = pyro.param("guide.log_noise.location", begin.log())
        width_noise = pyro.param(
            "guide.log_noise.scale",
            torch.tensor((2 * rows) ** -0.5),
            constraint=constraints.positive,
        )
        if conjugate:
            variance = dist.LogNormal(2 * centre_noise, 2 * width_noise)
            noise = pyro.sample("standardised_variance", variance).sqrt()
        else:
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
        sample_terms(both, has_intercept)

    return guide


def standardised(predictors: Tensor, centre: Tensor, spread: Tensor, intercept: bool) -> Tensor:
    """The design matrix of the standardised terms, the intercept first, (rows, terms)."""
    design = (predictors - centre) / spread
    return torch.cat([torch.ones_like(design[:, :1]), design], 1) if intercept else design


def sample_terms(both: Tensor, intercept: bool) -> None:
    """Samples the sites of the terms at what was drawn together, (terms,)."""
    if intercept:
        pyro.sample("standardised_intercept", dist.Delta(both[0]))
    slopes = both[1:] if intercept else both
    if len(slopes):
        pyro.sample("standardised_coefficients", dist.Delta(slopes, event_dim=1))


def coordinates(arguments: Mapping[str, Any]) -> RegressionCoordinates:
    """The updates of coordinate ascent for a model's arguments, with the conjugate priors."""
    known = {k: v.double().cpu() for k, v in arguments.items() if isinstance(v, Tensor)}
    intercept = arguments["has_intercept"]
    design = standardised(known["predictors"], known["centre"], known["spread"], intercept)
    y = (known["response"] - known["response_centre"]) / known["response_spread"]
    shape, scale = (y.new_tensor(value) for value in (CONJUGATE.shape, CONJUGATE.scale))
    units = len(y) * float(known["response_spread"].log())
    prior = Gammas(shape, scale)
    zero = torch.zeros_like(design[0])
    return RegressionCoordinates(design, y, zero, PRIOR_SCALE, prior, units)


@register(
    "coordinate_ascent",
    "Normal coefficients and an inverse-Gamma variance, by updates in closed form",
    model="bayesian_regression",
    engines=("coordinate_ascent",),
    coordinates=coordinates,
    needs=Needs(
        "priors", "conjugate", "the Exponential prior of 'standardised_sigma' is not conjugate"
    ),
)
def coordinate_ascent(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Mean field between the coefficients, with all their correlations, and the variance."""

    def guide(**arguments: Any) -> None:
        known = guide_parameters(coordinates, arguments, PARAMETERS)
        variance = dist.InverseGamma(known["variance.shape"], known["variance.scale"])
        pyro.sample("standardised_variance", variance)
        both = pyro.sample(
            "guide.coefficients",
            dist.MultivariateNormal(
                known["coefficients.location"], scale_tril=known["coefficients.factor"]
            ),
            infer={"is_auxiliary": True},
        )
        sample_terms(both, arguments["has_intercept"])

    return guide
