"""Normals that remember the noise of their last draw.

The log density of a draw follows from the noise that it was made of, without the way back through
the location and the scale. Its derivative by the parameters is the same: what they change in the
value they change in the distance from the location as well, and the two cancel.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class PathwiseNormal(dist.Normal):
    """A Normal whose own draw has its log density from the noise.

    Example:
        >>> normal = PathwiseNormal(torch.tensor(1.0), torch.tensor(2.0))
        >>> value = normal.rsample()
        >>> torch.testing.assert_close(normal.log_prob(value), normal.log_prob(value.clone()))
    """

    _drawn: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """A draw, reparameterised."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.empty(shape, dtype=self.loc.dtype, device=self.loc.device).normal_()
        value = self.loc + noise * self.scale
        self._drawn = value, noise
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density at a value."""
        if self._drawn is None or value is not self._drawn[0]:
            return super().log_prob(value)
        return -0.5 * self._drawn[1].square() - self.scale.log() - HALF_LOG_2PI


class PathwiseMultivariateNormal(dist.MultivariateNormal):
    """The same with correlations."""

    _drawn: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """A draw, reparameterised."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.empty(shape, dtype=self.loc.dtype, device=self.loc.device).normal_()
        factor = self._unbroadcasted_scale_tril
        value = self.loc + (factor @ noise.unsqueeze(-1)).squeeze(-1)
        self._drawn = value, noise
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density at a value."""
        if self._drawn is None or value is not self._drawn[0]:
            return super().log_prob(value)
        noise = self._drawn[1]
        log_determinant = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        distance = -0.5 * noise.square().sum(-1)
        return distance - log_determinant - HALF_LOG_2PI * noise.shape[-1]


HALF_LOG_2PI = 0.9189385332046727
