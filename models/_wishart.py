"""A Wishart distribution whose draws can be made many at a time."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class Wishart(dist.Wishart):
    """Of a precision matrix, drawn by its Bartlett decomposition.

    torch looks at each draw whether it is singular, which `vmap` refuses.

    Example:
        >>> fn = Wishart(torch.tensor(5.0), covariance_matrix=torch.eye(2))
        >>> torch.manual_seed(0) and fn.rsample((20_000,)).mean(0).round().abs()
        tensor([[5., 0.],
                [0., 5.]])
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (..., n, n) (Smith and Hocking, 1972, "Wishart variate generator")."""
        scale = self._unbroadcasted_scale_tril
        size = self._event_shape[-1]
        freedom = self.df.unsqueeze(-1) - torch.arange(size).to(scale)  # (..., n)
        squares = dist.Chi2(freedom).rsample(torch.Size(sample_shape))
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=scale.dtype, device=scale.device).tril(-1)
        factor = scale @ (noise + torch.diag_embed(squares.sqrt()))
        return factor @ factor.mT
