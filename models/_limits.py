"""Responses of which some are known by limits only, or of which none beyond limits is recorded."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from elbowroom.models._distributions import Around, log_rest
from elbowroom.models._tails import Tails, coarse


@dataclass(frozen=True)
class Search:
    """How draws between limits are found."""

    halvings: int = 26
    """Of the range of the search: the error is then a millionth of a number or of one."""
    reach: float = 50.0
    """Of it, on a scale on which numbers and their logarithms are both of moderate size."""


SEARCH = Search()


def log_between(lower: tuple[Tensor, Tensor], upper: tuple[Tensor, Tensor]) -> Tensor:
    """The logarithm of the probability between two values, by the tail that has its digits.

    Args:
        lower: The tails of the lower value, each (rows,).
        upper: The tails of the upper one.

    Example:
        >>> a, b = (torch.tensor([p]).log() for p in (0.2, 0.7))
        >>> log_between((a, log_rest(a)), (b, log_rest(b))).exp()
        tensor([0.5000])
    """
    high = lower[0] > upper[1]
    outer = torch.where(high, lower[1], upper[0])
    return outer + log_rest(torch.where(high, upper[1], lower[0]) - outer)


class Censored(Around):
    """Numbers of which some are known to be above, below or between others only.

    Args:
        base: The distribution of the numbers themselves, which is drawn from.
        tails: `tails(base, value)` gives the logarithms of the probabilities below and above.
        status: Of each row: 0 known, 1 above, -1 below, 2 between the value and `upper`.
        upper: The upper end of intervals, (rows,); None if there are none.
    """

    def __init__(
        self,
        base: Any,
        tails: Tails,
        status: Tensor,
        upper: Tensor | None = None,
        validate_args: Any = None,
    ) -> None:
        self.tails, self.status, self.upper = tails, status, upper
        super().__init__(base, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Censored":
        """The same with a larger batch shape."""
        base, status = self.base.expand(batch_shape), self.status.expand(batch_shape)
        upper = None if self.upper is None else self.upper.expand(batch_shape)
        return Censored(base, self.tails, status, upper, False)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats: densities of what is known, probabilities of what is not."""
        if self._validate_args:
            self._validate_sample(value)
        below, above = self.tails(self.base, value)
        found = self.base.log_prob(value)
        found = torch.where(self.status == 1, above, found)
        found = torch.where(self.status == -1, below, found)
        if self.upper is None:
            return found
        between = log_between((below, above), self.tails(self.base, self.upper))
        return torch.where(self.status == 2, between, found)


class Truncated(Around):
    """Numbers that are recorded only where they lie between two limits, these included.

    The density is that of the base, divided by the probability between the limits. The mean and
    the variance are the base's, of numbers without limits; draws are within them.

    Args:
        base: The distribution without limits.
        tails: `tails(base, value)` gives the logarithms of the probabilities below and above.
        lower: The lower limit, (rows,), minus infinity where there is none; of counts halfway
            below the smallest.
        upper: The upper limit, (rows,), infinity where there is none.

    Example:
        >>> import pyro.distributions as dist
        >>> from elbowroom.models._tails import of_exponential
        >>> fn = dist.Exponential(torch.ones(1))
        >>> limits = torch.ones(1), torch.full((1,), torch.inf)
        >>> Truncated(fn, of_exponential, *limits).log_prob(torch.tensor([3.0]))
        tensor([-2.])
    """

    def __init__(
        self, base: Any, tails: Tails, lower: Tensor, upper: Tensor, validate_args: Any = None
    ) -> None:
        self.tails, self.lower, self.upper = tails, lower, upper
        super().__init__(base, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Truncated":
        """The same with a larger batch shape."""
        base, lower = self.base.expand(batch_shape), self.lower.expand(batch_shape)
        return Truncated(base, self.tails, lower, self.upper.expand(batch_shape), False)

    def _ends(self, inside: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The tails of both limits; `inside` takes the place of those that there are none of."""
        ends = []
        for limit, none in ((self.lower, (-torch.inf, 0.0)), (self.upper, (0.0, -torch.inf))):
            there = limit.isfinite()
            tails = self.tails(self.base, torch.where(there, limit, inside))
            pair = [torch.where(there, t, x) for t, x in zip(tails, none, strict=True)]
            ends.append((pair[0], pair[1]))
        return ends[0], ends[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats; minus infinity beyond the limits."""
        if self._validate_args:
            self._validate_sample(value)
        within = (value >= self.lower) & (value <= self.upper)
        found = self.base.log_prob(value) - log_between(*self._ends(value))
        return torch.where(within, found, -torch.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws within the limits, sample shape + batch shape.

        By the inverse of the distribution function, for which a range is halved: in the same steps
        for all rows and draws, which can be batched so.
        """
        with torch.no_grad(), coarse():
            shape = self._extended_shape(torch.Size(sample_shape))
            place, width = torch.zeros(shape).to(self.upper), SEARCH.reach
            value = self._spread(place)
            lower, upper = self._ends(value)
            share, inside = torch.rand_like(value), log_between(lower, upper)
            high = lower[0] > upper[1]  # in the tail that has the digits
            target = torch.where(
                high, torch.logaddexp(upper[1], inside + torch.log1p(-share)),
                torch.logaddexp(lower[0], inside + share.log()),
            )  # fmt: skip
            for _ in range(SEARCH.halvings):
                tried = self._spread(place)
                below, above = self.tails(self.base, tried)
                short = torch.where(high, above > target, below < target)
                value = torch.where(short, value, tried)
                width /= 2
                place = place + torch.where(short, width, -width)
            return torch.minimum(torch.maximum(value, self.lower), self.upper)

    def _spread(self, place: Tensor) -> Tensor:
        """Numbers of the base's support, at numbers on the real line."""
        if self.support is constraints.real:
            return place.sinh()
        if self.support is constraints.nonnegative_integer:
            return place.exp().floor()
        return biject_to(self.support)(place)
