"""Distributions of responses that Pyro does not have, or not in digits that last."""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

LOG_TWO_PI = math.log(2 * math.pi)


def log_ndtr(z: Tensor) -> Tensor:
    """The logarithm of the Normal distribution function; torch's own cannot be batched.

    Example:
        >>> log_ndtr(torch.tensor([-40.0, 0.0, 40.0]))
        tensor([-8.0461e+02, -6.9315e-01, -0.0000e+00])
    """
    low, high = z.clamp(max=0.0), z.clamp(min=0.0)
    below = torch.log(torch.special.erfcx(low * -math.sqrt(0.5)) / 2) - low**2 / 2
    above = torch.log1p(-torch.special.erfc(high * math.sqrt(0.5)) / 2)
    return torch.where(z < 0, below, above)


def log_rest(log_share: Tensor) -> Tensor:
    """The logarithm of what is left of one, log(1 - exp(log_share)).

    Example:
        >>> log_rest(torch.tensor([0.25]).log()).exp()
        tensor([0.7500])
    """
    tiny = torch.finfo(log_share.dtype).tiny
    return torch.log(-torch.expm1(log_share.clamp(max=-tiny)))


class _OfRows(dist.TorchDistribution):
    """A distribution of one number a row, which some tensors that go together describe."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        values = torch.broadcast_tensors(*parameters)
        for name, value in zip(self.names, values, strict=True):
            setattr(self, name, value)
        super().__init__(values[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same with a larger batch shape."""
        values = (getattr(self, name).expand(batch_shape) for name in self.names)
        return type(self)(*values, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, sample shape + batch shape."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return self.drawn(*(getattr(self, name).expand(shape) for name in self.names))

    def drawn(self, *parameters: Tensor) -> Tensor:
        """One draw for each element of its parameters."""
        raise NotImplementedError

    def checked(self, value: Tensor) -> Tensor:
        """A value, looked at if values are."""
        if self._validate_args:
            self._validate_sample(value)
        return value


def _uniform(like: Tensor) -> Tensor:
    return torch.rand_like(like).clamp_min(torch.finfo(like.dtype).tiny)


class PoissonOfLog(_OfRows):
    """Poisson, by the logarithm of its rate: small rates keep their digits.

    Args:
        log_rate: Of the rows.

    Example:
        >>> PoissonOfLog(torch.tensor(-1000.0)).log_prob(torch.tensor(2.0))
        tensor(-2000.6931)
    """

    names = ("log_rate",)
    support = constraints.nonnegative_integer
    log_rate: Tensor

    @property
    def mean(self) -> Tensor:
        """The rate."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """The rate as well."""
        return self.log_rate.exp()

    def drawn(self, *parameters: Tensor) -> Tensor:
        """Whole numbers; a rate too large for them stays as it is."""
        rate = parameters[0].exp()
        return torch.where(rate < 2**62, torch.poisson(rate.clamp(max=2**62)), rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats."""
        value = self.checked(value)
        return value * self.log_rate - self.log_rate.exp() - torch.lgamma(value + 1)


class WeibullOfMean(_OfRows):
    """Weibull, by the logarithm of its mean and its shape.

    The survival function is exp(-(y / λ)^k), the mean λ Γ(1 + 1/k).

    Args:
        log_mean: Of the rows.
        concentration: k, above 0.

    Example:
        >>> WeibullOfMean(torch.tensor(0.0), torch.tensor(1.0)).log_prob(torch.tensor(2.0))
        tensor(-2.)
    """

    names = ("log_mean", "concentration")
    support = constraints.positive
    log_mean: Tensor
    concentration: Tensor

    @property
    def log_scale(self) -> Tensor:
        """The logarithm of λ."""
        return self.log_mean - torch.lgamma(1 + 1 / self.concentration)

    @property
    def mean(self) -> Tensor:
        """λ Γ(1 + 1/k)."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """λ² Γ(1 + 2/k), less the square of the mean."""
        k = self.concentration
        ratio = torch.lgamma(1 + 2 / k) - 2 * torch.lgamma(1 + 1 / k)
        return (2 * self.log_mean).exp() * torch.expm1(ratio)

    def drawn(self, *parameters: Tensor) -> Tensor:
        """By the inverse of the survival function."""
        log_mean, shape = parameters
        hazard = -_uniform(shape).log()
        return (log_mean - torch.lgamma(1 + 1 / shape) + hazard.log() / shape).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats."""
        value = self.checked(value)
        log_hazard = self.concentration * (value.log() - self.log_scale)
        return self.concentration.log() - value.log() + log_hazard - log_hazard.exp()


class InverseGaussian(_OfRows):
    """Inverse Gaussian, by the logarithm of its mean μ and its shape λ; the variance is μ³ / λ.

    Args:
        log_mean: Of the rows.
        concentration: λ, above 0.

    Example:
        >>> InverseGaussian(torch.tensor(0.0), torch.tensor(2.0)).variance
        tensor(0.5000)
    """

    names = ("log_mean", "concentration")
    support = constraints.positive
    log_mean: Tensor
    concentration: Tensor

    @property
    def mean(self) -> Tensor:
        """μ."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """μ³ / λ."""
        return (3 * self.log_mean).exp() / self.concentration

    def drawn(self, *parameters: Tensor) -> Tensor:
        """One of the two roots (Michael, Schucany and Haas, 1976)."""
        mean, shape = parameters[0].exp(), parameters[1]
        squared = torch.randn_like(mean).square() * mean / (2 * shape)
        # 1 + w - √(w (2 + w)), written so that it keeps its digits where w is large.
        low = 1 / (1 + squared + (squared * (2 + squared)).sqrt())
        first = torch.rand_like(mean) * (1 + low) <= 1
        return mean * torch.where(first, low, 1 / low)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats."""
        value = self.checked(value)
        away = (value * (-self.log_mean).exp() - 1).square() * self.concentration / value
        return 0.5 * (self.concentration.log() - LOG_TWO_PI - 3 * value.log() - away)


class SkewNormal(_OfRows):
    """Skew Normal, by its mean, its standard deviation and its slant α.

    With δ = α / √(1 + α²), the location is mean - ω δ √(2/π), the scale ω = sd / √(1 - 2 δ² / π),
    and the density 2/ω φ(z) Φ(α z) at z = (y - location) / ω (Azzalini, 1985, "A class of
    distributions which includes the normal ones").

    Args:
        mean: Of the rows.
        sigma: Their standard deviation, above 0.
        slant: α, zero for the Normal.

    Example:
        >>> SkewNormal(*torch.tensor([1.0, 2.0, 0.0])).log_prob(torch.tensor(1.0)).exp() * 2
        tensor(0.3989)
    """

    names = ("centre", "sigma", "slant")
    support = constraints.real
    centre: Tensor
    sigma: Tensor
    slant: Tensor

    @property
    def mean(self) -> Tensor:
        """As given."""
        return self.centre

    @property
    def variance(self) -> Tensor:
        """The square of its standard deviation."""
        return self.sigma**2

    def drawn(self, *parameters: Tensor) -> Tensor:
        """A Normal plus a half Normal."""
        centre, sigma, slant = parameters
        delta, scale = _delta(slant), _scale(sigma, slant)
        half, other = torch.randn_like(delta).abs(), torch.randn_like(delta)
        z = delta * (half - math.sqrt(2 / math.pi)) + (1 - delta**2).sqrt() * other
        return centre + scale * z

    def standardised(self, value: Tensor) -> Tensor:
        """z, of a value."""
        scale = _scale(self.sigma, self.slant)
        return (value - self.centre) / scale + math.sqrt(2 / math.pi) * _delta(self.slant)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats."""
        value = self.checked(value)
        z = self.standardised(value)
        normal = -0.5 * (z**2 + LOG_TWO_PI) - _scale(self.sigma, self.slant).log()
        return math.log(2) + normal + log_ndtr(self.slant * z)


def _delta(slant: Tensor) -> Tensor:
    return slant / (1 + slant**2).sqrt()


def _scale(sigma: Tensor, slant: Tensor) -> Tensor:
    return sigma / (1 - 2 * _delta(slant) ** 2 / math.pi).sqrt()


class Hurdle(dist.TorchDistribution):
    """Zero with a probability, else a count that is not zero.

    Args:
        base: The distribution of counts, whose zeros are left out.
        zero: The probability of zero.

    Example:
        >>> three = Hurdle(PoissonOfLog(torch.zeros(3)), torch.tensor(0.25))
        >>> three.log_prob(torch.tensor([0.0, 1.0, 2.0])).exp()
        tensor([0.2500, 0.4365, 0.2182])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.nonnegative_integer
    has_rsample = False

    def __init__(self, base: Any, zero: Tensor, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(base.batch_shape, zero.shape)
        self.base, self.zero = base.expand(shape), zero.expand(shape)
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Hurdle":
        """The same with a larger batch shape."""
        return Hurdle(self.base.expand(batch_shape), self.zero.expand(batch_shape), False)

    @property
    def log_zero(self) -> Tensor:
        """The logarithm of the base's own probability of zero."""
        return self.base.log_prob(torch.zeros_like(self.zero))

    @property
    def mean(self) -> Tensor:
        """Of counts and zeros."""
        return (1 - self.zero) * self.base.mean / -torch.expm1(self.log_zero)

    @property
    def variance(self) -> Tensor:
        """Of counts and zeros."""
        share = (1 - self.zero) / -torch.expm1(self.log_zero)
        return share * (self.base.variance + self.base.mean**2) - self.mean**2

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, sample shape + batch shape; of a base that is nearly always zero, by ones."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            found = self.base.sample(torch.Size(sample_shape))
            for _ in range(100):
                again = found == 0
                if not again.any():
                    break
                found = torch.where(again, self.base.sample(torch.Size(sample_shape)), found)
            return torch.where(torch.rand(shape) < self.zero, 0.0, found.clamp_min(1))

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats."""
        if self._validate_args:
            self._validate_sample(value)
        above = self.base.log_prob(value.clamp_min(1)) - log_rest(self.log_zero)
        return torch.where(value == 0, self.zero.log(), torch.log1p(-self.zero) + above)


class Around(dist.TorchDistribution):
    """A distribution that is another one to all but its density."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, base: Any, validate_args: Any = None) -> None:
        self.base = base
        super().__init__(base.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """That of the other one."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """That of the other one."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """That of the other one."""
        return self.base.variance

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of the other one."""
        return self.base.sample(torch.Size(sample_shape))


class Weighted(Around):
    """Rows of which each counts as often as its weight says.

    Args:
        base: The distribution of the rows.
        weights: Of each row, 0 or more.

    Example:
        >>> twice = Weighted(dist.Normal(torch.zeros(2), 1.0), torch.tensor([1.0, 2.0]))
        >>> twice.log_prob(torch.zeros(2)) / twice.base.log_prob(torch.zeros(2))
        tensor([1., 2.])
    """

    def __init__(self, base: Any, weights: Tensor, validate_args: Any = None) -> None:
        self.weights = weights
        super().__init__(base, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Weighted":
        """The same with a larger batch shape."""
        return Weighted(self.base.expand(batch_shape), self.weights.expand(batch_shape), False)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, times the weights."""
        return self.weights * self.base.log_prob(value)
