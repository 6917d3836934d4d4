"""Distributions of observations that Pyro does not have."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


class DiscretisedLogistic(dist.TorchDistribution):
    """A logistic distribution rounded to whole numbers within limits, which get its tails.

    P(x) = σ((x + 1/2 - μ) / s) - σ((x - 1/2 - μ) / s), where the first term is one at the highest
    number and the second zero at the lowest (Kingma et al., 2016, "Improved variational inference
    with inverse autoregressive flow"; Salimans et al., 2017, "PixelCNN++").

    Args:
        location: μ, of any shape.
        scale: s, positive, of a shape that goes with it.
        low: The lowest number.
        high: The highest.

    Example:
        >>> fair = DiscretisedLogistic(torch.tensor(0.5), torch.tensor(2.0), 0, 1)
        >>> fair.log_prob(torch.tensor([0.0, 1.0])).exp()
        tensor([0.5000, 0.5000])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "location": constraints.real,
        "scale": constraints.positive,
    }
    has_rsample = False

    def __init__(
        self,
        location: Tensor,
        scale: Tensor,
        low: int,
        high: int,
        validate_args: bool | None = None,
    ) -> None:
        self.location, self.scale = torch.broadcast_tensors(location, scale)
        self.low, self.high = low, high
        super().__init__(self.location.shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The whole numbers within the limits."""
        return constraints.integer_interval(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        """The sum of the probabilities of being above each number."""
        total = torch.full_like(self.location, self.low)
        for number in range(self.low, self.high):
            total = total + torch.sigmoid((self.location - number - 0.5) / self.scale)
        return total

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretisedLogistic":
        """The same with a larger batch shape."""
        return DiscretisedLogistic(
            self.location.expand(batch_shape), self.scale.expand(batch_shape), self.low, self.high,
            validate_args=False,
        )  # fmt: skip

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, sample shape + batch shape."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.location.dtype, device=self.location.device)
            tiny = torch.finfo(uniform.dtype).tiny
            logistic = (uniform + tiny).log() - torch.log1p(-uniform)
            return (self.location + self.scale * logistic).round().clamp(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, without loss of digits far from the location."""
        if self._validate_args:
            self._validate_sample(value)
        above = (value + 0.5 - self.location) / self.scale
        below = (value - 0.5 - self.location) / self.scale
        # log(σ(a) - σ(b)) = log(1 - exp(b - a)) + log σ(a) + log σ(-b)
        inner = torch.log(-torch.expm1(-1 / self.scale)) + logsigmoid(above) + logsigmoid(-below)
        lowest, highest = value <= self.low, value >= self.high
        return torch.where(lowest, logsigmoid(above), torch.where(highest, -softplus(below), inner))


class Dequantised(dist.TorchDistribution):
    """Whole numbers, as a density sees them with noise added to them.

    The log density of x + u is that of whole numbers and u together: with u a latent that is
    uniform on [0, 1], any guide of u gives a bound on the log probability of x (Theis, van den Oord
    and Bethge, 2016, "A note on the evaluation of generative models"; Ho et al., 2019, "Flow++").

    Args:
        base: The density, one number an element.
        noise: u, of its batch shape.

    Example:
        >>> seen = Dequantised(dist.Normal(torch.zeros(2), 1.0), torch.tensor([0.25, 0.5]))
        >>> seen.log_prob(torch.tensor([0.0, 1.0])) - dist.Normal(0, 1).log_prob(
        ...     torch.tensor([0.25, 1.5])
        ... )
        tensor([0., 0.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, base: Any, noise: Tensor, validate_args: bool | None = None) -> None:
        self.base, self.noise = base, noise
        super().__init__(base.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The whole numbers, which are all that is rounded down."""
        return constraints.integer

    @property
    def mean(self) -> Tensor:
        """Half of the noise below the density's, which is spread over several numbers."""
        return self.base.mean - 0.5

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Dequantised":
        """The same with a larger batch shape."""
        base, noise = self.base.expand(batch_shape), self.noise.expand(batch_shape)
        return Dequantised(base, noise, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, sample shape + batch shape."""
        with torch.no_grad():
            return self.base.sample(torch.Size(sample_shape)).floor()

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, of the numbers and their noise."""
        if self._validate_args:
            self._validate_sample(value)
        return self.base.log_prob(value + self.noise)
