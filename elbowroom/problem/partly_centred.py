"""Sites of a location-scale family in coordinates between their values and standardised ones.

A site f = loc + scale z is badly drawn by its values f where the data tell little of them: they
follow the scale (a funnel). It is badly drawn by z where the data tell much. With a share c between
0 (z, less a constant) and 1 (f), it is drawn by

    u = c loc + scale^c z

(Papaspiliopoulos, Roberts and Sköld, 2007, "A general framework for the parametrization of
hierarchical models"; Gorinova, Moore and Hoffman, 2020, "Automatic reparameterisation of
probabilistic programs"). This is the form of Pyro's `LocScaleReparam`, computed by z: of each
number a single power of the scale is needed, and no logarithm.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from elbowroom.guides.space import own_family


class PartlyCentred(dist.TorchDistribution):
    """The values u of a site of a location-scale family.

    Args:
        fn: The site's distribution, with `loc`, `scale` and values on the real line.
        share: c, of the site's shape or one that is broadcast to it; None for z itself.

    Example:
        >>> u = PartlyCentred(dist.Normal(1.0, 4.0), torch.tensor(0.5))
        >>> u.of_value(torch.tensor(5.0))  # z is 1
        tensor(2.5000)
        >>> u.value_of(torch.tensor(2.5))
        tensor(5.)
        >>> u.log_prob(torch.tensor(2.5)) - dist.Normal(0.5, 2.0).log_prob(torch.tensor(2.5))
        tensor(0.)
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, fn: Any, share: Tensor | None = None) -> None:
        own, shape = own_family(fn), fn.shape()
        names = [name for name in own.arg_constraints if name not in ("loc", "scale")]
        self.loc, self.scale = own.loc, own.scale
        zero, one = torch.zeros_like(self.loc), torch.ones_like(self.scale)
        others = {name: getattr(own, name) for name in names}
        self.noise = type(own)(loc=zero, scale=one, **others).expand(shape)
        self.share = share
        if share is not None:
            self.log_power = share * self.scale.log()
            self.inverse = (-self.log_power).exp()
            self.centre = share * self.loc
        super().__init__(shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PartlyCentred":
        """The same for more numbers."""
        found = self._get_checked_instance(PartlyCentred, _instance)
        found.__dict__.update(self.__dict__, noise=self.noise.expand(batch_shape))
        super(PartlyCentred, found).__init__(torch.Size(batch_shape), validate_args=False)
        return found

    def standard(self, u: Tensor) -> Tensor:
        """z, (...)."""
        return u if self.share is None else (u - self.centre) * self.inverse

    def value_of(self, u: Tensor) -> Tensor:
        """The site's value, (...)."""
        return self.loc + self.scale * self.standard(u)

    def of_value(self, value: Tensor) -> Tensor:
        """The u of a value of the site, (...)."""
        return self._of_standard((value - self.loc) / self.scale)

    def _of_standard(self, z: Tensor) -> Tensor:
        return z if self.share is None else self.centre + z / self.inverse

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density, (...)."""
        found: Tensor = self.noise.log_prob(self.standard(u))
        return found if self.share is None else found - self.log_power

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of the prior, reparameterised."""
        return self._of_standard(self.noise.rsample(sample_shape))
