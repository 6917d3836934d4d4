"""A prior of all coefficients together, for many predictors, more of them than rows perhaps.

R2D2 (Zhang, Naughton, Bondell and Reich, 2022, "Bayesian regression using a prior on the model
fit: the R2-D2 shrinkage prior"), in the form of brms: of the variance of the linear predictor and
the noise together, R2 is the linear predictor's part, of which each standardised predictor has a
share,

    b[j] ~ Normal(0, σ √(shares[j] R2 / (1 - R2)))
    R2 ~ Beta(mean · precision, (1 - mean) · precision),  shares ~ Dirichlet(concentration, ...)

with σ the noise's standard deviation, that of the latent variable for probabilities.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.errors import OptionError, shown
from elbowroom.models._families import LINKS, Family

NAME = "r2d2"
"""As it is written."""
USAGE = "r2d2(mean, precision, concentration), such as r2d2(0.5, 2, 0.5)"
LARGEST = 1e4
"""Of a precision or a concentration."""
WEIGHTS = "share_weights"
"""The latent site of the shares, up to their sum."""
LATENT_SDS = {"logit": math.pi / math.sqrt(3), "probit": 1.0, "cloglog": math.pi / math.sqrt(6)}
"""The standard deviations of what has the inverse links as distribution functions."""


@dataclass(frozen=True)
class R2D2:
    """The prior's three numbers; the defaults are those of brms, under which R2 is uniform.

    Attributes:
        mean: Of R2, between 0 and 1.
        precision: Of R2: as many earlier rows as it is worth, about.
        concentration: Of the shares: the smaller it is, the fewer predictors have most of them.

    Example:
        >>> str(R2D2())
        'r2d2(0.5, 2, 0.5)'
    """

    mean: float = 0.5
    precision: float = 2.0
    concentration: float = 0.5

    @property
    def name(self) -> str:
        """As it is written, without its numbers."""
        return NAME

    def __str__(self) -> str:
        return f"{NAME}({', '.join(f'{each:.6g}' for each in astuple(self))})"

    @property
    def of_share(self) -> tuple[float, float]:
        """The two numbers of the Beta distribution of R2."""
        return self.mean * self.precision, (1 - self.mean) * self.precision

    def slopes(self, columns: int, noise: Tensor | float) -> Tensor:
        """Samples the standardised coefficients, (columns,).

        The shares are Gamma variables by their sum: each is a coordinate of its own then.

        Args:
            columns: How many there are.
            noise: Its standard deviation, in units of the linear predictor, ().
        """
        first, second = self.of_share
        share = pyro.sample("R2", dist.Beta(torch.tensor(first), second))
        shape = torch.full((columns,), self.concentration)
        weights = pyro.sample(WEIGHTS, dist.Gamma(shape, 1.0).to_event(1))
        variances = share / (1 - share) * weights / weights.sum(-1, keepdim=True)
        with pyro.plate("predictors", columns):  # they are alike
            return pyro.sample(
                "standardised_coefficients",
                dist.Normal(torch.zeros(columns), noise * variances.sqrt()),
            )


def read_r2d2(text: str) -> R2D2 | None:
    """The prior that is written so; None if something else is.

    Raises:
        OptionError: If it does not take these numbers.

    Example:
        >>> read_r2d2("r2d2"), read_r2d2("r2d2(0.3, 5, 1)"), read_r2d2("weak")
        (R2D2(mean=0.5, precision=2.0, concentration=0.5), \
R2D2(mean=0.3, precision=5.0, concentration=1.0), None)
    """
    found = re.fullmatch(rf"\s*{NAME}\s*(?:\((.*)\))?\s*", text, flags=re.S)
    if found is None:
        return None
    if found[1] is None:
        return R2D2()
    try:
        mean, precision, concentration = (float(each) for each in found[1].split(","))
    except ValueError as error:
        raise OptionError(f"--priors {shown(text)}: it takes three numbers; write {USAGE}.") from (
            error
        )
    if not (0 < mean < 1 and 0 < precision <= LARGEST and 0 < concentration <= LARGEST):
        raise OptionError(
            f"--priors {shown(text)}: the mean is between 0 and 1, precision and concentration are "
            f"above 0 and at most {LARGEST:g}; write {USAGE}."
        )
    return R2D2(mean, precision, concentration)


def noise_of(family: Family, link: str, parameters: Mapping[str, Any]) -> Any:
    """The noise's standard deviation in units of the linear predictor.

    Where the family has no `sigma`, it is that of the link's latent variable, or one.
    """
    if LINKS[link].scaled and "sigma" in parameters:
        return parameters["sigma"]
    return LATENT_SDS.get(link, 1.0)
