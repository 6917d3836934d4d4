"""Probabilities below and above a value, in logarithms: those of censored and truncated rows.

`TAILS` of a family is a function of its distribution and a value y, (rows,), that gives
log P(Y ≤ y) and log P(Y > y). All are made of operations that have derivatives of any order.

Distributions whose distribution function has no such form are integrated. Each is the density
exp(g(u)) of a coordinate u on the real line, with g concave: log(y) of the gamma, the logit of the
beta, and so on. From u0 away from the mode that density falls, and its integral is taken by the
double exponential rule of half a line (Takahasi and Mori, 1974, "Double exponential formulas for
numerical integration"),

    L Σ exp(g(u0 + L w(t))) w'(t) h,  w(t) = exp(t - exp(-t)),

in units of the length over which it falls, L = 1 / (|g'(u0)| + √-g''(u0)). The other side is the
rest to one.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from elbowroom.models._distributions import LOG_TWO_PI, log_ndtr, log_rest

Tails = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""The logarithms of the probabilities of a number up to a value, and above it."""


@dataclass(frozen=True)
class Rule:
    """The points of the double exponential rule."""

    first: float = -3.8
    """Of t: the integral before it is a share of 1e-20 of a length."""
    last: float = 4.2
    """Of t, which reaches 66 lengths: some densities fall slowly before they end, as the gamma's of
    a small shape."""
    count: int = 56
    """Points: the error of the logarithm is below 1e-5, or 1e-4 for shapes near 0.05."""


FINE, COARSE = Rule(), Rule(first=-2.8, last=3.2, count=16)
_rule = ContextVar("_rule", default=FINE)


@contextmanager
def coarse() -> Iterator[None]:
    """A block in which 16 points do: probabilities are off by 2e-3 at most, which no draw shows."""
    token = _rule.set(COARSE)
    try:
        yield
    finally:
        _rule.reset(token)


def integrated(
    log_density: Callable[[Tensor], Tensor], place: Tensor, slope: Tensor, bend: Tensor
) -> tuple[Tensor, Tensor]:
    """The tails of a distribution on the real line whose log density is concave.

    Args:
        log_density: Of points (rows, points).
        place: Where the line is cut, (rows,).
        slope: The derivative of the log density there, (rows,).
        bend: Minus its second derivative, (rows,).

    Example:
        >>> zero = torch.zeros(1)
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> integrated(normal.log_prob, zero, zero, zero + 1)
        (tensor([-0.6931]), tensor([-0.6931]))
    """
    rule = _rule.get()
    t = torch.linspace(rule.first, rule.last, rule.count, dtype=place.dtype, device=place.device)
    fall = (-t).exp()
    steps = (t - fall).exp()
    weights = t - fall + torch.log1p(fall) + math.log((rule.last - rule.first) / (rule.count - 1))
    # The sum does not depend on the length but for its error, and neither do its derivatives.
    length = (1 / (slope.abs() + bend.clamp_min(0.0).sqrt())).detach()
    upwards = slope <= 0
    reach = torch.where(upwards, length, -length).unsqueeze(-1)
    terms = log_density(place.unsqueeze(-1) + reach * steps) + weights
    outer = length.log() + terms.logsumexp(-1)
    outer = outer.clamp(max=-torch.finfo(outer.dtype).eps)  # by rounding it may be one
    inner = log_rest(outer)
    return torch.where(upwards, inner, outer), torch.where(upwards, outer, inner)


def _of_hazard(hazard: Tensor) -> tuple[Tensor, Tensor]:
    """Of a survival function exp(-hazard)."""
    return log_rest(-hazard), -hazard


def _swapped(tails: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    below, above = tails
    return above, below


def of_normal(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of a Normal."""
    z = (value - fn.loc) / fn.scale
    return log_ndtr(z), log_ndtr(-z)


def of_lognormal(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of a log-Normal."""
    return of_normal(fn.base_dist, value.log())


def of_exponential(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of an exponential distribution."""
    return _of_hazard(fn.rate * value)


def of_weibull(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of `WeibullOfMean`."""
    return _of_hazard((fn.concentration * (value.log() - fn.log_scale)).exp())


def of_laplace(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of a Laplace distribution."""
    return _of_sides((value - fn.loc) / fn.scale, (value - fn.loc) / fn.scale, 0.5)


def of_asymmetric_laplace(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of an asymmetric Laplace distribution, of two exponential sides."""
    away, left, right = value - fn.loc, fn.left_scale, fn.right_scale
    return _of_sides(away / left, away / right, left / (left + right))


def _of_sides(low: Tensor, high: Tensor, share: Any) -> tuple[Tensor, Tensor]:
    """Of two exponential sides about zero, in units of their scales; `share` is below."""
    share = torch.as_tensor(share, dtype=low.dtype, device=low.device)
    below = share.log() + low.clamp(max=0.0)
    above = torch.log1p(-share) - high.clamp(min=0.0)
    return torch.where(low < 0, below, log_rest(above)), torch.where(
        low < 0, log_rest(below), above
    )


def of_student_t(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of Student's t, at sinh(u) = z / √ν: the log density is -ν log cosh(u), plus a constant."""
    nu = fn.df
    u = ((value - fn.loc) / (fn.scale * nu.sqrt())).asinh()
    constant = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - math.log(math.pi) / 2

    def log_density(u: Tensor) -> Tensor:
        size = u.abs()  # cosh overflows
        log_cosh = size + torch.log1p((-2 * size).exp()) - math.log(2)
        return constant.unsqueeze(-1) - nu.unsqueeze(-1) * log_cosh

    slope = u.tanh()
    u, slope, nu, constant = torch.broadcast_tensors(u, slope, nu, constant)
    return integrated(log_density, u, -nu * slope, nu * (1 - slope**2))


def of_skew_normal(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of `SkewNormal`, at its own z."""
    z, slant = fn.standardised(value), fn.slant
    ratio = (-0.5 * ((slant * z) ** 2 + LOG_TWO_PI) - log_ndtr(slant * z)).exp()

    def log_density(z: Tensor) -> Tensor:
        return math.log(2) - 0.5 * (z**2 + LOG_TWO_PI) + log_ndtr(slant.unsqueeze(-1) * z)

    bend = 1 + slant**2 * ratio * (slant * z + ratio)
    return integrated(log_density, z, slant * ratio - z, bend)


def of_gamma(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of a gamma distribution."""
    return _of_log_gamma(fn.concentration, value.log() + fn.rate.log())


def _of_log_gamma(shape: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Of the logarithm of a gamma number with a rate of one."""
    shape, u = torch.broadcast_tensors(shape, u)

    def log_density(u: Tensor) -> Tensor:
        return shape.unsqueeze(-1) * u - u.exp() - torch.lgamma(shape).unsqueeze(-1)

    return integrated(log_density, u, shape - u.exp(), u.exp())


def of_inverse_gaussian(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of `InverseGaussian`, at u = log(y / μ)."""
    u = value.log() - fn.log_mean
    ratio = fn.concentration * (-fn.log_mean).exp()  # λ / μ

    def log_density(u: Tensor) -> Tensor:
        each = ratio.unsqueeze(-1)
        # cosh(u) - 1, whose digits last near zero.
        return 0.5 * (each.log() - LOG_TWO_PI - u) - 2 * each * (u / 2).sinh() ** 2

    return integrated(log_density, u, -0.5 - ratio * u.sinh(), ratio * u.cosh())


def of_beta(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of a beta distribution."""
    return _of_logit_beta(fn.concentration1, fn.concentration0, value.logit())


def _of_logit_beta(first: Tensor, second: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Of the logit of a beta number."""
    first, second, u = torch.broadcast_tensors(first, second, u)
    constant = torch.lgamma(first + second) - torch.lgamma(first) - torch.lgamma(second)

    def log_density(u: Tensor) -> Tensor:
        sides = first.unsqueeze(-1) * logsigmoid(u) + second.unsqueeze(-1) * logsigmoid(-u)
        return constant.unsqueeze(-1) + sides

    share, rest = logsigmoid(u).exp(), logsigmoid(-u).exp()
    return integrated(
        log_density, u, first * rest - second * share, (first + second) * share * rest
    )


def of_poisson(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of `PoissonOfLog`: a count is above y where y + 1 events come sooner than the rate."""
    return _swapped(_of_log_gamma(value.floor() + 1, fn.log_rate))


def of_negative_binomial(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of a negative binomial: of y + 1 events before as many others as its total count."""
    return _swapped(_of_logit_beta(value.floor() + 1, fn.total_count, fn.logits))


def inflated(base: Tails) -> Tails:
    """Of zero-inflated counts."""

    def tails(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        below, above = base(fn.base_dist, value)
        zero, rest = logsigmoid(fn.gate_logits), logsigmoid(-fn.gate_logits)
        return torch.logaddexp(zero, rest + below), rest + above

    return tails


def hurdle(base: Tails) -> Tails:
    """Of `Hurdle`, whose counts above zero are all that its base has there."""

    def tails(fn: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        _, above = base(fn.base, value)
        above = torch.log1p(-fn.zero) + above - log_rest(fn.log_zero)
        return log_rest(above), above

    return tails
