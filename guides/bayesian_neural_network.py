"""The guide written for `bayesian_neural_network` and `mixture_density_network`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from elbowroom.guides import Start, register
from elbowroom.guides.families import scales
from elbowroom.guides.pathwise import PathwiseNormal
from elbowroom.guides.space import LatentSpace

WARM = {"kl_warm_up": 1000}
"""Steps of a warm-up, as the setting of a fit: with the whole KL divergence from the first step on
the weights go back to their prior before they have learnt anything, and the predictions are flat.
"""
NARROW = 0.05
"""Initial standard deviation of a weight where the start has no curvature."""


@register(
    "bayes_by_backprop",
    "each weight has its own mean and standard deviation",
    model="bayesian_neural_network",
    elbo="local_reparameterisation",
    suggested=WARM,
)
def bayes_by_backprop(space: LatentSpace, start: Start) -> Callable[..., Any]:
    r"""$q(w) = \prod_j \mathrm{Normal}(w_j \mid \mu_j, \sigma_j)$, with 2 N numbers for N weights.

    The divergence from the Normal priors is taken in closed form by `--elbo trace_mean_field`, at
    draws by `trace`; with `local_reparameterisation` each row has noise of its own. Sites that are
    not on the whole line, such as the noise, are Normal in unconstrained coordinates.

    Blundell, Cornebise, Kavukcuoglu and Wierstra, 2015, "Weight uncertainty in neural networks";
    Graves, 2011, "Practical variational inference for neural networks".
    """
    means = space.split(start.location)
    known = start.precision is not None or start.scale is not None
    narrow = torch.full_like(start.location, NARROW)
    deviations = space.split(scales(start) if known else narrow)

    def guide(**arguments: Any) -> None:
        for site in space.sites:
            mean = pyro.param(f"guide.{site.name}.mean", means[site.name])
            deviation = pyro.param(
                f"guide.{site.name}.deviation",
                deviations[site.name],
                constraint=constraints.softplus_positive,
            )
            fn: Any = PathwiseNormal(mean, deviation).to_event(mean.dim())
            if not site.real:
                fn = dist.TransformedDistribution(fn, [site.transform.with_cache()])
            pyro.sample(site.name, fn)

    return guide
